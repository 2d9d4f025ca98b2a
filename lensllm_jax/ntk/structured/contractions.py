r"""Rule: how the gradient terms of one parameter are multiplied with those of other examples.

A parameter, seen as a matrix of R rows and C columns, has for example i and output a the gradient

.. math:: G_{ia} = \sum_u G^{(u)}_{ia}, \qquad
          \Theta_{ab}(x_i, x_j) \mathrel{+}= \langle G_{ia}, G_{jb} \rangle ,

with one term a use: an ``Outer`` :math:`\sum_t r_t \otimes c_t`, a ``Lookup``
:math:`\sum_t e_{\mathrm{id}_t} \otimes c_t`, or a ``Formed`` matrix.  Two contractions are exact:

* *formed*: add the terms of a few rows at a time and multiply at once,
  :math:`2 n t R C + 2 n m R C` operations and no more than those rows in memory;
* *pairwise*: :math:`\langle r \otimes c, r' \otimes c' \rangle = (r \cdot r')(c \cdot c')`,
  :math:`2 n m t^2 (R + C)` operations; for two lookups :math:`r \cdot r'` is equality of ids.

``gram`` takes the one that costs less (``is_formed``).

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured.contractions import Group, Outer, gram
    >>> r, c = jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[[3.0]]]])  # one example, one token
    >>> g = Group((Outer(r, c),), 2, 1)  # G = (3, 6)
    >>> gram(g, None, trace=False)
    Array([[[[45.]]]], dtype=float32)
"""

import dataclasses
import functools
import itertools
import operator
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

# Numbers formed at once: 4 MiB in float32, which stay in the caches, but of each gradient enough
# for products of some size.  All figures: benchmarks/LOG.md.
PIECE_SIZE = 2**20
LEAST_PIECE_OF_ONE = 2**13
# Rows of a symmetric Gram that are multiplied at once: the tiles below the diagonal are left out.
SYMMETRIC_TILE = 128
# Entries of a (tokens x tokens) Gram in memory at once: 64 MiB in float32.
PAIR_SIZE = 2**24
# What one such entry costs beside its arithmetic, in operations of a large matrix product that take
# as long: it is written, turned and read again (8 outputs: 5.4 s against 2.4 formed).
PAIR_ENTRY_COST = 1000


@functools.partial(
    jax.tree_util.register_dataclass, data_fields=["rows", "columns"], meta_fields=[]
)
@dataclasses.dataclass(frozen=True)
class Outer:
    r"""Terms :math:`\sum_t r_t \otimes c_t`; the side without cotangents has k = 1."""

    rows: Any  # (n, k, t, R)
    columns: Any  # (n, k, t, C)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["ids", "columns"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Lookup:
    r"""Terms :math:`\sum_t e_{\mathrm{id}_t} \otimes c_t`; an id below zero has none."""

    ids: Any  # (n, t)
    columns: Any  # (n, k, t, C)


@functools.partial(jax.tree_util.register_dataclass, data_fields=["values"], meta_fields=[])
@dataclasses.dataclass(frozen=True)
class Formed:
    """Terms that stand as matrices."""

    values: Any  # (n, k, R, C)


Term: TypeAlias = Outer | Lookup | Formed


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["terms"],
    meta_fields=["num_rows", "num_columns"],
)
@dataclasses.dataclass(frozen=True)
class Group:
    """All gradient terms of one parameter, or of one slice of a stacked one."""

    terms: tuple[Term, ...]
    num_rows: int  # R
    num_columns: int  # C

    @property
    def num_examples(self) -> int:
        """The length n of the example axis."""
        first = self.terms[0]
        return (first.values if isinstance(first, Formed) else first.columns).shape[0]

    @property
    def num_outputs(self) -> int:
        """The length k of the output axis."""
        return max(_outputs_of(term) for term in self.terms)

    def num_vectors(self, *, trace: bool) -> int:
        """Rows of the Gram: n, or n k where outputs are not traced."""
        return self.num_examples * (1 if trace else self.num_outputs)


def gram(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    r"""This parameter's part of the kernel, :math:`\langle G_{ia}, G_{jb} \rangle`.

    Args:
        left: terms of the n examples of the rows.
        right: terms of the m examples of the columns; ``None`` stands for ``left``.
        trace: sum over a = b.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    contraction = gram_formed if is_formed(left, right, trace=trace) else gram_pairwise
    return contraction(left, right, trace=trace)


def is_formed(left: Group, right: Group | None, *, trace: bool) -> bool:
    """Whether forming the gradients costs no more than going by pairs.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        True for ``gram_formed``.
    """
    pairwise = pairwise_cost(left, right, trace=trace)
    return formed_flops(left, right, trace=trace) <= pairwise


def formed_flops(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """Operations of ``gram_formed``.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        Multiplications and additions.
    """
    k, size = left.num_outputs, left.num_rows * left.num_columns
    n, m = left.num_examples, (right or left).num_examples
    made = n if right is None else n + m
    forming = sum(
        2 * made * k * t.columns.shape[2] * size for t in left.terms if isinstance(t, Outer)
    )
    return forming + 2 * n * m * k * (1 if trace else k) * size


def pairwise_flops(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """Operations of ``gram_pairwise``; infinite where a term is formed already.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples; ``None`` stands for ``left``, of which two terms
            need each other only once.
        trace: sum over a = b (counted as without: mixed sides cannot save).

    Returns:
        Multiplications and additions.
    """
    total = 0.0
    for u, v, _ in _pairs(left, right):
        if isinstance(u, Formed) or isinstance(v, Formed):
            return float("inf")
        n, _, t, c = u.columns.shape
        m, _, s, _ = v.columns.shape
        k = max(_outputs_of(u), _outputs_of(v))
        r = left.num_rows if isinstance(u, Outer) and isinstance(v, Outer) else 1
        total += n * m * t * s * (2 * k * (r + c) + 2 * k * k)
    return total


def _pairs(left: Group, right: Group | None) -> list[tuple[Any, Any, bool]]:
    """The terms that meet, and whether they stand for the same two the other way round as well."""
    if right is not None:
        return [(u, v, False) for u, v in itertools.product(left.terms, right.terms)]
    # by place: the same term may stand at two of them
    places = itertools.combinations_with_replacement(range(len(left.terms)), 2)
    return [(left.terms[i], left.terms[j], i < j) for i, j in places]


def pairwise_cost(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """What ``gram_pairwise`` takes: its operations, and moving the Grams of tokens.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        Operations of a large matrix product that take as long.
    """
    rows, columns = (
        sum(
            term.columns.shape[0] * term.columns.shape[2] * _outputs_of(term)
            for term in group.terms
            if not isinstance(term, Formed)
        )
        for group in (left, right or left)
    )
    return pairwise_flops(left, right, trace=trace) + PAIR_ENTRY_COST * rows * columns


def gram_formed(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    """The Gram by adding all terms of a few rows and multiplying at once.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    n, m, k = left.num_examples, (right or left).num_examples, left.num_outputs
    sides = (left,) if right is None else (left, right)
    height = piece_height(left, right)
    tiles = [(slice(None), slice(None))]
    if right is None:
        tiles = upper_tiles(left.num_vectors(trace=trace), SYMMETRIC_TILE)

    def flat(group: Group, start: jax.Array | int, size: int) -> jax.Array:
        pieces = [_piece(term, start, size, k) for term in group.terms]
        piece = functools.reduce(operator.add, pieces)
        return piece.reshape((group.num_vectors(trace=trace), -1))

    def products(start: jax.Array | int, size: int) -> list[jax.Array]:
        formed = [flat(side, start, size) for side in sides]
        return [_inner(formed[0][i], formed[-1][j]) for i, j in tiles]

    turns, rest = divmod(left.num_rows, height)
    total = lax.fori_loop(
        1, turns, lambda i, t: _added(t, products(i * height, height)), products(0, height)
    )
    if rest:
        total = _added(total, products(turns * height, rest))
    theta = _mirrored(total, tiles) if right is None else total[0]
    return theta if trace else theta.reshape(n, k, m, k).transpose(0, 2, 1, 3)


def piece_height(left: Group, right: Group | None) -> int:
    """Rows of the parameter in a piece of ``gram_formed``.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.

    Returns:
        A number from 1 to R.
    """
    n = max(left.num_examples, (right or left).num_examples)
    of_one = piece_of_one(n, left.num_outputs)
    return max(1, min(left.num_rows, of_one // left.num_columns))


def piece_of_one(n: int, k: int) -> int:
    """Numbers of each of n examples' k gradients in a piece, at most."""
    return max(LEAST_PIECE_OF_ONE, PIECE_SIZE // (n * k))


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    # gradients may come in bfloat16; what they add up to may not
    return lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), preferred_element_type=sum_dtype(a.dtype)
    )


def _inner_all(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products (..., ...') of all vectors (..., c) with all vectors (...', c).

    As a product of two matrices: of more axes XLA makes one by turning all of b round, in memory.
    """
    flat = _inner(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
    return flat.reshape(*a.shape[:-1], *b.shape[:-1])


def sum_dtype(dtype: Any) -> Any:
    """What numbers of a type are added in: gradients may come in bfloat16, their sums may not.

    Args:
        dtype: of the gradients.

    Returns:
        float32, or float64 for itself.
    """
    return jnp.promote_types(dtype, jnp.float32)


def _einsum(subscripts: str, a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.einsum(subscripts, a, b, preferred_element_type=sum_dtype(a.dtype))


def _added(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def upper_tiles(n: int, side: int) -> list[tuple[slice, slice]]:
    """Tiles on and above the diagonal of an n x n matrix.

    Args:
        n: the length of its sides.
        side: about the length of a tile's.

    Returns:
        Rows and columns of each.
    """
    count = max(1, round(n / side))
    edges = [round(i * n / count) for i in range(count + 1)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(spans[i], spans[j]) for i in range(count) for j in range(i, count)]


def _mirrored(parts: list[jax.Array], tiles: list[tuple[slice, slice]]) -> jax.Array:
    """The whole symmetric matrix out of its upper tiles."""
    if len(parts) == 1:
        return parts[0]
    by_tile = {(i.start, j.start): part for (i, j), part in zip(tiles, parts, strict=True)}
    starts = sorted({i.start for i, _ in tiles})
    return jnp.block(
        [[by_tile[i, j] if i <= j else by_tile[j, i].T for j in starts] for i in starts]
    )


def gram_pairwise(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    """The Gram out of Grams of the factors, which forms no gradient.

    Args:
        left: terms of the rows' examples.
        right: terms of the columns' examples, or ``None``.
        trace: sum over a = b.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    parts = []
    for u, v, both_ways in _pairs(left, right):
        part = _pair(u, v)
        parts += [part, _turned(part)] if both_ways else [part]
    total = functools.reduce(operator.add, parts)
    k = left.num_outputs
    total = jnp.broadcast_to(total, (*total.shape[:2], k, k))
    return jnp.trace(total, axis1=2, axis2=3) if trace else total


def whole_term(term: Term, num_rows: int) -> jax.Array:
    """A term as a matrix.

    Args:
        term: the term.
        num_rows: its R.

    Returns:
        (n, k, R, C).
    """
    return _piece(term, 0, num_rows, _outputs_of(term))


def _pair(u: Any, v: Any) -> jax.Array:
    """Sum over tokens of (r . r') (c . c'), (n, m, k, k), a few examples of u at a time."""
    if isinstance(u, Outer) and isinstance(v, Lookup):
        return _turned(_pair(v, u))
    m, _, s, _ = v.columns.shape
    per_example = u.columns.shape[2] * _outputs_of(u) * m * s * _outputs_of(v)

    def of_example(one: Any) -> jax.Array:
        # (k, t, m, k', s) with k or k' one on the sides without cotangents
        product = _left_gram(one, v) * _inner_all(one.columns, v.columns)
        return jnp.sum(product, axis=(1, 4)).transpose(1, 0, 2)

    return lax.map(of_example, u, batch_size=max(1, PAIR_SIZE // per_example))


def _left_gram(one: Any, v: Any) -> jax.Array:
    """The r . r' of one example's tokens with all of v's, (k, t, m, k', s)."""
    if isinstance(one, Outer) and isinstance(v, Outer):
        return _inner_all(one.rows, v.rows)
    if isinstance(one, Lookup) and isinstance(v, Lookup):
        same = (one.ids[:, None, None] == v.ids[None]) & (one.ids >= 0)[:, None, None]
        return same.astype(v.columns.dtype)[None, :, :, None, :]
    # e_id . r' is entry id of r'
    rows = v.rows[..., jnp.maximum(one.ids, 0)].transpose(3, 0, 1, 2)
    return jnp.where((one.ids >= 0)[:, None, None, None], rows, 0)[None]


def _turned(theta: jax.Array) -> jax.Array:
    """The kernel (m, n, k', k) with its sides exchanged."""
    return theta.transpose(1, 0, 3, 2)


def _piece(term: Term, start: jax.Array | int, size: int, k: int) -> jax.Array:
    """Rows ``start`` to ``start + size`` of a term, (n, k, size, C)."""
    if isinstance(term, Formed):
        values = lax.dynamic_slice_in_dim(term.values, start, size, axis=2)
        return values.astype(sum_dtype(values.dtype))
    if isinstance(term, Outer):
        rows = lax.dynamic_slice_in_dim(term.rows, start, size, axis=3)
        piece = _batched_outer(rows, term.columns)
        return jnp.broadcast_to(piece, (piece.shape[0], k, *piece.shape[2:]))
    c = term.columns.shape[3]
    # beyond the piece (and below zero) lies row `size`, which mode="drop" leaves out
    row = term.ids - start
    row = jnp.where((term.ids >= 0) & (row >= 0) & (row < size), row, size)

    def added(row: jax.Array, columns: jax.Array) -> jax.Array:
        zeros = jnp.zeros((k, size, c), sum_dtype(columns.dtype))
        return zeros.at[:, row].add(columns.astype(zeros.dtype), mode="drop")

    return jax.vmap(added)(row, term.columns)


def _batched_outer(rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sum over tokens of r (x) c, the output axis on whichever side has it."""
    # in each case the product comes out in the order it is wanted in: turning it round
    # afterwards costs a third of the whole Gram
    if rows.shape[1] == columns.shape[1] == 1:
        return _einsum("ntr,ntc->nrc", rows[:, 0], columns[:, 0])[:, None]
    if columns.shape[1] == 1:
        return _einsum("natr,ntc->narc", rows, columns[:, 0])
    rows = jnp.broadcast_to(rows, (rows.shape[0], columns.shape[1], *rows.shape[2:]))
    return _einsum("natr,natc->narc", rows, columns)


def _outputs_of(term: Term) -> int:
    if isinstance(term, Formed):
        return term.values.shape[1]
    if isinstance(term, Lookup):
        return term.columns.shape[1]
    return max(term.rows.shape[1], term.columns.shape[1])
