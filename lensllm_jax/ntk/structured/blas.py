r"""BLAS: the formed contraction on all cores of a CPU.

``contractions.gram_formed`` adds the terms of a few rows of a parameter and multiplies at once,

.. math:: \Theta_{ab}(x_i, x_j) \mathrel{+}= \sum_{r \in \mathrm{piece}} \sum_c
          G_{ia}[r, c] \, G_{jb}[r, c] .

XLA forms such pieces on one core of a CPU.  Here every core takes rows of its own, forms a piece
in memory of its own and multiplies it there, with NumPy's BLAS: products of the two factors of an
example, and a symmetric rank update, which leaves out half of a symmetric Gram.  Which core has
which rows is fixed, so that the same machine gives the same bits.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.ntk.structured.blas import gram_formed
    >>> from lensllm_jax.ntk.structured.contractions import Group, Outer
    >>> r, c = np.array([[[[1.0, 2.0]]]]), np.array([[[[3.0]]]])  # one example, one token
    >>> gram_formed(Group((Outer(r, c),), 2, 1), None, trace=True)  # G = (3, 6)
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

from lensllm_jax.ntk.structured import contractions
from lensllm_jax.ntk.structured.contractions import Formed, Group, Lookup, Outer

# Gradients from which on BLAS is faster than XLA (benchmarks/LOG.md).
LEAST_VECTORS = 32

# adds rows start to stop of a term to a piece (n, k, stop - start, C)
Adder = Callable[[int, int, np.ndarray], None]


def gram_formed(left: Group, right: Group | None, *, trace: bool) -> np.ndarray:
    """``contractions.gram_formed``, on the cores of this process.

    Args:
        left: terms of the n examples of the rows, in the host's memory.
        right: terms of the m examples of the columns; ``None`` stands for ``left``.
        trace: sum over a = b.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    left, right = jax.tree.map(np.asarray, (left, right))  # the same memory
    k = left.num_outputs
    sides = [_Pieces(group, k, trace=trace) for group in (left, right) if group is not None]
    spans = row_spans(left, right)
    num_parts = min(num_workers(), len(spans))

    def part(which: int) -> np.ndarray:
        return _sum_of_products(sides, spans[which::num_parts])

    with _controller().limit(limits=1, user_api="blas"):  # the cores are shared out here
        if num_parts == 1:
            total = part(0)
        else:
            parts = _threads(os.getpid()).map(part, range(num_parts))
            total = functools.reduce(np.add, parts)
    n, m = left.num_examples, (right or left).num_examples
    return total if trace else total.reshape(n, k, m, k).transpose(0, 2, 1, 3)


def serves(left: Group, right: Group | None, *, trace: bool) -> bool:
    """Whether gradients in the host's memory are formed and multiplied here, by their shapes.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        False where ``contractions.gram`` is faster.
    """
    many = left.num_vectors(trace=trace) >= LEAST_VECTORS
    return many and contractions.is_formed(left, right, trace=trace)


def serves_default_device(group: Group, *, trace: bool) -> bool:
    """Whether the symmetric Gram of gradients on the default device is BLAS's, by their shapes.

    Args:
        group: their terms.
        trace: sum over a = b.

    Returns:
        False on an accelerator, and where ``contractions.gram`` is faster.
    """
    return jax.default_backend() == "cpu" and serves(group, None, trace=trace)


def num_workers() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def row_spans(left: Group, right: Group | None) -> list[tuple[int, int]]:
    """The pieces: equally many rows for each core, and no more than fit a piece.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.

    Returns:
        First row of each, and the row after its last.
    """
    workers = num_workers()
    turns = math.ceil(left.num_rows / (workers * contractions.piece_height(left, right)))
    count = min(left.num_rows, workers * turns)
    edges = [i * left.num_rows // count for i in range(count + 1)]
    return list(itertools.pairwise(edges))


def _sum_of_products(
    sides: Sequence["_Pieces"], spans: Sequence[tuple[int, int]]
) -> np.ndarray:  # fmt: skip
    """What some rows add to the Gram of one side with itself, or of two."""
    first, last = sides[0], sides[-1]
    total = np.zeros((first.num_vectors, last.num_vectors), first.dtype)
    product = np.empty_like(total)
    longest = max(stop - start for start, stop in spans)
    memory = [np.empty(side.size_of_row * longest, side.dtype) for side in sides]
    with np.errstate(all="ignore"):  # numbers that are not finite are found in the sum
        for span in spans:
            formed = [side.form(*span, out) for side, out in zip(sides, memory, strict=True)]
            # of a matrix with its own transpose NumPy makes the symmetric update
            total += np.matmul(formed[0], formed[-1].T, out=product)
    return total


class _Pieces:
    """Gradients of one side, a few rows of the parameter at a time.

    Attributes:
        dtype: of the gradients.
        num_vectors: n, or n k where outputs are not traced.
        size_of_row: numbers that one row of the parameter has, of all gradients.
    """

    def __init__(self, group: Group, k: int, *, trace: bool):
        self.dtype = contractions.sum_dtype(jax.tree.leaves(group)[-1].dtype)
        self._shape = (group.num_examples, k, group.num_columns)
        self.num_vectors = group.num_vectors(trace=trace)
        self.size_of_row = math.prod(self._shape)
        # dense products overwrite what memory held before: first
        order = sorted(group.terms, key=lambda term: not isinstance(term, Outer))
        self._overwrite = _outer_writer(order[0], k) if isinstance(order[0], Outer) else None
        self._adders = [_adder(term, k) for term in order[self._overwrite is not None :]]

    def form(self, start: int, stop: int, memory: np.ndarray) -> np.ndarray:
        """Rows ``start`` to ``stop`` of every gradient.

        Args:
            start: the first of them.
            stop: the one after the last.
            memory: where to put them.

        Returns:
            (num_vectors, numbers), a view of ``memory``.
        """
        n, k, c = self._shape
        flat = memory[: self.size_of_row * (stop - start)]
        piece = flat.reshape(n, k, stop - start, c)
        if self._overwrite is None:
            piece.fill(0)
        else:
            self._overwrite(start, stop, piece)
        for add in self._adders:
            add(start, stop, piece)
        return flat.reshape(self.num_vectors, -1)


def _adder(term: contractions.Term, k: int) -> Adder:
    if isinstance(term, Lookup):
        return _lookup_adder(term)
    if isinstance(term, Formed):

        def add(start: int, stop: int, piece: np.ndarray) -> None:
            piece += term.values[:, :, start:stop]

        return add
    write = _outer_writer(term, k)

    def add_product(start: int, stop: int, piece: np.ndarray) -> None:
        product = np.empty_like(piece)
        write(start, stop, product)
        piece += product

    return add_product


def _outer_writer(term: Outer, k: int) -> Adder:
    rows, columns = (_with_outputs(side, k) for side in (term.rows, term.columns))

    def write(start: int, stop: int, piece: np.ndarray) -> None:
        np.matmul(rows[..., start:stop].swapaxes(2, 3), columns, out=piece)

    return write


def _with_outputs(side: np.ndarray, k: int) -> np.ndarray:
    """A factor (n, 1 or k, t, length) in the precision of sums, with all outputs."""
    side = side.astype(contractions.sum_dtype(side.dtype), copy=False)
    return np.broadcast_to(side, (side.shape[0], k, *side.shape[2:]))


def _lookup_adder(term: Lookup) -> Adder:
    """Tokens of one id in one example are added first: then no number is added to twice."""
    n = term.ids.shape[0]
    example, token = np.nonzero(term.ids >= 0)
    place = term.ids[example, token].astype(np.int64) * n + example
    order = np.argsort(place, kind="stable")
    place, first = np.unique(place[order], return_index=True)
    row, example_of = np.divmod(place, n)
    columns = term.columns[example[order], :, token[order]]  # (tokens, k, C)
    columns = columns.astype(contractions.sum_dtype(columns.dtype), copy=False)
    summed = np.add.reduceat(columns, first) if len(first) else columns

    def add(start: int, stop: int, piece: np.ndarray) -> None:
        few = slice(*np.searchsorted(row, (start, stop)))
        piece[example_of[few], :, row[few] - start] += summed[few]

    return add


@functools.cache
def _threads(pid: int) -> ThreadPoolExecutor:
    """A thread for each core, kept: starting them takes as long as a small Gram."""
    del pid  # part of the key: a process that was forked has none of its parent's threads
    return ThreadPoolExecutor(num_workers())


@functools.cache
def _controller() -> Any:
    """The BLAS of this process."""
    return threadpoolctl.ThreadpoolController()
