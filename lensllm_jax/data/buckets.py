"""Bucket: one of the few lengths to which batches are truncated, so that few shapes are compiled.

Every example is padded to one length; most are shorter.  A batch whose examples all fit into a
bucket drops the padding behind it, which changes no loss.

Example:
    >>> batch = {"input_ids": np.ones((2, 6), int), "attention_mask": np.array([[1, 1, 1, 0, 0, 0]]
    ...          * 2), "labels": np.array([[-100, 5, 1, -100, -100, -100]] * 2)}
    >>> bucket_of(row_lengths(batch), check_buckets((2, 4, 8)))
    array([1, 1])
"""

import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.typing import IGNORE, Batch

_HELD = (0.5, 0.9, 1.0)  # shares of the examples
_GROWTH = 1.25  # of the lengths behind them


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """``buckets`` (tokens), if they are positive and ascend, else ``UserError``."""
    for before, length in zip((0, *buckets), buckets, strict=False):
        if checks.positive("buckets", length) <= before:
            raise checks.UserError(f"`buckets` must ascend, got {tuple(buckets)}")
    return tuple(buckets)


def row_lengths(batch: Batch) -> Int[np.ndarray, " n"]:
    """Positions (tokens) up to the last token or target of each example, on its longer side."""
    marks = (np.asarray(batch["attention_mask"]) != 0, np.asarray(batch["labels"]) != IGNORE)
    # positions up to the last True: the width less the distance of the first True from the end
    return np.max([np.where(m.any(1), m.shape[1] - m[:, ::-1].argmax(1), 0) for m in marks], axis=0)


def bucket_of(lengths: Int[np.ndarray, " n"], buckets: tuple[int, ...]) -> Int[np.ndarray, " n"]:
    """Index of the smallest bucket that holds each length; ``len(buckets)`` where none does."""
    return np.searchsorted(np.asarray(buckets, int), lengths)


def smallest_bucket(lengths: Int[np.ndarray, "..."], buckets: tuple[int, ...]) -> int | None:
    """The smallest bucket that holds all the lengths; None where none does."""
    return next((bucket for bucket in buckets if bucket >= lengths.max()), None)


def few_lengths(data: Batch) -> tuple[int, ...]:
    """Lengths (tokens) that hold half, nine tenths and all of the examples, in multiples of 8.

    Behind them each is a quarter longer than the one before, up to the positions of the arrays: a
    record that is longer than all of these examples needs not as many as the longest of the task.
    """
    lengths = {_multiple(quantile) for quantile in np.quantile(row_lengths(data), _HELD)}
    width = max(np.shape(data[name])[-1] for name in ("attention_mask", "labels"))
    while (longer := _multiple(_GROWTH * max(lengths))) < width:
        lengths.add(longer)
    return tuple(sorted(lengths))


def without_padding(batch: Batch) -> Batch:
    """The batch without the positions that none of its examples needs, to a multiple of 8."""
    return truncated(batch, _multiple(float(row_lengths(batch).max())))


def _multiple(length: float) -> int:
    return 8 * max(1, math.ceil(length / 8))


def truncated(batch: Batch, length: int | None) -> Batch:
    """The batch without the positions (last axis) from ``length`` on; None keeps all.

    Arrays with one number per example stay as they are.
    """
    per_example = np.ndim(batch["labels"]) - 1
    return {
        name: array if np.ndim(array) == per_example else array[..., :length]
        for name, array in batch.items()
    }
