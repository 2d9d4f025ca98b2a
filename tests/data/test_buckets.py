"""Buckets: the positions that matter, and the lengths that hold them."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.data.buckets import (
    bucket_of,
    check_buckets,
    few_lengths,
    row_lengths,
    truncated,
    without_padding,
)


def test_each_length_has_the_smallest_bucket_that_holds_it():
    lengths = np.array([0, 4, 5, 8, 9])
    assert bucket_of(lengths, (4, 8)).tolist() == [0, 0, 1, 1, 2]
    assert bucket_of(lengths, ()).tolist() == [0] * 5


def test_truncated_batches_lose_what_is_behind_their_length():
    batch = {"input_ids": np.arange(12).reshape(2, 6), "labels": np.arange(6).reshape(2, 3)}
    shorter = truncated(batch, 4)
    assert shorter["input_ids"].tolist() == [[0, 1, 2, 3], [6, 7, 8, 9]]
    assert shorter["labels"].shape == (2, 3)
    assert truncated(batch, None)["input_ids"].shape == (2, 6)


def test_numbers_of_an_example_have_no_position_to_lose():
    batch = {"labels": np.arange(6).reshape(2, 3), "num_target_bytes": np.arange(2)}
    assert truncated(batch, 1)["num_target_bytes"].tolist() == [0, 1]
    steps = {"labels": np.zeros((4, 2, 3)), "num_target_bytes": np.zeros((4, 2))}
    shapes = {name: array.shape for name, array in truncated(steps, 1).items()}
    assert shapes == {"labels": (4, 2, 1), "num_target_bytes": (4, 2)}


def test_lengths_count_the_targets_of_an_encoder_decoder():
    batch = {"attention_mask": np.array([[1, 1, 0], [1, 0, 0], [0, 0, 0]]),
             "labels": np.array([[5, -100], [5, 6], [-100, -100]])}  # fmt: skip
    assert row_lengths(batch).tolist() == [2, 2, 0]


def test_few_lengths_hold_half_nine_tenths_and_all_of_the_examples():
    mask = np.arange(100) < np.arange(1, 61)[:, None]  # examples of 1 to 60 tokens
    batch = {"attention_mask": mask, "labels": np.where(mask, 5, -100)}
    assert few_lengths(truncated(batch, 64)) == (32, 56, 64)
    assert few_lengths({name: array[:40, :48] for name, array in batch.items()}) == (24, 40)
    assert few_lengths({name: array[:5, :16] for name, array in batch.items()}) == (8,)


def test_few_lengths_behind_all_of_the_examples_grow_by_a_quarter():
    mask = np.arange(136) < np.array([[31], [48]])
    batch = {"attention_mask": mask, "labels": np.where(mask, 5, -100)}
    lengths = few_lengths(batch)
    assert lengths == (40, 48, 64, 80, 104)  # 136 are all positions
    assert lengths[bucket_of(np.array([56]), lengths)[0]] == 64  # of a longer training example
    # the longer side of an encoder-decoder has the positions
    assert few_lengths({**batch, "labels": batch["labels"][:, :8]}) == lengths
    empty = {"attention_mask": 0 * mask, "labels": np.full(mask.shape, -100)}
    assert few_lengths(empty)[:3] == (8, 16, 24)


def test_without_padding_keeps_every_token_and_a_multiple_of_8():
    mask = np.arange(60) < np.array([[3], [21]])
    batch = {"attention_mask": mask, "labels": np.where(mask, 5, -100)}
    shorter = without_padding(batch)
    assert shorter["labels"].shape == (2, 24)
    assert (shorter["labels"] != -100).sum() == 24  # 3 and 21 tokens
    assert without_padding(truncated(batch, 21))["labels"].shape == (2, 21)


@pytest.mark.parametrize("buckets", [(0, 4), (4, 4), (8, 4)])
def test_buckets_that_do_not_ascend_are_refused(buckets):
    with pytest.raises(checks.UserError, match="buckets"):
        check_buckets(buckets)
