r"""Term: what one use of a parameter adds to its gradient, for all examples of a block.

The gradient of example i and output a in a parameter is a sum over uses, :math:`G_{ia} = \sum_u
G^{(u)}_{ia}`, and terms of one parameter are added before they are multiplied.  To be added they
must agree on which axes of the parameter are rows and which are columns; here they are brought to
one layout, as a ``contractions.Group``.  Terms that touch disjoint slices of a parameter make
groups of their own, and terms that agree on no layout are formed as whole matrices.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured.gradients import Term, groups
    >>> from lensllm_jax.ntk.structured.taps import UseKind
    >>> states, cotangents = jnp.ones((4, 7, 3)), jnp.ones((4, 1, 7, 2))
    >>> dense = Term(states, cotangents, UseKind.OUTER, ((0, 3), (0, 2)), ((0,), (1,)))
    >>> [(group.num_rows, group.num_columns) for group in groups([dense])]
    [(3, 2)]
"""

import dataclasses
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax.ntk.structured import contractions
from lensllm_jax.ntk.structured.contractions import Formed, Group, Lookup, Outer
from lensllm_jax.ntk.structured.taps import UseKind

Box = tuple[tuple[int, int], ...]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["left", "right"],
    meta_fields=["kind", "box", "split"],
)
@dataclasses.dataclass(frozen=True)
class Term:
    """One use's share of the gradients of n examples and k outputs."""

    left: Any  # OUTER (n, t, A), LOOKUP (n, t), WHOLE None
    right: Any  # (n, k, t, B); for WHOLE (n, k, *lengths of the box's axes)
    kind: UseKind
    box: Box  # the part of the parameter that is used: (start, stop) an axis
    split: tuple[tuple[int, ...], tuple[int, ...]]  # the axes of A and of B


def groups(terms: Sequence[Term]) -> list[Group]:
    """All terms of one parameter, each group of them in one layout.

    Args:
        terms: the terms.

    Returns:
        Groups whose gradients are orthogonal, since they touch disjoint parts.
    """
    return [_group(part, box) for part, box in _connected(terms)]


def _connected(terms: Sequence[Term]) -> list[tuple[list[Term], Box]]:
    """Terms parted where they touch disjoint slices, each part with the hull of its boxes."""
    parts: list[tuple[list[Term], Box]] = []
    for term in terms:
        joined, box = [term], term.box
        apart = []
        for others, other_box in parts:
            if _overlap(box, other_box):
                joined = others + joined
                box = tuple(
                    (min(a, c), max(b, d))
                    for (a, b), (c, d) in zip(box, other_box, strict=True)
                )  # fmt: skip
            else:
                apart.append((others, other_box))
        parts = [*apart, (joined, box)]
    return parts


def _overlap(a: Box, b: Box) -> bool:
    return all(
        max(p, r) < min(q, s) for (p, q), (r, s) in zip(a, b, strict=True)
    )  # fmt: skip


def _group(terms: list[Term], box: Box) -> Group:
    """Terms of one slice of a parameter, brought to one layout (rows, columns)."""
    layout = _common_layout(terms, box)
    if layout is None:
        formed = tuple(_formed(term, box) for term in terms)
        return Group(formed, 1, formed[0].values.shape[3])
    rows, columns = layout
    lengths = [stop - start for start, stop in box]
    num_rows, num_columns = (math.prod(lengths[axis] for axis in axes) for axes in layout)
    arranged = tuple(_arranged(term, rows, columns, num_rows, num_columns) for term in terms)
    return Group(arranged, num_rows, num_columns)


def _common_layout(
    terms: list[Term], box: Box
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:  # fmt: skip
    """Axes to take as rows and columns so that every term keeps its form; None if none do."""
    if any(term.box != box for term in terms):
        return None
    lookups = {t.split for t in terms if t.kind is UseKind.LOOKUP}
    outers = {t.split for t in terms if t.kind is UseKind.OUTER}
    if not (lookups or outers):
        return ((), tuple(axis for axis, (start, stop) in enumerate(box) if stop - start > 1))
    if lookups:
        layout = min(lookups)
    else:
        # the longer side is cut into pieces
        layout = max(
            (pair for split in outers for pair in (split, split[::-1])),
            key=lambda pair: math.prod(box[axis][1] - box[axis][0] for axis in pair[0]),
        )
    fits = lookups <= {layout} and outers <= {layout, layout[::-1]}
    return layout if fits else None


def _arranged(
    term: Term, rows: tuple, columns: tuple, num_rows: int, num_columns: int
) -> contractions.Term:  # fmt: skip
    if term.kind is UseKind.LOOKUP:
        return Lookup(term.left, term.right)
    if term.kind is UseKind.OUTER:
        left = term.left[:, None]
        if term.split == (rows, columns):
            return Outer(left, term.right)
        return Outer(term.right, left)
    n, k = term.right.shape[:2]
    # a whole term has the axes longer than one, ascending
    order = {axis: 2 + i for i, axis in enumerate(sorted((*rows, *columns)))}
    by_layout = term.right.transpose(0, 1, *(order[axis] for axis in (*rows, *columns)))
    return Formed(by_layout.reshape(n, k, num_rows, num_columns))


def _formed(term: Term, hull: Box) -> Formed:
    """Any term as a matrix of one row, embedded in the hull of its group's boxes."""
    lengths = [stop - start for start, stop in term.box]
    n, k = term.right.shape[:2]
    if term.kind is UseKind.WHOLE:
        values = term.right
    else:
        left_axes, right_axes = term.split
        num_rows = math.prod(lengths[axis] for axis in left_axes)
        simple = _arranged(term, left_axes, right_axes, num_rows, term.right.shape[3])
        matrix = contractions.whole_term(jax.tree.map(jnp.asarray, simple), num_rows)
        parted = matrix.reshape(n, k, *(lengths[axis] for axis in (*left_axes, *right_axes)))
        order = np.argsort((*left_axes, *right_axes))
        values = parted.transpose(0, 1, *(2 + int(i) for i in order))
    values = values.reshape(n, k, *lengths)
    margins = [(a - c, d - b) for (a, b), (c, d) in zip(term.box, hull, strict=True)]
    return Formed(jnp.pad(values, [(0, 0), (0, 0), *margins]).reshape(n, k, 1, -1))
