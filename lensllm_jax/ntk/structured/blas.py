r"""BLAS: the materialized contraction on all cores of a CPU.

The terms of a block of rows of a parameter are added and multiplied at once,

.. math:: \Theta_{ab}(x_i, x_j) \mathrel{+}= \sum_{r \in \mathrm{block}} \sum_c
          G_{ia}[r, c] \, G_{jb}[r, c] .

XLA materializes such blocks on one core of a CPU.  Here every core materializes its own rows in its
own memory and multiplies them there, with NumPy's BLAS: products of the two factors of an
example, and a symmetric rank update, which leaves out half of a symmetric Gram.  Which core has
which rows is fixed, so that the same machine gives the same bits.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.ntk.structured.gradients import Group, Outer
    >>> r, c = np.array([[[[1.0, 2.0]]]]), np.array([[[[3.0]]]])  # one example, one token
    >>> gram_materialized(Group((Outer(r, c),), 2, 1), None, trace=True)  # G = (3, 6)
    array([[45.]])
"""

import functools
import itertools
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
import threadpoolctl

from lensllm_jax.ntk.structured import gradients
from lensllm_jax.ntk.structured.gradients import Group, Lookup, Materialized, Outer, Term, sum_dtype

# adds rows start to stop of a term to a block (n, k, stop - start, C)
_Adder = Callable[[int, int, np.ndarray], None]


def gram_materialized(left: Group, right: Group | None, *, trace: bool) -> np.ndarray:
    """The Gram of gradients whose terms lie in the host's memory, (n, m, k, k) or (n, m).

    ``right=None`` stands for ``left``; ``trace`` sums over equal outputs.
    """
    left, right = jax.tree.map(np.asarray, (left, right))  # the same memory
    k = left.num_outputs
    sides = [_RowBlocks(group, k, trace=trace) for group in (left, right) if group is not None]
    spans = _row_spans(left, right)
    num_parts = min(num_workers(), len(spans))

    def part(which: int) -> np.ndarray:
        return _sum_of_products(sides, spans[which::num_parts])

    with _controller().limit(limits=1, user_api="blas"):  # the cores are assigned here
        if num_parts == 1:
            total = part(0)
        else:
            parts = _threads(os.getpid()).map(part, range(num_parts))
            total = functools.reduce(np.add, parts)
    n, m = left.num_examples, (right or left).num_examples
    return total if trace else total.reshape(n, k, m, k).transpose(0, 2, 1, 3)


def num_workers() -> int:
    """Cores that this process may use: as for XLA those of ``NPROC``, where that is set."""
    if os.environ.get("NPROC", "").isdigit():
        return max(1, int(os.environ["NPROC"]))
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _row_spans(left: Group, right: Group | None) -> list[tuple[int, int]]:
    """First and past-the-last row of each block; equally many blocks for each core."""
    workers = num_workers()
    per_core = math.ceil(left.num_rows / (workers * gradients.row_block_height(left, right)))
    count = min(left.num_rows, workers * per_core)
    edges = [i * left.num_rows // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _sum_of_products(
    sides: Sequence["_RowBlocks"], spans: Sequence[tuple[int, int]]
) -> np.ndarray:  # fmt: skip
    """What some rows add to the Gram of one side with itself, or of two."""
    first, last = sides[0], sides[-1]
    total = np.zeros((first.num_vectors, last.num_vectors), first.dtype)
    product = np.empty_like(total)
    longest = max(stop - start for start, stop in spans)
    memory = [np.empty(side.row_size * longest, side.dtype) for side in sides]
    with np.errstate(all="ignore"):  # numbers that are not finite are found in the sum
        for span in spans:
            vectors = [
                side.materialize(*span, out) for side, out in zip(sides, memory, strict=True)
            ]
            # of a matrix with its own transpose NumPy makes the symmetric update
            total += np.matmul(vectors[0], vectors[-1].T, out=product)
    return total


class _RowBlocks:
    """Gradients of one side, a few rows of the parameter at a time."""

    def __init__(self, group: Group, k: int, *, trace: bool):
        self.dtype = sum_dtype(jax.tree.leaves(group)[-1].dtype)
        self._shape = (group.num_examples, k, group.num_columns)
        self.num_vectors = group.num_vectors(trace=trace)
        self.row_size = math.prod(self._shape)  # numbers in one row of the parameter
        # dense products overwrite what memory held before: first
        order = sorted(group.terms, key=lambda term: not isinstance(term, Outer))
        self._overwrite = _outer_writer(order[0], k) if isinstance(order[0], Outer) else None
        self._adders = [_adder(term, k) for term in order[self._overwrite is not None :]]

    def materialize(self, start: int, stop: int, memory: np.ndarray) -> np.ndarray:
        """Rows ``start`` to ``stop`` of every gradient, (num_vectors, numbers), in ``memory``."""
        n, k, c = self._shape
        flat = memory[: self.row_size * (stop - start)]
        block = flat.reshape(n, k, stop - start, c)
        if self._overwrite is None:
            block.fill(0)
        else:
            self._overwrite(start, stop, block)
        for add in self._adders:
            add(start, stop, block)
        return flat.reshape(self.num_vectors, -1)


def _adder(term: Term, k: int) -> _Adder:
    if isinstance(term, Lookup):
        return _lookup_adder(term)
    if isinstance(term, Materialized):

        def add(start: int, stop: int, block: np.ndarray) -> None:
            block += term.values[:, :, start:stop]

        return add
    write = _outer_writer(term, k)

    def add_product(start: int, stop: int, block: np.ndarray) -> None:
        product = np.empty_like(block)
        write(start, stop, product)
        block += product

    return add_product


def _outer_writer(term: Outer, k: int) -> _Adder:
    rows, columns = (_with_outputs(side, k) for side in (term.rows, term.columns))

    def write(start: int, stop: int, block: np.ndarray) -> None:
        np.matmul(rows[..., start:stop].swapaxes(2, 3), columns, out=block)

    return write


def _with_outputs(side: np.ndarray, k: int) -> np.ndarray:
    """A factor (n, 1 or k, t, length) in the precision of sums, with all outputs."""
    side = side.astype(sum_dtype(side.dtype), copy=False)
    return np.broadcast_to(side, (side.shape[0], k, *side.shape[2:]))


def _lookup_adder(term: Lookup) -> _Adder:
    """Tokens of one id in one example are added first, so that no index repeats."""
    n = term.ids.shape[0]
    example, token = np.nonzero(term.ids >= 0)
    place = term.ids[example, token].astype(np.int64) * n + example
    order = np.argsort(place, kind="stable")
    place, first = np.unique(place[order], return_index=True)
    row, example_of = np.divmod(place, n)
    columns = term.columns[example[order], :, token[order]]  # (tokens, k, C)
    columns = columns.astype(sum_dtype(columns.dtype), copy=False)
    summed = np.add.reduceat(columns, first) if len(first) else columns

    def add(start: int, stop: int, block: np.ndarray) -> None:
        few = slice(*np.searchsorted(row, (start, stop)))
        block[example_of[few], :, row[few] - start] += summed[few]

    return add


@functools.cache
def _threads(pid: int) -> ThreadPoolExecutor:
    """A thread for each core, reused: starting them takes as long as a small Gram."""
    del pid  # part of the key: a process that was forked has none of its parent's threads
    return ThreadPoolExecutor(num_workers())


@functools.cache
def _controller() -> Any:
    """The BLAS of this process."""
    return threadpoolctl.ThreadpoolController()
