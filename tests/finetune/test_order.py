"""Buckets: every example once a pass, no shape but the buckets', the same losses."""

import itertools

import jax
import numpy as np
import pytest

from lensllm_jax.data.buckets import row_lengths, truncated
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.order import calls_of
from tests.finetune import tiny
from tests.tolerances import assert_close

SHAPE = {"steps": 2, "batch_size": 3}


def first_calls(lengths, buckets, count, *, seed=0):
    return list(itertools.islice(calls_of(lengths, buckets, **SHAPE, seed=seed), count))


def test_without_buckets_passes_follow_each_other_without_a_seam():
    rows = [call.rows.ravel() for call in first_calls(np.full(8, 5), (), 4)]
    passes = [subset_order(8, seed=(0, epoch)) for epoch in range(3)]
    assert np.concatenate(rows).tolist() == np.concatenate(passes).tolist()


def test_every_example_is_seen_once_a_pass_and_fits_its_bucket():
    lengths = row_lengths(tiny.examples(60))
    calls = first_calls(lengths, (6, 10), 10)
    assert np.array_equal(np.sort(np.concatenate([c.rows.ravel() for c in calls])), np.arange(60))
    for call in calls:
        assert call.length is None or lengths[call.rows].max() <= call.length
    assert {call.length for call in calls} == {6, 10, None}
    again = first_calls(lengths, (6, 10), 10)
    other = first_calls(lengths, (6, 10), 10, seed=1)
    assert all(np.array_equal(a.rows, b.rows) for a, b in zip(calls, again, strict=True))
    assert not all(np.array_equal(a.rows, b.rows) for a, b in zip(calls, other, strict=True))


def test_what_fills_no_bucket_moves_up():
    lengths = np.array([3] * 4 + [9] * 4)  # 6 make a call: neither bucket fills
    calls = first_calls(lengths, (4,), 4)
    assert [call.length for call in calls] == [None] * 4
    assert np.bincount(np.concatenate([c.rows.ravel() for c in calls])).tolist() == [3] * 8


def test_calls_that_moved_up_keep_what_their_own_examples_need():
    lengths = np.array([3] * 4 + [9] * 4)
    mixed = first_calls(lengths, (4, 10, 12), 4)
    assert [call.length for call in mixed] == [
        10 if 9 in lengths[call.rows] else 4 for call in mixed
    ]
    assert mixed[0].length == 10
    assert [call.length for call in first_calls(lengths[:4], (4, 10, 12), 4)] == [4] * 4


def test_a_cut_batch_has_the_same_loss():
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    data = tiny.examples(20)
    length = int(row_lengths(data).max())
    shorter = {name: array[row_lengths(data) <= 6] for name, array in data.items()}
    assert_close(
        loop.objective(tiny.params(), [truncated(shorter, 6)]),
        loop.objective(tiny.params(), [shorter]),
        "float32",
    )  # fmt: skip
    lost = loop.objective(tiny.params(), [truncated(data, length - 4)])  # control: targets cut off
    assert abs(lost - loop.objective(tiny.params(), [data])) > 1e-3
    sorted_by_length = loop.evaluate(tiny.params(), EvaluationBatches.of(data, buckets=(6, 10)))
    plain = loop.evaluate(tiny.params(), EvaluationBatches.of(data))
    assert_close(sorted_by_length.nats, plain.nats, "float32")  # in the order of the records
    assert_close(sorted_by_length.end_nats, plain.end_nats, "float32")


def test_nothing_is_compiled_after_one_size_was_run():
    """Compilations are counted by JAX itself, over everything that a fine-tune does."""
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    config = FineTuneConfig(batch_size=4, max_epochs=2, steps_per_call=2, buckets=(6, 10))
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    def run(size):
        data, validation = (tiny.examples(n, seed=size) for n in (size, size // 4))
        fine_tune(loop, tiny.params(), Splits(data, validation, tiny.examples(200)), config=config)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        run(100)
        assert compiled  # else the count would prove nothing
        compiled.clear()
        for size in (24, 51, 160):
            run(size)
        assert compiled == []
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_buckets_train_as_well_and_read_fewer_positions():
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-2), shift=True)
    data = tiny.examples(200)
    results = [
        fine_tune(
            loop, tiny.params(), Splits(data, data, data),
            config=FineTuneConfig(batch_size=4, max_epochs=4, steps_per_call=2, buckets=buckets),
        ).result
        for buckets in ((), (6, 10))
    ]  # fmt: skip
    assert results[0].num_tokens == results[1].num_tokens  # of whole passes
    start = loop.evaluate(tiny.params(), EvaluationBatches.of(data)).loss
    gains = [start - result.test_loss for result in results]
    assert gains[1] == pytest.approx(gains[0], rel=0.2)  # another order of examples
    assert gains[0] > 0.25


def test_the_digest_is_of_what_was_trained_on_and_in_which_order():
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-2), shift=True)

    def digest(data, **settings):
        defaults = {"batch_size": 4, "steps_per_call": 2, "max_epochs": 2}
        config = FineTuneConfig(**{**defaults, **settings})
        result = fine_tune(loop, tiny.params(), Splits(data, data, data), config=config).result
        return result.data_order_sha256

    data = tiny.examples(16)
    other = {**data, "labels": np.where(data["labels"] == 5, 6, data["labels"])}
    digests = [digest(data), digest(data, seed=1), digest(data, max_epochs=1), digest(other)]
    assert len(set(digests)) == 4
    assert digest(data) == digests[0]
    assert digest(data, batch_size=8) == digests[0]  # the same examples, in larger steps
