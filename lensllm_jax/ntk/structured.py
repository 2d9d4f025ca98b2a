r"""The structured kernel: exact, with the memory of one block's activations.

.. math:: \Theta_{ab}(x_i, x_j) = \sum_{W} \langle G^W_{ia}, G^W_{jb} \rangle

One forward pass records what enters each use of a parameter (``uses``), one backward pass
for all examples at once gives the cotangents there, and each parameter adds its block by the
cheaper of two exact contractions (``rules``).  No Jacobian is ever formed: a dense layer's gradient
is a sum of outer products, a few rows of which are made at a time.

Every function is in reach, since a use that is not understood is differentiated whole; only
parameters that enter through ``dot_general`` or a lookup of rows are cheap.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured import gradient_groups
    >>> f = lambda params, x: jnp.tanh(x @ params["w"] + params["b"][None]).sum(1)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> groups = gradient_groups(f, params, jnp.ones((4, 3)))
    >>> [(g.name, type(g.terms[0]).__name__) for g in groups]
    [("['b']", 'Formed'), ("['w']", 'Outer')]
"""

import functools
import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax.ntk import rules, uses
from lensllm_jax.ntk.rules import Formed, Group, Lookup, Outer, Term
from lensllm_jax.ntk.uses import Tap, UseKind
from lensllm_jax.typing import ApplyFn, Params


@functools.partial(jax.jit, static_argnums=0)
def gradient_groups(f: ApplyFn, params: Params, x: Any) -> list[Group]:
    """The gradient terms of every parameter for a block of examples.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), examples independent.
        params: pytree of floating arrays.
        x: the block, a pytree with a leading example axis.

    Returns:
        One group a parameter, or a slice of a stacked parameter; what f never uses has none.
    """
    leaves, structure = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    x_leaves, x_structure = jax.tree.flatten(x)

    def of_one(leaves: list, x_leaves: list) -> jax.Array:
        one = jax.tree.unflatten(x_structure, [leaf[None] for leaf in x_leaves])
        return f(jax.tree.unflatten(structure, leaves), one).reshape(-1)

    example = [jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype) for leaf in x_leaves]
    with jax.default_matmul_precision("highest"):
        program = jax.make_jaxpr(of_one)(leaves, example)
        taps, lefts, deltas = _cotangents(program, leaves, x_leaves)
        terms = [
            _Term(tap, left, jax.vmap(jax.vmap(tap.right_fn))(delta))
            for tap, left, delta in zip(taps, lefts, deltas, strict=True)
        ]
        return [
            _group(names[leaf], part, box)
            for leaf in range(len(leaves))
            for part, box in _connected([term for term in terms if term.tap.leaf == leaf])
        ]


@functools.partial(jax.jit, static_argnames=("trace",))
def gram_of_groups(left: list[Group], right: list[Group] | None, *, trace: bool) -> jax.Array:
    """The kernel of two blocks of examples: the sum over parameters.

    Args:
        left: groups of the rows' examples.
        right: groups of the columns' examples; ``None`` stands for ``left``.
        trace: sum over equal outputs.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    others: list[Any] = [None] * len(left) if right is None else right
    with jax.default_matmul_precision("highest"):
        parts = [rules.gram(a, b, trace=trace) for a, b in zip(left, others, strict=True)]
    return functools.reduce(operator.add, parts)


class _Term(NamedTuple):
    """A tap with what it recorded for all examples."""

    tap: Tap
    left: Any  # OUTER (n, t, A), LOOKUP (n, t), WHOLE None
    right: Any  # (n, k, t, B), for WHOLE (n, k, *lengths of the box's axes)


def _cotangents(
    program: Any, leaves: list, x_leaves: list
) -> tuple[list[Tap], list[Any], list[jax.Array]]:
    """Taps, what they recorded (n, ...), and the cotangents (n, k, ...) of what they tap."""
    n = x_leaves[0].shape[0]
    example = [jax.ShapeDtypeStruct(x.shape[1:], x.dtype) for x in x_leaves]
    shapes = uses.shapes(program, leaves, example)
    seen: list[list[Tap]] = []

    def tapped(perturbations: list, x_leaves: list) -> tuple[jax.Array, list]:
        (out,), taps = uses.run(program, leaves, x_leaves, perturbations)
        seen.append(taps)
        return out, [tap.left for tap in taps]

    zeros = [jnp.zeros((n, *shape.shape), shape.dtype) for shape in shapes]
    outputs, pullback, lefts = jax.vjp(
        lambda perturbations: jax.vmap(tapped)(perturbations, x_leaves), zeros, has_aux=True
    )
    k = outputs.shape[1]
    # output a of every example at once: examples do not mix, so their cotangents do not either
    basis = jnp.broadcast_to(jnp.eye(k, dtype=outputs.dtype)[:, None, :], (k, n, k))
    (deltas,) = jax.vmap(pullback)(basis)
    return seen[-1], lefts, [jnp.moveaxis(delta, 0, 1) for delta in deltas]


Box = tuple[tuple[int, int], ...]


def _connected(terms: list[_Term]) -> list[tuple[list[_Term], Box]]:
    """Terms of one parameter, parted where they touch disjoint slices of it, with the hulls."""
    parts: list[tuple[list[_Term], Box]] = []
    for term in terms:
        joined, box = [term], term.tap.box
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


def _group(name: str, terms: list[_Term], box: Box) -> Group:
    """Terms of one slice of a parameter, brought to one layout (rows, columns)."""
    layout = _common_layout(terms, box)
    if layout is None:
        formed = tuple(_formed(term, box) for term in terms)
        return Group(formed, name, 1, formed[0].values.shape[3])
    rows, columns = layout
    lengths = [stop - start for start, stop in box]
    num_rows, num_columns = (math.prod(lengths[axis] for axis in axes) for axes in layout)
    arranged = tuple(_arranged(term, rows, columns, num_rows, num_columns) for term in terms)
    return Group(arranged, name, num_rows, num_columns)


def _common_layout(
    terms: list[_Term], box: Box
) -> tuple[tuple[int, ...], tuple[int, ...]] | None:  # fmt: skip
    """Axes to take as rows and columns so that every term keeps its form; None if none do."""
    if any(term.tap.box != box for term in terms):
        return None
    lookups = {t.tap.split for t in terms if t.tap.kind is UseKind.LOOKUP}
    outers = {t.tap.split for t in terms if t.tap.kind is UseKind.OUTER}
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
    term: _Term, rows: tuple, columns: tuple, num_rows: int, num_columns: int
) -> Term:  # fmt: skip
    if term.tap.kind is UseKind.LOOKUP:
        return Lookup(term.left, term.right)
    if term.tap.kind is UseKind.OUTER:
        left = term.left[:, None]
        if term.tap.split == (rows, columns):
            return Outer(left, term.right)
        return Outer(term.right, left)
    n, k = term.right.shape[:2]
    # a whole term has the axes longer than one, ascending
    order = {axis: 2 + i for i, axis in enumerate(sorted((*rows, *columns)))}
    by_layout = term.right.transpose(0, 1, *(order[axis] for axis in (*rows, *columns)))
    return Formed(by_layout.reshape(n, k, num_rows, num_columns))


def _formed(term: _Term, hull: Box) -> Formed:
    """Any term as a matrix of one row, embedded in the hull of its group's boxes."""
    tap = term.tap
    lengths = [stop - start for start, stop in tap.box]
    n, k = term.right.shape[:2]
    if tap.kind is UseKind.WHOLE:
        values = term.right
    else:
        left_axes, right_axes = tap.split
        num_rows = math.prod(lengths[axis] for axis in left_axes)
        simple = _arranged(term, left_axes, right_axes, num_rows, term.right.shape[3])
        matrix = rules.whole_term(simple, num_rows)
        parted = matrix.reshape(n, k, *(lengths[axis] for axis in (*left_axes, *right_axes)))
        order = np.argsort((*left_axes, *right_axes))
        values = parted.transpose(0, 1, *(2 + int(i) for i in order))
    values = values.reshape(n, k, *lengths)
    margins = [(a - c, d - b) for (a, b), (c, d) in zip(tap.box, hull, strict=True)]
    return Formed(jnp.pad(values, [(0, 0), (0, 0), *margins]).reshape(n, k, 1, -1))
