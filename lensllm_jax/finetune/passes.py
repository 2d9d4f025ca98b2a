r"""Passes: the parts of a batch whose gradients add up to that of a step.

A batch of b examples in m passes holds

.. math:: \sum_{i=1}^{m} \frac{b}{m} \max_{j \in \text{pass } i} s_j

positions, with :math:`s_j` the length of example j: fewest where the examples are sorted by length,
so that short ones are not padded to the longest of the batch.

Example:
    >>> mask = np.arange(6) < np.array([[6], [1], [5], [2]])
    >>> batch = {"attention_mask": mask, "labels": np.where(mask, 7, -100)}
    >>> [part["labels"].shape for part in passes_of(batch, 2, buckets=(2, 4))]
    [(2, 2), (2, 6)]
"""

from collections.abc import Iterator

import numpy as np

from lensllm_jax.data.buckets import row_lengths, smallest_bucket, truncated
from lensllm_jax.typing import Batch


def passes_of(batch: Batch, num_passes: int, *, buckets: tuple[int, ...]) -> Iterator[Batch]:
    """Equal parts of a batch, from the shortest examples to the longest.

    Args:
        batch: arrays of b examples, on the host.
        num_passes: divides b.
        buckets: ascending lengths (tokens), to the smallest of which that holds it each part is
            cut; longer ones keep all positions.
    """
    lengths = row_lengths(batch)
    order = np.argsort(lengths, kind="stable")
    for rows in np.split(order, num_passes):
        part = {name: array[rows] for name, array in batch.items()}
        yield truncated(part, smallest_bucket(lengths[rows], buckets))
