r"""Gradients of one parameter: terms of its uses, for all examples of a block, in one layout.

The gradient of example i and output a in a parameter is a sum over the parameter's uses,

.. math:: G_{ia} = \sum_u G^{(u)}_{ia} ,

and terms of one parameter are added before they are multiplied.  To be added they must agree on
which axes of the parameter are rows and which are columns (``group_terms``).  A term is an
``Outer`` :math:`\sum_t r_t \otimes c_t`, a ``Lookup`` :math:`\sum_t e_{\mathrm{id}_t} \otimes c_t`,
or ``Materialized``.

Example:
    >>> import jax.numpy as jnp
    >>> dense = Outer(jnp.ones((4, 1, 7, 3)), jnp.ones((4, 2, 7, 5)))  # 7 tokens, 2 outputs
    >>> placed = PlacedTerm(dense, box=((0, 3), (0, 5)), row_axes=(0,), column_axes=(1,))
    >>> [(group.num_rows, group.num_columns) for group in group_terms([placed])]
    [(5, 3)]
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

# Numbers materialized at once: 4 MiB in float32, which stay in the caches, but of each gradient
# enough for products of some size.  All figures: benchmarks/LOG.md.
ROW_BLOCK_SIZE = 2**20
LEAST_ROW_BLOCK = 2**13

Box: TypeAlias = tuple[tuple[int, int], ...]  # a slice of a parameter: (start, stop) per axis
_Layout: TypeAlias = tuple[tuple[int, ...], tuple[int, ...]]  # axes of rows, axes of columns


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows", "columns"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Outer:
    """Sums of outer products over tokens; the side without cotangents has k = 1."""

    rows: Any  # (n, k, t, R)
    columns: Any  # (n, k, t, C)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ids", "columns"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Lookup:
    """One row per token, the row of its id; an id below zero has none."""

    ids: Any  # (n, t)
    columns: Any  # (n, k, t, C)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Materialized:
    """Whole matrices."""

    values: Any  # (n, k, R, C)


Term: TypeAlias = Outer | Lookup | Materialized


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["term"],
    meta_fields=["box", "row_axes", "column_axes"],
)
@dataclasses.dataclass(frozen=True)
class PlacedTerm:
    """A term, and where in its parameter it lies."""

    term: Term
    box: Box
    row_axes: tuple[int, ...]  # ascending; axes of length one may be left out
    column_axes: tuple[int, ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["terms"],
    meta_fields=["num_rows", "num_columns"],
)
@dataclasses.dataclass(frozen=True)
class Group:
    """All gradient terms of one parameter, or of one slice of it, in one layout."""

    terms: tuple[Term, ...]
    num_rows: int  # R
    num_columns: int  # C

    @property
    def num_examples(self) -> int:
        """The length n of the example axis."""
        first = self.terms[0]
        return (first.values if isinstance(first, Materialized) else first.columns).shape[0]

    @property
    def num_outputs(self) -> int:
        """The length k of the output axis."""
        return max(num_outputs(term) for term in self.terms)

    def num_vectors(self, *, trace: bool) -> int:
        """Rows of the Gram: n, or n k where outputs are not traced."""
        return self.num_examples * (1 if trace else self.num_outputs)


def num_outputs(term: Term) -> int:
    """The length k of a term's output axis."""
    if isinstance(term, Materialized):
        return term.values.shape[1]
    if isinstance(term, Lookup):
        return term.columns.shape[1]
    return max(term.rows.shape[1], term.columns.shape[1])


def sum_dtype(dtype: Any) -> Any:
    """The dtype of sums of gradients: float32 for types of 8 and 16 bits, else their own."""
    return jnp.dtype(jnp.float32 if jnp.dtype(dtype).itemsize < 4 else dtype)


def row_block_height(left: Group, right: Group | None) -> int:
    """How many of a parameter's R rows are materialized at once, at least 1."""
    n = max(left.num_examples, (right or left).num_examples)
    per_gradient = row_block_size(n, left.num_outputs)
    return max(1, min(left.num_rows, per_gradient // left.num_columns))


def row_block_size(n: int, k: int) -> int:
    """How many numbers of each of n examples' k gradients are materialized at once, at most."""
    return max(LEAST_ROW_BLOCK, ROW_BLOCK_SIZE // (n * k))


def row_block(term: Term, start: jax.Array | int, size: int, k: int) -> jax.Array:
    """Rows ``start`` to ``start + size`` of a term with k outputs, (n, k, size, C)."""
    if isinstance(term, Materialized):
        values = lax.dynamic_slice_in_dim(term.values, start, size, axis=2)
        return values.astype(sum_dtype(values.dtype))
    if isinstance(term, Outer):
        rows = lax.dynamic_slice_in_dim(term.rows, start, size, axis=3)
        block = _batched_outer(rows, term.columns)
        return jnp.broadcast_to(block, (block.shape[0], k, *block.shape[2:]))
    c = term.columns.shape[3]
    # beyond the block (and below zero) lies row `size`, which mode="drop" leaves out
    row = term.ids - start
    row = jnp.where((term.ids >= 0) & (row >= 0) & (row < size), row, size)

    def per_example(row: jax.Array, columns: jax.Array) -> jax.Array:
        zeros = jnp.zeros((k, size, c), sum_dtype(columns.dtype))
        return zeros.at[:, row].add(columns.astype(zeros.dtype), mode="drop")

    return jax.vmap(per_example)(row, term.columns)


def materialize(term: Term, num_rows: int) -> jax.Array:
    """A term as a matrix, (n, k, R, C)."""
    return row_block(term, 0, num_rows, num_outputs(term))


def _batched_outer(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum over tokens of r (x) c, the output axis on whichever side has it."""
    # in each case the product comes out in the wanted order: transposing it afterwards costs a
    # third of the whole Gram
    if rows.shape[1] == columns.shape[1] == 1:
        return _einsum("ntr,ntc->nrc", rows[:, 0], columns[:, 0])[:, None]
    if columns.shape[1] == 1:
        return _einsum("natr,ntc->narc", rows, columns[:, 0])
    rows = jnp.broadcast_to(rows, (rows.shape[0], columns.shape[1], *rows.shape[2:]))
    return _einsum("natr,natc->narc", rows, columns)


def _einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=sum_dtype(a.dtype))


def group_terms(terms: Sequence[PlacedTerm]) -> list[Group]:
    """All terms of one parameter as groups, each in one layout.

    The gradients of two groups are orthogonal, since they touch disjoint slices.  Terms that agree
    on no layout are materialized.
    """
    return [group for (group,) in group_sides([terms])]


def group_sides(sides: Sequence[Sequence[PlacedTerm]]) -> list[tuple[Group, ...]]:
    """The groups of one parameter's terms on each side of a kernel, in the same layouts.

    What only one side uses adds nothing.
    """
    groups = []
    for overlapping, hull in _by_overlap(list(itertools.chain(*sides))):
        # by identity, since terms hold arrays
        members = {id(term) for term in overlapping}
        parts = [[term for term in side if id(term) in members] for side in sides]
        if all(parts):
            groups.append(_groups(parts, hull))
    return groups


def _by_overlap(terms: Sequence[PlacedTerm]) -> list[tuple[list[PlacedTerm], Box]]:
    """Terms separated where they touch disjoint slices, each part with the hull of its boxes."""
    parts: list[tuple[list[PlacedTerm], Box]] = []
    for term in terms:
        joined, hull, disjoint = [term], term.box, []
        for others, box in parts:
            if _overlap(hull, box):
                joined = others + joined
                hull = tuple(
                    (min(a, c), max(b, d)) for (a, b), (c, d) in zip(hull, box, strict=True)
                )
            else:
                disjoint.append((others, box))
        parts = [*disjoint, (joined, hull)]
    return parts


def _overlap(a: Box, b: Box) -> bool:
    return all(max(p, r) < min(q, s) for (p, q), (r, s) in zip(a, b, strict=True))


def _groups(parts: Sequence[list[PlacedTerm]], box: Box) -> tuple[Group, ...]:
    """The terms of each side in one layout and, where their types differ, in one type."""
    terms = list(itertools.chain(*parts))
    layout = _common_layout(terms, box)
    placed: list[list[Term]]
    if layout is None:
        placed = [[_embedded(term, box) for term in part] for part in parts]
        num_rows, num_columns = 1, _size(box, range(len(box)))
    else:
        placed = [[_in_layout(term, layout) for term in part] for part in parts]
        num_rows, num_columns = (_size(box, axes) for axes in layout)
    dtypes = {leaf.dtype for leaf in jax.tree.leaves(placed) if _is_float(leaf)}
    if len(dtypes) > 1:
        dtype = functools.reduce(jnp.promote_types, sorted(dtypes, key=str))
        placed = jax.tree.map(lambda leaf: leaf.astype(dtype) if _is_float(leaf) else leaf, placed)
    return tuple(Group(tuple(part), num_rows, num_columns) for part in placed)


def _is_float(array: Any) -> bool:
    return jnp.issubdtype(array.dtype, jnp.floating)  # ids are not


def _common_layout(terms: list[PlacedTerm], box: Box) -> _Layout | None:
    """Axes to take as rows and columns so that no term need be materialized; None if none do."""
    if any(placed.box != box for placed in terms):
        return None
    lookups, outers = (
        {(t.row_axes, t.column_axes) for t in terms if isinstance(t.term, form)}
        for form in (Lookup, Outer)
    )
    if not (lookups or outers):
        return terms[0].row_axes, terms[0].column_axes
    if lookups:
        layout = min(lookups)
    else:
        # the longer side is materialized in blocks
        layout = max(
            (pair for axes in outers for pair in (axes, axes[::-1])),
            key=lambda pair: _size(box, pair[0]),
        )
    fits = lookups <= {layout} and outers <= {layout, layout[::-1]}
    return layout if fits else None


def _in_layout(placed: PlacedTerm, layout: _Layout) -> Term:
    term = placed.term
    if (placed.row_axes, placed.column_axes) == layout:
        return term
    if isinstance(term, Outer):
        return Outer(term.columns, term.rows)
    assert isinstance(term, Materialized)
    rows, columns = layout
    by_axis = _transposed(placed, term.values, (*rows, *columns))
    return Materialized(by_axis.reshape(*by_axis.shape[:2], _size(placed.box, rows), -1))


def _embedded(placed: PlacedTerm, hull: Box) -> Materialized:
    """Any term as matrices of one row, embedded in the hull of its group's boxes."""
    matrix = materialize(jax.tree.map(jnp.asarray, placed.term), _size(placed.box, placed.row_axes))
    by_axis = _transposed(placed, matrix, sorted((*placed.row_axes, *placed.column_axes)))
    values = by_axis.reshape(*matrix.shape[:2], *(stop - start for start, stop in placed.box))
    margins = [(a - c, d - b) for (a, b), (c, d) in zip(placed.box, hull, strict=True)]
    padded = jnp.pad(values, [(0, 0), (0, 0), *margins])
    return Materialized(padded.reshape(*matrix.shape[:2], 1, -1))


def _transposed(placed: PlacedTerm, matrix: Any, axes: Sequence[int]) -> Any:
    """A placed term's matrix (n, k, R, C) with the parameter's axes in another order."""
    order = (*placed.row_axes, *placed.column_axes)
    by_axis = matrix.reshape(*matrix.shape[:2], *_lengths(placed.box, order))
    return by_axis.transpose(0, 1, *(2 + order.index(axis) for axis in axes))


def _size(box: Box, axes: Sequence[int]) -> int:
    return math.prod(_lengths(box, axes))


def _lengths(box: Box, axes: Sequence[int]) -> list[int]:
    return [box[axis][1] - box[axis][0] for axis in axes]
