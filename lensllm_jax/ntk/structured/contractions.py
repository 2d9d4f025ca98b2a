r"""Contractions: the gradients of one parameter multiplied with those of other examples.

.. math:: \Theta_{ab}(x_i, x_j) \mathrel{+}= \langle G_{ia}, G_{jb} \rangle

Two contractions are exact, for a parameter of R rows and C columns and t tokens per example:

* *materialized*: add the terms of a block of rows and multiply at once,
  :math:`2 n t R C + 2 n m R C` operations and no more than those rows in memory; on a CPU by BLAS;
* *pairwise*: :math:`\langle r \otimes c, r' \otimes c' \rangle = (r \cdot r')(c \cdot c')`,
  :math:`2 n m t^2 (R + C)` operations; for two lookups :math:`r \cdot r'` is equality of ids.

``parameter_kernels`` takes the cheaper one (``is_materialized``).

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured.gradients import Group, Outer
    >>> r, c = jnp.array([[[[1.0, 2.0]]]]), jnp.array([[[[3.0]]]])  # one example, one token
    >>> gram(Group((Outer(r, c),), 2, 1), None, trace=False)  # G = (3, 6)
    Array([[[[45.]]]], dtype=float32)
"""

import functools
import itertools
import operator
from collections.abc import Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lensllm_jax.ntk.structured import blas, chunks, gradients
from lensllm_jax.ntk.structured.gradients import (
    Group,
    Lookup,
    Materialized,
    Outer,
    PlacedTerm,
    num_outputs,
    sum_dtype,
)
from lensllm_jax.typing import Array

# Rows of a symmetric Gram that are multiplied at once: the tiles below the diagonal are left out.
SYMMETRIC_TILE = 128
# Entries of a (tokens x tokens) Gram in memory at once: 64 MiB in float32.
PAIR_SIZE = 2**24
# What one such entry costs on top of its arithmetic, in operations of a large matrix product that
# take as long: it is written, transposed and read again (8 outputs: 5.4 s; materialized 2.4 s).
_PAIR_ENTRY_COST = 1000
# Gradients from which on BLAS is faster than XLA (benchmarks/LOG.md).
LEAST_BLAS_VECTORS = 32

ParameterTerms: TypeAlias = tuple[tuple[PlacedTerm, ...], ...]  # the terms of several parameters


def parameter_kernels(
    left: ParameterTerms, right: ParameterTerms | None = None, *, trace: bool, mesh: Mesh | None
) -> Array:
    """The block of the kernel that each of several parameters adds, (parameters, n, m, ...).

    Args:
        left: their terms, of the n examples of the rows.
        right: of the m examples of the columns; ``None`` stands for ``left``.
        trace: sum over equal outputs.
        mesh: the devices that hold the examples' shares; ``None`` for one device.

    Returns:
        Blocks (n, m, k, k), or (n, m) if traced.
    """
    if mesh is not None or not _is_on_host(left):
        return _xla_kernels(left, right, trace=trace, mesh=mesh)
    parameters = _by_parameter(left, right)
    by_blas = [_all_by_blas(sides, trace=trace) for sides in parameters]
    rest = [sides for sides, served in zip(parameters, by_blas, strict=True) if not served]
    others = iter(_xla_kernels(*zip(*rest, strict=True), trace=trace, mesh=None) if rest else ())
    kernels = [
        _blas_kernel(sides, trace=trace) if served else np.asarray(next(others))
        for sides, served in zip(parameters, by_blas, strict=True)
    ]
    return np.stack(kernels)


def _is_on_host(arrays: Any) -> bool:
    """Whether arrays lie in the host's memory and are known, so that BLAS may read them."""
    return all(
        not isinstance(leaf, jax.core.Tracer) and {d.platform for d in leaf.devices()} == {"cpu"}
        for leaf in jax.tree.leaves(arrays)
    )


def _by_parameter(left: ParameterTerms, right: ParameterTerms | None) -> list[ParameterTerms]:
    """Each parameter's terms, of one side or of two."""
    return [(one,) for one in left] if right is None else list(zip(left, right, strict=True))


def _group_pairs(sides: Sequence[Any]) -> list[tuple[Group, Group | None]]:
    """The groups of one parameter's terms, of one side or of two."""
    groups = gradients.group_sides(sides)
    return [(side[0], side[1] if len(side) > 1 else None) for side in groups]


def _blas_kernel(sides: ParameterTerms, *, trace: bool) -> np.ndarray:
    pairs = _group_pairs(jax.tree.map(np.asarray, sides))  # the same memory
    return functools.reduce(
        operator.add, (blas.gram_materialized(*pair, trace=trace) for pair in pairs)
    )


def _all_by_blas(sides: ParameterTerms, *, trace: bool) -> bool:
    """Whether BLAS multiplies all gradients of one parameter."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), sides)
    leaves, structure = jax.tree.flatten(shapes)
    return _all_shapes_by_blas(structure, tuple(leaves), trace=trace)


@functools.lru_cache(maxsize=1024)
def _all_shapes_by_blas(structure: Any, leaves: tuple, *, trace: bool) -> bool:
    pairs = jax.eval_shape(_group_pairs, jax.tree.unflatten(structure, leaves))
    return bool(pairs) and all(_is_by_blas(*pair, trace=trace) for pair in pairs)


@functools.partial(jax.jit, static_argnames=("trace", "mesh"))
def _xla_kernels(
    left: ParameterTerms, right: ParameterTerms | None = None, *, trace: bool, mesh: Mesh | None
) -> jax.Array:  # fmt: skip
    if mesh is None:
        return _stacked_kernels(left, right, trace=trace)
    (axis,) = mesh.axis_names

    def per_device(rows: ParameterTerms, columns: ParameterTerms) -> jax.Array:
        all_columns = jax.tree.map(
            lambda leaf: lax.all_gather(leaf, axis, axis=0, tiled=True), columns
        )
        return _stacked_kernels(rows, all_columns, trace=trace)

    examples = PartitionSpec(axis)
    sharded = chunks.shard(
        per_device, mesh, in_specs=(examples, examples), out_specs=PartitionSpec(None, axis)
    )
    return sharded(left, left if right is None else right)


def _stacked_kernels(
    left: ParameterTerms, right: ParameterTerms | None, *, trace: bool
) -> jax.Array:
    blocks = []
    for sides in _by_parameter(left, right):
        parts = [gram(*pair, trace=trace) for pair in _group_pairs(sides)]
        blocks.append(functools.reduce(operator.add, parts) if parts else _zeros(sides, trace))
    return jnp.stack(blocks)


def _zeros(sides: Sequence[Any], trace: bool) -> jax.Array:
    """The kernel of two sides that use disjoint slices of a parameter."""
    first, last = (Group((side[0].term,), 1, 1) for side in (sides[0], sides[-1]))
    k = max(num_outputs(placed.term) for side in sides for placed in side)
    outputs = () if trace else (k, k)
    dtype = sum_dtype(jax.tree.leaves(sides)[-1].dtype)
    return jnp.zeros((first.num_examples, last.num_examples, *outputs), dtype)


def gram(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    r"""One group's part of the kernel by XLA, (n, m, k, k), or (n, m) if traced."""
    contraction = gram_pairwise
    if is_materialized(left, right, trace=trace):
        contraction = gram_materialized
    return contraction(left, right, trace=trace)


def is_materialized(left: Group, right: Group | None, *, trace: bool) -> bool:
    """Whether materializing the gradients costs no more than the pairwise contraction."""
    pairwise = _pairwise_cost(left, right, trace=trace)
    return materialized_flops(left, right, trace=trace) <= pairwise


def _is_by_blas(left: Group, right: Group | None, *, trace: bool) -> bool:
    """Whether BLAS materializes and multiplies gradients in the host's memory, by their shapes."""
    many = left.num_vectors(trace=trace) >= LEAST_BLAS_VECTORS
    return many and is_materialized(left, right, trace=trace)


def is_by_blas_here(group: Group, *, trace: bool) -> bool:
    """The same of a symmetric Gram on the default device; False on an accelerator."""
    return jax.default_backend() == "cpu" and _is_by_blas(group, None, trace=trace)


def outer_flops(left: Group, right: Group | None) -> int:
    """Multiplications and additions of materializing the outer products of both sides."""
    made = left.num_examples + (0 if right is None else right.num_examples)
    size = made * left.num_outputs * left.num_rows * left.num_columns
    return sum(2 * t.columns.shape[2] * size for t in left.terms if isinstance(t, Outer))


def materialized_flops(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """Multiplications and additions of ``gram_materialized``."""
    k, size = left.num_outputs, left.num_rows * left.num_columns
    n, m = left.num_examples, (right or left).num_examples
    return outer_flops(left, right) + 2 * n * m * k * (1 if trace else k) * size


def pairwise_flops(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """Multiplications and additions of ``gram_pairwise``; infinite for materialized terms.

    Counted without ``trace``: sides of which only one has cotangents cannot save.  Where ``right``
    is ``None``, two terms of ``left`` meet once, not both ways.
    """
    total = 0.0
    for u, v, _ in _pairs(left, right):
        if isinstance(u, Materialized) or isinstance(v, Materialized):
            return float("inf")
        n, _, t, c = u.columns.shape
        m, _, s, _ = v.columns.shape
        k = max(num_outputs(u), num_outputs(v))
        r = left.num_rows if isinstance(u, Outer) and isinstance(v, Outer) else 1
        total += n * m * t * s * (2 * k * (r + c) + 2 * k * k)
    return total


def _pairwise_cost(left: Group, right: Group | None, *, trace: bool) -> int | float:
    """``pairwise_flops`` and the traffic of token Grams, in operations that take as long."""
    rows, columns = (
        sum(
            term.columns.shape[0] * term.columns.shape[2] * num_outputs(term)
            for term in group.terms
            if not isinstance(term, Materialized)
        )
        for group in (left, right or left)
    )
    return pairwise_flops(left, right, trace=trace) + _PAIR_ENTRY_COST * rows * columns


def _pairs(left: Group, right: Group | None) -> list[tuple[Any, Any, bool]]:
    """The terms that meet, and whether the pair also stands for its transpose."""
    if right is not None:
        return [(u, v, False) for u, v in itertools.product(left.terms, right.terms)]
    # by position: the same term may occur twice
    pairs = itertools.combinations_with_replacement(range(len(left.terms)), 2)
    return [(left.terms[i], left.terms[j], i < j) for i, j in pairs]


def gram_materialized(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    """The Gram by adding all terms of a block of rows and multiplying at once.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    n, m, k = left.num_examples, (right or left).num_examples, left.num_outputs
    sides = (left,) if right is None else (left, right)
    height = gradients.row_block_height(left, right)
    tiles = [(slice(None), slice(None))]
    if right is None:
        tiles = upper_tiles(left.num_vectors(trace=trace), SYMMETRIC_TILE)

    def vectors(group: Group, start: jax.Array | int, size: int) -> jax.Array:
        blocks = [gradients.row_block(term, start, size, k) for term in group.terms]
        block = functools.reduce(operator.add, blocks)
        return block.reshape((group.num_vectors(trace=trace), -1))

    def products(start: jax.Array | int, size: int) -> list[jax.Array]:
        both = [vectors(side, start, size) for side in sides]
        return [_inner(both[0][i], both[-1][j]) for i, j in tiles]

    num_blocks, rest = divmod(left.num_rows, height)
    total = lax.fori_loop(
        1, num_blocks, lambda i, t: _added(t, products(i * height, height)), products(0, height)
    )
    if rest:
        total = _added(total, products(num_blocks * height, rest))
    theta = _mirrored(total, tiles) if right is None else total[0]
    return theta if trace else theta.reshape(n, k, m, k).transpose(0, 2, 1, 3)


def _inner(a: jax.Array, b: jax.Array) -> jax.Array:
    # gradients may come in bfloat16; what they add up to may not
    return lax.dot_general(
        a, b, (((1,), (1,)), ((), ())), preferred_element_type=sum_dtype(a.dtype)
    )


def _inner_all(a: jax.Array, b: jax.Array) -> jax.Array:
    """Inner products (..., ...') of all vectors (..., c) with all vectors (...', c).

    As a product of two matrices: of more axes XLA makes one by transposing all of b in memory.
    """
    flat = _inner(a.reshape(-1, a.shape[-1]), b.reshape(-1, b.shape[-1]))
    return flat.reshape(*a.shape[:-1], *b.shape[:-1])


def _added(a: list[jax.Array], b: list[jax.Array]) -> list[jax.Array]:
    return [x + y for x, y in zip(a, b, strict=True)]


def upper_tiles(n: int, side: int) -> list[tuple[slice, slice]]:
    """Tiles of about the given side, on and above the diagonal of an n x n matrix."""
    count = max(1, round(n / side))
    edges = [round(i * n / count) for i in range(count + 1)]
    spans = [slice(a, b) for a, b in itertools.pairwise(edges)]
    return [(spans[i], spans[j]) for i in range(count) for j in range(i, count)]


def _mirrored(parts: list[jax.Array], tiles: list[tuple[slice, slice]]) -> jax.Array:
    """The whole symmetric matrix from its upper tiles."""
    if len(parts) == 1:
        return parts[0]
    by_tile = {(i.start, j.start): part for (i, j), part in zip(tiles, parts, strict=True)}
    starts = sorted({i.start for i, _ in tiles})
    return jnp.block(
        [[by_tile[i, j] if i <= j else by_tile[j, i].T for j in starts] for i in starts]
    )


def gram_pairwise(left: Group, right: Group | None, *, trace: bool) -> jax.Array:
    """The Gram from Grams of the factors, which materializes no gradient.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    parts = []
    for u, v, both_ways in _pairs(left, right):
        part = _pair(u, v)
        parts += [part, _transposed(part)] if both_ways else [part]
    total = functools.reduce(operator.add, parts)
    k = left.num_outputs
    total = jnp.broadcast_to(total, (*total.shape[:2], k, k))
    return jnp.trace(total, axis1=2, axis2=3) if trace else total


def _pair(u: Any, v: Any) -> jax.Array:
    """Sum over tokens of (r . r') (c . c'), (n, m, k, k), a few examples of u at a time."""
    if isinstance(u, Outer) and isinstance(v, Lookup):
        return _transposed(_pair(v, u))
    m, _, s, _ = v.columns.shape
    per_example = u.columns.shape[2] * num_outputs(u) * m * s * num_outputs(v)

    def one_example(one: Any) -> jax.Array:
        # (k, t, m, k', s) with k or k' one on the sides without cotangents
        product = _left_gram(one, v) * _inner_all(one.columns, v.columns)
        return jnp.sum(product, axis=(1, 4)).transpose(1, 0, 2)

    return lax.map(one_example, u, batch_size=max(1, PAIR_SIZE // per_example))


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


def _transposed(theta: jax.Array) -> jax.Array:
    """The kernel (m, n, k', k) with its sides exchanged."""
    return theta.transpose(1, 0, 3, 2)
