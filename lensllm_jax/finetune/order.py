"""Order: which examples each call trains on, fixed by the seed alone.

Every pass visits all examples in its own order, and batches run across the boundary of two
passes.  With buckets a call holds examples of one bucket, and is made as soon as its bucket is
full.  What is left at the end of a pass moves up to the next larger bucket, which holds it too,
and from the largest into the next pass: each example is still seen once per pass.  A call
keeps as many positions as its own longest example needs.

Example:
    >>> import itertools, numpy as np
    >>> calls = calls_of(np.array([3, 9, 3, 3]), (4,), steps=1, batch_size=2, seed=0)
    >>> [(call.length, call.rows.shape) for call in itertools.islice(calls, 2)]
    [(4, (1, 2)), (None, (1, 2))]
"""

import hashlib
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lensllm_jax.data.buckets import bucket_of, smallest_bucket
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.typing import Batch


class Call(NamedTuple):
    """The examples of several steps."""

    rows: Int[np.ndarray, "t b"]  # examples of each step
    length: int | None  # positions that hold them all (tokens); None for all positions


def calls_of(
    lengths: Int[np.ndarray, " n"], buckets: tuple[int, ...],
    *, steps: int, batch_size: int, seed: int,
) -> Iterator[Call]:  # fmt: skip
    """Calls without end.

    Args:
        lengths: of the examples (tokens).
        buckets: ascending lengths (tokens); without any, all calls keep all positions.
        steps: of a call.
        batch_size: examples per step.
        seed: of the order within passes.
    """
    bucket = bucket_of(lengths, buckets)
    waiting: list[list[int]] = [[] for _ in range(len(buckets) + 1)]
    num_rows = steps * batch_size
    epoch = 0

    def full_calls(index: int) -> Iterator[Call]:
        while len(waiting[index]) >= num_rows:
            rows = np.array(waiting[index][:num_rows]).reshape(steps, batch_size)
            del waiting[index][:num_rows]
            yield Call(rows, smallest_bucket(lengths[rows], buckets))

    while True:
        for row in subset_order(len(lengths), seed=(seed, epoch)):
            waiting[bucket[row]].append(int(row))
            yield from full_calls(int(bucket[row]))
        for index in range(len(buckets)):
            waiting[index + 1] += waiting[index]
            waiting[index] = []
            yield from full_calls(index + 1)
        epoch += 1


def order_digest(train: Batch, calls: Iterable[Call]) -> str:
    """SHA-256 of the arrays of the examples, in the order in which the optimiser saw them.

    Args:
        train: the subset, arrays (n, s).
        calls: those that were made.
    """
    arrays = [np.ascontiguousarray(train[name]) for name in sorted(train)]
    digests = [
        hashlib.sha256(b"".join(array[row].tobytes() for array in arrays)).digest()
        for row in range(len(arrays[0]))
    ]
    hashed = hashlib.sha256()
    for call in calls:
        for row in call.rows.ravel():
            hashed.update(digests[row])
    return hashed.hexdigest()
