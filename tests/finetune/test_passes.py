"""Passes: sorted by length, cut to what they hold, and the same step as the whole batch."""

import itertools

import jax
import numpy as np
import pytest

from lensllm_jax.data.buckets import row_lengths
from lensllm_jax.finetune import loop as loop_module
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.passes import passes_of
from tests.finetune import tiny
from tests.tolerances import assert_close

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)
BUCKETS = (6, 10)


@pytest.mark.parametrize("num_passes", [1, 2, 3, 6])
def test_passes_hold_the_batch_from_the_shortest_example_to_the_longest(num_passes):
    batch = tiny.examples(12)
    parts = list(passes_of(batch, num_passes, buckets=BUCKETS))
    lengths = [row_lengths(part) for part in parts]
    assert [len(part["labels"]) for part in parts] == [12 // num_passes] * num_passes
    assert all(a.max() <= b.min() for a, b in itertools.pairwise(lengths))
    widths = [part["labels"].shape[1] for part in parts]
    assert widths == [min(w for w in (6, 10, 16) if w >= held.max()) for held in lengths]
    order = np.argsort(row_lengths(batch), kind="stable")
    for name in ("attention_mask", "is_end"):
        held = np.concatenate([part[name].sum(-1) for part in parts])
        assert np.array_equal(held, batch[name].sum(-1)[order])
    held = np.concatenate([part["num_target_bytes"] for part in parts])
    assert np.array_equal(held, batch["num_target_bytes"][order])
    firsts = np.concatenate([part["input_ids"][:, 0] for part in parts])
    assert np.array_equal(firsts, batch["input_ids"][order, 0])


def test_without_buckets_nothing_is_cut():
    parts = passes_of(tiny.examples(12), 3, buckets=())
    assert {part["labels"].shape for part in parts} == {(4, 16)}


@pytest.mark.parametrize("shift", [True, False])
def test_passes_cut_to_their_own_examples_make_the_same_steps(shift):
    batches = tiny.calls(2, 12)
    whole = Loop(tiny.apply_fn, OPTIMIZER, shift=shift)
    parts = Loop(tiny.apply_fn, OPTIMIZER, shift=shift, micro_batches=4).computing({}, BUCKETS)
    expected, got = (tiny.trained(loop, tiny.params(), batches) for loop in (whole, parts))
    assert parts._add._cache_size() == 3  # a program for each length, 6, 10 and 16
    assert parts._update._cache_size() == 1
    assert_close(got[1], expected[1], "float32")
    jax.tree.map(lambda a, b: assert_close(a, b, "float32"), got[0], expected[0])


def test_passes_cut_below_their_examples_would_make_other_steps(monkeypatch):
    """The negative control: what is cut off holds targets."""
    batches = tiny.calls(2, 12)
    whole = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    parts = Loop(tiny.apply_fn, OPTIMIZER, shift=True, micro_batches=4)
    monkeypatch.setattr(
        loop_module, "passes_of",
        lambda batch, num, buckets: ({k: v[:, :6] for k, v in part.items()}
                                     for part in passes_of(batch, num, buckets=buckets)),
    )  # fmt: skip
    _, expected = tiny.trained(whole, tiny.params(), batches)
    _, got = tiny.trained(parts, tiny.params(), batches)
    assert abs(got - expected).max() > 1e-2
