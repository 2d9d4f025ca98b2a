"""Logits are computed where there is a target; how many is known before a batch is seen."""

import jax
import numpy as np
import pytest

from lensllm_jax.data.buckets import bucket_of, row_lengths
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.num_logits import num_logits_by_shape, target_counts
from lensllm_jax.finetune.objective import batch_nats_and_count, batch_record_nats
from lensllm_jax.typing import IGNORE
from tests.finetune import tiny
from tests.goldens.generate import ALL_VARIANTS, golden_batch
from tests.models.tiny import tiny_candidate
from tests.tolerances import assert_close, relative_difference


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_logits_to_keep_are_those_of_these_positions(variant):
    candidate, data = tiny_candidate(ALL_VARIANTS[variant]), golden_batch(variant)
    whole = np.asarray(jax.jit(candidate.apply_fn)(candidate.params, data))
    positions = np.array([5, 0, 3, 3])
    kept = jax.jit(candidate.apply_fn)(candidate.params, {**data, "logits_to_keep": positions})
    assert_close(np.asarray(kept), whole.reshape(-1, whole.shape[-1])[positions])


def some_logits(num_logits, *, shift=True):
    """Loss, its gradient and the losses of records, from so many logits."""
    data, weights = tiny.examples(9), tiny.params()
    if not shift:  # labels at their own position, one of which has no row behind it
        data = {**data, "labels": np.where(data["attention_mask"], data["input_ids"], IGNORE)}

    def loss(params):
        found = batch_nats_and_count(
            tiny.apply_fn, params, data, shift=shift, num_logits=num_logits
        )
        return found.nats / found.num_targets

    records = batch_record_nats(tiny.apply_fn, weights, data, shift=shift, num_logits=num_logits)
    return *jax.value_and_grad(loss)(weights), records


@pytest.mark.parametrize("shift", [True, False])
def test_losses_and_gradients_are_those_of_all_logits(shift):
    data = tiny.examples(9)
    labels = data["labels"] if shift else np.where(data["attention_mask"], 1, IGNORE)
    most = int(target_counts(labels, shift=shift).sum())
    every = some_logits(None, shift=shift)
    for number in (most, most + 20):
        for got, wanted in zip(
            jax.tree.leaves(some_logits(number, shift=shift)), jax.tree.leaves(every), strict=True
        ):
            assert_close(np.asarray(got), np.asarray(wanted))
    too_few = some_logits(most - 3, shift=shift)  # the control
    assert relative_difference(np.asarray(too_few[2].text), np.asarray(every[2].text)) > 1e-2


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_loop_that_computes_some_logits_takes_the_same_steps(micro_batches):
    data = tiny.examples(32)
    batches = {name: array.reshape(4, 8, *array.shape[1:]) for name, array in data.items()}
    whole = Loop(tiny.apply_fn, OptimizerConfig(1e-2), shift=True, micro_batches=micro_batches)
    rows = 8 // micro_batches
    some = whole.computing(num_logits_by_shape(data, rows=rows, shift=True))
    few = whole.computing({(rows, 16): 8})  # fewer than the targets: more are computed
    part = {name: array[:, :rows] for name, array in batches.items()}
    assert some.num_logits_of(part) < rows * 16
    most = target_counts(part["labels"], shift=True).sum(-1).max()
    assert 8 < most <= few.num_logits_of(part) < 1.25 * most + 8
    crowded = {"labels": np.ones((rows, 16), int)}  # a quarter more would be all
    assert whole.computing({(rows, 16): 15 * rows - 1}).num_logits_of(crowded) is None
    (_, expected), *others = (
        loop.train(loop.start(tiny.params()), batches) for loop in (whole, some, few)
    )
    for _, losses in others:
        assert_close(losses, expected, "float32")


def test_an_evaluation_of_some_logits_is_the_whole_one():
    data = tiny.examples(70)
    whole = Loop(tiny.apply_fn, OptimizerConfig(1e-2), shift=True)
    numbers = num_logits_by_shape(data, rows=16, shift=True, buckets=(6, 10))
    assert set(numbers) == {(16, 6), (16, 10), (16, 16)}
    records = EvaluationBatches.of(data, buckets=(6, 10))
    got, expected = (
        loop.evaluate(tiny.params(), records) for loop in (whole.computing(numbers), whole)
    )
    assert_close(got.nats, expected.nats, "float32")
    assert_close(got.end_nats, expected.end_nats, "float32")


def test_batches_of_a_bucket_have_no_more_targets_but_for_one_in_thousands():
    data, others = tiny.examples(300), tiny.examples(20_000, seed=1)
    buckets, rows = (6, 10), 16
    numbers = num_logits_by_shape(data, rows=rows, shift=True, buckets=buckets)
    counts = target_counts(others["labels"], shift=True)
    bucket = bucket_of(row_lengths(others), buckets)
    for index, width in enumerate((*buckets, 16)):
        inside = counts[bucket == index]
        sums = inside[: len(inside) // rows * rows].reshape(-1, rows).sum(1)
        assert (sums > numbers[rows, width]).mean() < 0.005
        assert numbers[rows, width] < rows * width
        assert numbers[rows, width] < 1.5 * sums.mean() + 8  # and no more than that


def test_a_bucket_without_records_holds_batches_of_all():
    data = tiny.examples(300)
    short = {name: array[row_lengths(data) <= 6] for name, array in data.items()}
    of_all = num_logits_by_shape(short, rows=16, shift=True)[16, 16]
    numbers = num_logits_by_shape(short, rows=16, shift=True, buckets=(6, 10))
    assert numbers == {(16, 6): of_all, (16, 10): of_all, (16, 16): of_all}


def test_devices_compute_all():
    loop = Loop(tiny.apply_fn, OptimizerConfig(1e-2), shift=True)
    loop.shards = object()
    assert loop.computing({(8, 16): 8}).num_logits == {}
