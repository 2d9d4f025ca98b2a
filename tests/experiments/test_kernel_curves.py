"""Learning curves of kernel regression: estimated, and compared on tables of known truth."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.common.left_out import left_out_ridge
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.experiments.pools import toy_texts, write
from tests.messages.binaries import load
from tests.tolerances import assert_close

curves = load("kernel_curves").module
value = load("kernel_curve_value").module
NAMES = tuple("abcdefgh")
SIZES = np.append(0, 100 * 2 ** np.arange(6))
RANDOM = np.random.default_rng(0)
EXPONENTS = RANDOM.permutation(np.linspace(0.05, 0.3, len(NAMES)))


def losses(task):
    noise = np.random.default_rng(task).standard_normal((len(NAMES), len(SIZES)))
    curve = 3.0 * (1 + SIZES / 3200.0) ** (-2.0 * EXPONENTS[:, None])  # bends beyond the budget
    return curve * np.exp(0.002 * noise)


def tables(folder, exponents):
    """Two tasks whose kernel curves have these exponents; levels and LogME are noise."""
    for task in ("one", "two"):
        names = LossTable(NAMES, SIZES, losses(len(task + "x" * (task == "two"))),
                          np.ones(len(NAMES)), ("",) * len(NAMES))  # fmt: skip
        write_loss_table(names, folder / f"{task}_losses.csv")
        write(folder / f"{task}_feature_scores.csv", [
            {"task": task, "selector": "logme", "budget_fraction": fraction, "candidate": name,
             "score": RANDOM.standard_normal()}
            for name in NAMES for fraction in (0.5, 0.25)
        ])  # fmt: skip
        write(folder / f"{task}_kernel_curves.csv", [
            {"candidate": name, "readout": "target_logprob", "estimate": "replica", "size": size,
             "mean_square": 7.0 * size ** (-2.0 * exponent)}
            for name, exponent in zip(NAMES, exponents, strict=True) for size in (16, 32, 64)
        ])  # fmt: skip


def rows_of(folder):
    found = [value.comparisons_of(folder, task) for task in ("one", "two")]
    return {(row["question"], row["control"], row["budget_fraction"]): row
            for row in value.compared_rows(found)}  # fmt: skip


def test_slopes_that_know_the_exponent_help_and_others_do_not(tmp_path):
    for name, exponents in (("true", EXPONENTS), ("random", RANDOM.permutation(EXPONENTS))):
        (tmp_path / name).mkdir()
        tables(tmp_path / name, exponents)
    true, random = (rows_of(tmp_path / name) for name in ("true", "random"))
    at = ("slope", "kappa = 0", "0.125")
    assert true[at]["primary"] == 1
    assert float(true[at]["mean_error"]) < 0.5 * float(true[at]["control_error"])
    assert float(true[at]["p_family"]) < 0.05
    assert true[at]["control_error"] == random[at]["control_error"]
    assert float(random[at]["p_family"]) > 0.05  # the negative control
    # steeper kernels end lower: their level knows the order, which zero-shot losses do not
    level = true["level", "zero_shot", ""]
    assert float(level["mean_error"]) < 0.1 < float(level["control_error"])
    assert float(level["regret"]) < float(level["control_regret"])


def test_misordered_and_regret_are_what_counting_says():
    truth = np.log(np.array([1.0, 1.1, 1.3]))
    assert value.misordered(-truth, truth).tolist() == [1.0, 1.0, 1.0]
    assert value.misordered(np.zeros(3), truth).tolist() == [0.5, 0.5, 0.5]
    assert value.regret(truth, truth) == 0.0
    assert value.regret(-truth, truth) == pytest.approx(30.0)


def test_curves_are_those_of_the_estimates():
    features = RANDOM.standard_normal((12, 2, 40))
    theta = np.einsum("iap,jbp->ijab", features, features)
    residual = RANDOM.standard_normal((12, 2))
    rows = {
        (row["estimate"], row["size"]): row for row in curves.curve_rows(theta, residual, [2, 6])
    }
    assert len(rows) == 2 * 3
    ridge = float(rows["gcv", 2]["ridge"])
    flat, r = theta.transpose(0, 2, 1, 3).reshape(24, 24), residual.ravel()
    weights = np.linalg.solve(flat[:12, :12] + ridge * np.eye(12), r[:12])
    missed = r[12:] - flat[12:, :12] @ weights
    assert_close(float(rows["holdout", 6]["mean_square"]), np.mean(missed**2), rel=1e-4)  # printed


def test_a_kernel_of_lower_rank_than_its_rows_has_curves_in_float32():
    features = RANDOM.standard_normal((40, 6))
    theta = (features @ features.T).astype(np.float32)  # eigenvalues of -1e-6 and the like
    rows = list(curves.curve_rows(theta, RANDOM.standard_normal(40), [10, 20]))
    assert all(float(row["mean_square"]) > 0 for row in rows)


def test_a_second_run_reads_the_kernels_of_the_first(tmp_path, monkeypatch):
    loaded = load(
        "kernel_curves",
        candidates="zoo/gpt2-xs",
        task=toy_texts(tmp_path),
        num_examples=8,
        sizes=["2", "4"],
        output_dir=str(tmp_path / "out"),
        quiet=True,
    )
    module = loaded.module
    made = []

    def kernel(candidate, batch, *, readout, label_tokens, block_size):
        made.append((readout.value, len(label_tokens)))
        k = max(len(label_tokens), 1)
        g = np.random.default_rng(k).standard_normal((8, k, 50))
        theta = np.einsum("iap,jbp->ijab", g, g)
        return SimpleNamespace(theta=theta if k > 1 else theta[..., 0, 0], seconds=1.0,
                               residual=g[..., 0] if k > 1 else g[..., 0, 0])  # fmt: skip

    monkeypatch.setattr(module, "candidate_ntk", kernel)
    for _ in range(2):
        module.main([])
        assert [name for name, _ in made] == ["target_logprob", "label_logits"]
    with (tmp_path / "out" / "toy_kernel_curves.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 3 * 2
    assert {row["readout"] for row in rows} == {"target_logprob", "label_logits"}


def test_left_out_ridge_without_features_is_the_others_mean():
    assert left_out_ridge(np.zeros((3, 0)), np.array([1.0, 2.0, 6.0])).tolist() == [4.0, 3.5, 1.5]
