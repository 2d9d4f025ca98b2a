"""The kernel of a language model with all that comes with it."""

import dataclasses
import subprocess
import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.ntk import candidate, readout
from lensllm_jax.ntk.candidate import candidate_ntk, peak_bytes
from lensllm_jax.ntk.loss import ntk_loss
from tests import oracles
from tests.ntk import cases
from tests.tolerances import assert_close


@dataclasses.dataclass(frozen=True)
class TinyModel:
    """A candidate as the kernel sees one."""

    params: Any
    is_encoder_decoder: bool = False

    def apply_fn(self, params, batch):
        ids = batch["decoder_input_ids" if self.is_encoder_decoder else "input_ids"]
        return cases.transformer_module().apply(params, ids, batch["attention_mask"])


@pytest.fixture
def model_and_batch():
    case = cases.make("tied transformer")
    return TinyModel(case.params), case.x


def test_kernel_of_a_model_is_that_of_its_readout(x64):
    case = cases.make("tied transformer")
    k = candidate_ntk(TinyModel(case.params), case.x, block_size=2)
    assert_close(k.theta, oracles.dense_kernel(case.f, case.params, case.x)[:, :, 0, 0])
    assert_close(k.outputs[:, 0], case.f(case.params, case.x))
    assert (k.num_examples, k.num_columns) == (5, 5)
    assert k.targets.tolist() == [[0.0]] * 5
    assert k.seconds > 0
    assert k.peak_bytes > 1e7
    at_start = ntk_loss(k.theta, k.residual, learning_rate=0.1, steps=0.0)
    assert_close(at_start, np.sum(np.square(k.outputs)))


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_peak_memory_is_that_of_the_process_and_not_of_the_one_that_started_it():
    large = np.ones(2**26)  # 0.5 GB, touched
    run = subprocess.run(
        [sys.executable, "-c", ("from lensllm_jax.ntk.candidate import peak_bytes as peak; "
         "print(peak(), __import__('resource').getrusage(0).ru_maxrss * 1024)")],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    own, inherited = map(int, run.stdout.split())
    assert own < peak_bytes() - large.nbytes / 2
    assert inherited > large.nbytes  # what getrusage says


def test_loss_readout_has_the_same_kernel_and_the_opposite_residual(model_and_batch):
    model, batch = model_and_batch
    a = candidate_ntk(model, batch, readout="loss")
    b = candidate_ntk(model, batch, readout="target_logprob")
    assert_close(a.theta, b.theta)
    assert_close(a.residual, -b.residual)


def test_label_logits_give_a_kernel_of_every_pair_of_classes(model_and_batch):
    model, batch = model_and_batch
    x2 = cases.first(batch, slice(0, 2))
    k = candidate_ntk(model, batch, x2, readout="label_logits", label_tokens=[1, 4, 9])
    assert k.theta.shape == (5, 2, 3, 3)
    assert k.outputs.shape == k.targets.shape == k.residual.shape == (5, 3)
    reduced = candidate_ntk(
        model, batch, x2, readout="label_logits", label_tokens=[1, 4, 9], output_reduction="sum"
    )
    assert_close(reduced.theta, np.einsum("ijaa->ij", k.theta))


def jacobian_of_target_logits(case):
    """(n, t, v, p), targets first and zeros after them, by dense automatic differentiation."""

    def of_all_logits(params, x):
        ids, mask, labels = x["input_ids"], x["attention_mask"], x["labels"]
        logits = cases.transformer_module().apply(params, ids, mask)[:, :-1]
        return jnp.where(labels[:, 1:, None] != -100, logits, 0).reshape(len(ids), -1)

    full = oracles.dense_jacobian(of_all_logits, case.params, case.x)
    by_position = full.reshape(len(full), cases.LENGTH - 1, cases.VOCABULARY, -1)
    order = np.argsort(case.x["labels"][:, 1:] == -100, axis=1, kind="stable")
    return np.take_along_axis(by_position, order[:, :, None, None], axis=1)


def test_projected_kernel_is_that_of_the_projected_logits(x64):
    case = cases.make("tied transformer")
    projection = readout.Projection(3, seed=7)
    k = candidate_ntk(
        TinyModel(case.params), case.x, readout="projected_logits", projection=projection
    )
    r = projection.directions(cases.LENGTH - 1, cases.VOCABULARY, np.float64)
    projected = np.einsum("tkv,ntvp->nkp", r, jacobian_of_target_logits(case))
    assert_close(k.theta, np.einsum("iap,jbp->ijab", projected, projected))
    assert (k.outputs.shape, k.targets.shape) == ((5, 3), (5, 3))
    assert k.projection == projection
    # y is the projection of one-hot codes of the targets, in their order
    targets = [labels[1:][labels[1:] != -100] for labels in case.x["labels"]]
    by_hand = [sum(r[i, :, token] for i, token in enumerate(tokens)) for tokens in targets]
    assert_close(k.targets, by_hand)


def test_what_is_ignored_changes_nothing(model_and_batch):
    model, batch = model_and_batch
    before = candidate_ntk(model, batch)
    # other tokens under the padding, which no label and no attention sees
    changed = np.where(batch["attention_mask"] == 1, batch["input_ids"], 5)
    after = candidate_ntk(model, {**batch, "input_ids": changed})
    assert_close(after.theta, before.theta)
    visible = {**batch, "input_ids": np.where(changed == changed[0, 0], 7, changed)}
    assert np.max(np.abs(candidate_ntk(model, visible).theta - before.theta)) > 1e-3


def test_encoder_decoders_are_not_shifted(x64):
    case = cases.make("tied transformer")
    batch = {**case.x, "decoder_input_ids": case.x["input_ids"]}
    seq2seq = candidate_ntk(TinyModel(case.params, is_encoder_decoder=True), batch)
    moved = np.full_like(batch["labels"], -100)
    moved[:, :-1] = batch["labels"][:, 1:]
    # the causal model's targets, moved one to the left, are an unshifted model's targets
    aligned = candidate_ntk(
        TinyModel(case.params, is_encoder_decoder=True), {**batch, "labels": moved}
    )
    causal = candidate_ntk(TinyModel(case.params), case.x)
    assert_close(aligned.theta, causal.theta)
    assert np.max(np.abs(seq2seq.theta - causal.theta)) > 1e-3


@pytest.mark.parametrize(("logits_bytes", "lengths"), [(1e9, [5]), (1, [1] * 5)])
def test_outputs_are_read_in_blocks_of_few_logits(
    model_and_batch, monkeypatch, logits_bytes, lengths
):
    read, seen = candidate._jitted, []

    def counted(f, params, batch):
        seen.append(len(batch["labels"]))
        return read(f, params, batch)

    model, batch = model_and_batch
    expected = candidate_ntk(model, batch).outputs
    monkeypatch.setattr(candidate, "_jitted", counted)
    monkeypatch.setattr(candidate, "LOGITS_BYTES", logits_bytes)
    assert_close(candidate_ntk(model, batch).outputs, expected, rel=1e-6)  # float32
    assert seen == lengths


def test_another_state_of_the_model_has_another_kernel(model_and_batch):
    model, batch = model_and_batch
    moved = jax.tree.map(lambda w: w + 0.1, model.params)
    a = candidate_ntk(model, batch, params=moved)
    b = candidate_ntk(TinyModel(moved), batch)
    assert_close(a.theta, b.theta)


def test_bad_batches_are_refused_with_the_remedy(model_and_batch):
    model, batch = model_and_batch
    labels = batch["labels"]
    without = labels.copy()
    without[3] = -100
    for message, changed, settings in (
        ("none named labels", {k: v for k, v in batch.items() if k != "labels"}, {}),
        ("must be tokens below 13", {**batch, "labels": np.where(labels > 0, 13, labels)}, {}),
        ("must be tokens below 13", {**batch, "labels": np.where(labels > 0, -1, labels)}, {}),
        ("got none in example 3", {**batch, "labels": without}, {}),
        ("must have shape", {**batch, "labels": labels[:, :-1]}, {}),
        ("must be integers", {**batch, "input_ids": batch["input_ids"] * 1.0}, {}),
        ("`readout` must be one of", batch, {"readout": "logits"}),
        ("`label_tokens` must name", batch, {"readout": "label_logits"}),
        ("`label_tokens` must name", batch, {"label_tokens": [3]}),
        ("`projection` must stay out", batch, {"projection": readout.Projection()}),
        ("`label_tokens` must be tokens", batch, {"readout": "label_logits", "label_tokens": [99]}),
    ):
        with pytest.raises(UserError, match=message):
            candidate_ntk(model, changed, **settings)
    with pytest.raises(UserError, match="`num_projections` must be positive"):
        readout.Projection(0)
    with pytest.raises(UserError, match="`distribution` must be one of"):
        readout.Projection(distribution="uniform")
    with pytest.raises(UserError, match="`batch2` must have the keys"):
        candidate_ntk(model, batch, {"input_ids": batch["input_ids"]})
    with pytest.raises(UserError, match="decoder_input_ids"):
        candidate_ntk(TinyModel(model.params, is_encoder_decoder=True), batch)
