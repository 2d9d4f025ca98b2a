r"""Number of logits: how many of a batch are computed, fixed before its records are seen.

The positions with a target are few, but their number differs from batch to batch, and each number
is a program of its own.  Records of one bucket have :math:`t` targets on average, with standard
deviation :math:`\sigma`; r of them have at most

.. math:: r t + 4 \sigma \sqrt r

but for one batch in thousands, and for those that longer records of other buckets fill up: for
them a quarter more logits are computed until there are enough.

Example:
    >>> labels = np.array([[-100, 5, 6, -100], [-100, 5, -100, -100]] * 8)
    >>> data = {"labels": labels, "attention_mask": np.ones_like(labels)}
    >>> num_logits_by_shape(data, rows=16, shift=True)
    {(16, 4): 32}
"""

import math

import numpy as np
from jaxtyping import Int

from lensllm_jax.data.buckets import bucket_of, row_lengths
from lensllm_jax.typing import IGNORE, Batch

_STANDARD_DEVIATIONS = 4.0
_STEP = 8  # logits: what differs by fewer shares a program
_GROWTH = 1.25  # where a batch has more targets


def num_logits_by_shape(
    data: Batch, *, rows: int, shift: bool, buckets: tuple[int, ...] = ()
) -> dict[tuple[int, int], int]:
    """Logits of batches (rows, s) of records like those of ``data``, where they are not all.

    Args:
        data: arrays (n, s).
        rows: of a batch.
        shift: as in ``objective``.
        buckets: ascending lengths (tokens) to which batches are cut.
    """
    counts = target_counts(np.asarray(data["labels"]), shift=shift)
    bucket, width = bucket_of(row_lengths(data), buckets), data["labels"].shape[1]
    numbers: dict[tuple[int, int], int] = {}
    for index, limit in enumerate((*buckets, width)):
        shape = (rows, min(limit, width))
        # where none is as long as that, a batch holds one longer example among others
        inside = counts[bucket == index] if (bucket == index).any() else counts
        most = rows * inside.mean() + _STANDARD_DEVIATIONS * math.sqrt(rows) * inside.std()
        number = _STEP * math.ceil(min(most, rows * inside.max()) / _STEP)
        numbers[shape] = max(number, _STEP, numbers.get(shape, 0))
    return {shape: number for shape, number in numbers.items() if number < math.prod(shape)}


def enough(number: int, most: int) -> int:
    """A number of logits, a quarter more at a time until no batch has more targets.

    Example:
        >>> enough(32, 30), enough(32, 33), enough(32, 41)
        (32, 40, 56)
    """
    while number < most:
        number = _STEP * math.ceil(_GROWTH * number / _STEP)
    return number


def target_counts(labels: Int[np.ndarray, "*rows s"], *, shift: bool) -> Int[np.ndarray, "*rows"]:
    """Target tokens of each row."""
    return (labels[..., int(shift) :] != IGNORE).sum(-1)
