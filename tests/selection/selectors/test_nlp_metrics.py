"""Tails of weight spectra: planted exponents, and weightwatcher's values."""

import json
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

import lensllm_jax
from lensllm_jax import checks
from lensllm_jax.checkpoints.stored import stored_weights
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors import nlp_metrics
from lensllm_jax.selection.selectors.nlp_metrics import (
    heavy_tail_metrics,
    mean_pl_alpha,
    weight_matrices,
)
from tests.tolerances import assert_close

ZOO = Path(lensllm_jax.__file__).parent / "zoo"


def heavy(alpha, *, rows=300, columns=200, seed=0):
    """A matrix whose squared singular values follow p(x) ~ x^-alpha."""
    rng = np.random.default_rng(seed)
    tail = rng.pareto(alpha - 1.0, columns) + 1.0
    return np.linalg.qr(rng.standard_normal((rows, columns)))[0] * np.sqrt(tail)


def test_alpha_orders_tails_and_is_that_of_the_spectrum():
    alphas = [heavy_tail_metrics(heavy(a), truncated=False).pl_alpha for a in (2.0, 3.0, 5.0)]
    assert alphas == sorted(alphas)
    assert abs(alphas[0] - 2.0) < 0.3  # 200 draws: a standard error of 1 / sqrt(200)


def test_a_truncated_tail_has_a_larger_lambda():
    cut = heavy(2.0)
    left, values, right = np.linalg.svd(cut, full_matrices=False)
    bounded = left * np.minimum(values, np.sqrt(6.0)) @ right
    assert heavy_tail_metrics(bounded).etpl_lambda > heavy_tail_metrics(cut).etpl_lambda


GOLDEN = json.loads((Path(__file__).parents[2] / "goldens/weightwatcher_alpha.json").read_text())


@pytest.mark.parametrize("candidate", GOLDEN["alpha"])
def test_alpha_of_every_layer_equals_weightwatchers(candidate):
    theirs = GOLDEN["alpha"][candidate]
    layers = dict(weight_matrices(stored_weights(ZOO / candidate)))
    assert layers.keys() == theirs.keys()
    for name, matrix in layers.items():
        ours = heavy_tail_metrics(matrix, truncated=False).pl_alpha
        assert_close(ours, theirs[name], jnp.float64)


def test_alpha_above_three_is_not_cut_off(monkeypatch):
    # the package's own range ends at 3: with it the layers of 7 and 11 came out at 1.6 and 2.6
    assert max(GOLDEN["alpha"]["gpt2-xs"].values()) > 5.0
    steep = heavy_tail_metrics(heavy(6.0), truncated=False).pl_alpha
    monkeypatch.setattr(nlp_metrics, "_ALPHA_RANGE", (0.0, 3.0))
    assert heavy_tail_metrics(heavy(6.0), truncated=False).pl_alpha < 3.1 < steep


def test_params_file_and_folder_give_the_same_alpha_and_skip_what_is_no_layer(tmp_path):
    tensors = {
        "h.0.mlp.kernel": heavy(2.0).astype(np.float32),
        "wte.embedding": heavy(5.0).astype(np.float32),
        "h.0.mlp.bias": np.ones(200, np.float32),
        "h.0.small.kernel": np.ones((4, 4), np.float32),
    }
    safetensors.numpy.save_file(tensors, tmp_path / "model.safetensors")
    assert [name for name, _ in weight_matrices(stored_weights(tmp_path))] == ["h.0.mlp.kernel"]
    expected = mean_pl_alpha({"h": {"0": {"mlp": {"kernel": tensors["h.0.mlp.kernel"]}}}})
    for source in (tmp_path, tmp_path / "model.safetensors"):
        assert mean_pl_alpha(stored_weights(source)) == expected


def test_a_stack_of_scanned_layers_is_taken_apart():
    stack = np.stack([heavy(2.0), heavy(4.0, seed=1)])
    parts = [heavy_tail_metrics(m, truncated=False).pl_alpha for m in stack]
    assert mean_pl_alpha({"layers": stack}) == np.mean(parts)


def test_weights_without_a_layer_are_an_error_not_an_empty_mean():
    with pytest.raises(checks.UserError, match="got none"):
        mean_pl_alpha({"kernel": np.ones((3, 3))})


def test_it_ranks_a_table_and_answers_with_a_probability():
    table = LossTable(
        ("a", "b"),
        np.array([200, 400]),
        np.array([[2.0, 1.9], [3.0, 2.9]]),
        np.array([1.0, 1.0]),
        ("", ""),
    )
    budget = {"budget_size": 400, "target_size": 800}
    weights = {"a": {"k": heavy(2.0)}, "b": {"k": heavy(5.0)}}
    r = rank(table, selector="nlp_metrics", evidence=Evidence(weights=weights), **budget)
    assert r.order == ("a", "b")
    assert r.probability("a", "b") == 1.0  # the one pair at the budget agrees
    assert r.flops == 0
