"""Losses per byte of target text, their errors, and the end token's nats apart from them."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.finetune.evaluation import (
    Evaluation,
    EvaluationBatches,
    check_text,
    completed,
    concatenated,
    is_far_behind,
    loss_covariance,
)
from lensllm_jax.finetune.fine_tune import evaluated
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from tests.finetune import tiny
from tests.oracles import summed_cross_entropy
from tests.tolerances import assert_close


@pytest.fixture(scope="module")
def loop():
    return Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)


def by_record(data):
    """Nats of the text and of the end token of each record, densely."""
    logits = np.asarray(tiny.apply_fn(tiny.params(), data))
    found = []
    for z, labels, is_end in zip(logits, data["labels"], data["is_end"], strict=True):
        sides = (np.where(is_end, -100, labels), np.where(is_end, labels, -100))
        found.append([summed_cross_entropy(z, side, shift=True)[0] for side in sides])
    return np.array(found).T


def test_the_loss_is_the_texts_nats_over_its_bytes(loop):
    data = tiny.examples(70)
    test = loop.evaluate(tiny.params(), EvaluationBatches.of(data))
    nats, end_nats = by_record(data)
    assert_close(test.nats, nats, "float32")
    assert_close(test.end_nats, end_nats, "float32")
    assert test.loss == pytest.approx(nats.sum() / data["num_target_bytes"].sum(), rel=1e-6)
    assert test.end_loss == pytest.approx(end_nats.mean(), rel=1e-6)
    with_end = (nats + end_nats).sum() / data["num_target_bytes"].sum()
    assert with_end > 1.05 * test.loss  # control: the end token would count


def test_an_end_token_that_was_cut_off_is_no_record_of_the_mean(loop):
    data = tiny.examples(10)
    cut = {**data, "is_end": data["is_end"] & (np.arange(10) < 4)[:, None]}
    test = loop.evaluate(tiny.params(), EvaluationBatches.of(cut))
    assert test.num_ends == 4
    assert test.end_loss == pytest.approx(by_record(data)[1][:4].mean(), rel=1e-6)
    none = Evaluation(np.ones(2), np.zeros(2), np.ones(2, int), 0)
    assert np.isnan(none.end_loss)


def test_no_order_of_batches_and_no_filling_moves_a_record(loop):
    data = tiny.examples(70)
    whole = loop.evaluate(tiny.params(), EvaluationBatches.of(data))
    few = loop.evaluate(
        tiny.params(), EvaluationBatches.of({k: v[:5] for k, v in data.items()}, buckets=(6, 10))
    )
    assert_close(few.nats, whole.nats[:5], "float32")
    assert_close(few.end_nats, whole.end_nats[:5], "float32")


def test_splitting_tokens_changes_the_loss_per_token_alone():
    """A tokenizer of half as many tokens with twice their nats is as good a model."""
    nats, num_bytes = np.array([6.0, 2.0]), np.array([8, 4])
    few, many = np.array([2, 1]), np.array([4, 2])
    assert Evaluation(nats, nats, num_bytes, 2).loss == 8 / 12
    assert nats.sum() / few.sum() != nats.sum() / many.sum()


def test_standard_errors_are_those_of_resampled_records():
    """Independent oracle: the bootstrap over records, also of a difference on the same records."""
    rng = np.random.default_rng(0)
    num_bytes = rng.integers(20, 200, 400)
    hard = rng.normal(1.0, 0.2, 400)  # what makes a record hard for every candidate
    nats = num_bytes * (hard + rng.normal(0.0, 0.05, (2, 400)) + np.array([[0.0], [0.1]]))
    covariance = loss_covariance(nats, np.stack([num_bytes] * 2))
    rows = rng.integers(0, 400, (4000, 400))
    drawn = nats[:, rows].sum(2) / num_bytes[rows].sum(1)
    # 4,000 draws give a standard deviation to 1 / sqrt(8,000) = 1 %
    assert np.sqrt(np.diag(covariance)) == pytest.approx(drawn.std(1), rel=0.06)
    paired = np.sqrt(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    assert paired == pytest.approx((drawn[1] - drawn[0]).std(), rel=0.06)
    assert paired < 0.5 * np.sqrt(np.trace(covariance))  # control: unpaired would be far wider
    assert Evaluation(nats[0], nats[0], num_bytes, 400).loss_se == np.sqrt(covariance[0, 0])
    assert np.isnan(loss_covariance(nats[:1, :1], num_bytes[None, :1])).all()


def _records(rng, n, *, behind):
    """Nats of a rival and of a candidate behind it on n records, and their bytes."""
    num_bytes = rng.integers(20, 200, n)
    hard = rng.normal(1.0, 0.2, n)
    rival = num_bytes * (hard + rng.normal(0.0, 0.05, n))
    return rival, num_bytes * (hard + behind + rng.normal(0.0, 0.1, n)), num_bytes


def test_pseudo_values_give_the_paired_estimate_and_its_error():
    """Independent oracle: the same estimate from 600 sets of records."""
    rng, k, estimates, errors, naive = np.random.default_rng(0), 100, [], [], []
    for _ in range(600):
        rival, nats, num_bytes = _records(rng, 400, behind=0.3)
        first = Evaluation(nats[:k], np.ones(k), num_bytes[:k], k)
        whole = completed(first, np.stack([rival, num_bytes]))
        difference = first.loss - rival[:k].sum() / num_bytes[:k].sum()
        rival_loss = rival.sum() / num_bytes.sum()
        assert whole.loss == pytest.approx(rival_loss + difference, rel=1e-12)
        covariance = loss_covariance(np.stack([rival, whole.nats]), np.stack([num_bytes] * 2))
        estimates.append([whole.loss, whole.loss - rival_loss])
        errors.append([whole.loss_se, np.sqrt([1, -2, 1] @ covariance[[0, 0, 1], [0, 1, 1]])])
        naive.append(first.loss_se)
    assert (whole.num_evaluated, len(whole.nats), whole.end_loss) == (k, 400, 1.0)
    # 600 draws give a standard deviation to 1 / sqrt(1,200) = 3 %
    assert np.mean(errors, axis=0) == pytest.approx(np.std(estimates, axis=0), rel=0.1)
    assert np.mean(naive) > 1.5 * np.mean(errors, axis=0)[0]  # control: of k records alone


def test_far_behind_is_ten_standard_errors_and_never_ahead():
    rng = np.random.default_rng(1)
    for behind, far in [(0.3, True), (0.03, False), (0.0, False), (-0.3, False)]:
        rival, nats, num_bytes = _records(rng, 400, behind=behind)
        first = Evaluation(nats[:128], np.ones(128), num_bytes[:128], 128)
        assert is_far_behind(first, np.stack([rival, num_bytes])) == far


def test_a_candidate_far_behind_is_evaluated_on_few_records(loop):
    data = tiny.examples(300)
    every = evaluated(loop, tiny.params(), data)
    assert every.num_evaluated is None
    better = np.stack([0.5 * every.nats, every.num_bytes])
    few = evaluated(loop, tiny.params(), data, rival=better)
    assert few.num_evaluated == 128
    assert few.loss == pytest.approx(every.loss, abs=0.05 * every.loss)
    near = every.nats * np.random.default_rng(0).normal(1.0, 0.05, 300)
    equal = evaluated(loop, tiny.params(), data, rival=np.stack([near, every.num_bytes]))
    assert equal.num_evaluated is None  # control: as good as the rival
    assert_close(equal.nats, every.nats, "float32")
    halves = [Evaluation(np.ones(2), np.ones(2), np.full(2, 4), 2)] * 2
    assert concatenated(halves).nats.tolist() == [1.0] * 4


def test_data_without_text_is_refused():
    data = tiny.examples(3)
    with pytest.raises(checks.UserError, match="`test` must hold a byte of target text"):
        check_text("test", {**data, "num_target_bytes": np.zeros(3, int)})
    with pytest.raises(checks.UserError, match="`test` must hold is_end, got input_ids"):
        check_text("test", {k: v for k, v in data.items() if k != "is_end"})
