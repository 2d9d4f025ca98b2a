"""Stored tensor: shape and type of a tensor in a file, whose values are read in blocks of rows."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np

BLOCK_BYTES = 16 * 2**20  # per read: far less than a model, far more than a page of the disk


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        shape: as stored.
        dtype: name of its type, NumPy's of those in ``formats.FLOATS``, the file's of others.
        itemsize: bytes per value.
        rows: from start and stop of the first axis to values; a scalar has one row.
    """

    shape: tuple[int, ...]
    dtype: str
    itemsize: int
    rows: Callable[[int, int], np.ndarray]

    def blocks(self) -> Iterator[tuple[int, np.ndarray]]:
        """First row and values of blocks of about ``BLOCK_BYTES`` along the first axis."""
        num_rows = self.shape[0] if self.shape else 1
        row_bytes = max(1, math.prod(self.shape[1:]) * self.itemsize)
        step = max(1, BLOCK_BYTES // row_bytes)
        for start in range(0, num_rows, step):
            yield start, self.rows(start, min(start + step, num_rows))

    def whole(self) -> np.ndarray:
        """All values."""
        return self.rows(0, self.shape[0] if self.shape else 1)


Tensors = Mapping[str, StoredTensor]
