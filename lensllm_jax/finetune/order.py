"""Order: which examples each call trains on, fixed by the seed alone.

Every pass visits all examples in an order of its own, and batches run across the seam between
two passes.  With buckets a call holds examples of one bucket: the pass is dealt out to the
buckets, and a call is made as soon as one is full.  What is left at the end of a pass moves up to
the next larger bucket, which holds it too, and from the largest into the next pass: each
example is still seen once a pass.

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

from lensllm_jax.data.buckets import bucket_of
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
        batch_size: examples a step.
        seed: of the order within passes.

    Yields:
        One call after the other.
    """
    bucket = bucket_of(lengths, buckets)
    kept = (*buckets, None)
    waiting: list[list[int]] = [[] for _ in kept]
    wanted = steps * batch_size
    epoch = 0

    def take(index: int) -> Iterator[Call]:
        while len(waiting[index]) >= wanted:
            rows = np.array(waiting[index][:wanted]).reshape(steps, batch_size)
            del waiting[index][:wanted]
            yield Call(rows, kept[index])

    while True:
        for row in subset_order(len(lengths), seed=(seed, epoch)):
            waiting[bucket[row]].append(int(row))
            yield from take(int(bucket[row]))
        for index in range(len(buckets)):
            waiting[index + 1] += waiting[index]
            waiting[index] = []
            yield from take(index + 1)
        epoch += 1


def order_digest(train: Batch, calls: Iterable[Call]) -> str:
    """SHA-256 of the examples in the order in which the optimiser saw them.

    It is of their arrays, tokens and labels, not of their numbers: equal digests mean that the
    same examples came in the same order.

    Args:
        train: the subset, arrays (n, s).
        calls: those that were made.

    Returns:
        Hexadecimal digits.

    Example:
        >>> train = {"input_ids": np.arange(8).reshape(4, 2)}
        >>> orders = [[Call(np.array([rows]), None)] for rows in ([0, 1], [1, 0], [0, 1])]
        >>> a, b, c = (order_digest(train, calls) for calls in orders)
        >>> a == b, a == c
        (False, True)
    """
    arrays = [np.ascontiguousarray(train[name]) for name in sorted(train)]
    each = [
        hashlib.sha256(b"".join(array[row].tobytes() for array in arrays)).digest()
        for row in range(len(arrays[0]))
    ]
    hashed = hashlib.sha256()
    for call in calls:
        for row in call.rows.ravel():
            hashed.update(each[row])
    return hashed.hexdigest()
