r"""Product: :math:`x W` of bfloat16 matrices, summed in float32, as a CPU computes it fast.

The numbers are those of ``jax.lax.dot_general`` but for the order of its sums.  What differs is
the form in which XLA reads it: it has kernels for bfloat16 (on processors with AMX or AVX512-BF16)
for products whose result is float32 and whose first factor is summed over its last axis; any other
it turns into float32 first.  With :math:`G` the derivative by the product, the derivatives

.. math:: \partial x = G W^\top, \qquad \partial W = x^\top G

are written in that form too.

The head of a large vocabulary is a product that no cache holds: the table is taken a slice of
tokens at a time.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.models.products import product
    >>> product(jnp.ones((2, 3), jnp.bfloat16), jnp.ones((3, 4), jnp.bfloat16))[0, 0]
    Array(3, dtype=bfloat16)
"""

from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import DTypeLike
from jaxtyping import BFloat16, Float

from lensllm_jax.typing import Array

_SLICE = 2048  # tokens of a table that stay in a cache
_SMALLEST_SLICE = 128  # below, a loop takes longer than it saves


def is_bfloat16_on_cpu(dtype: DTypeLike | None) -> bool:
    """Whether what is computed in ``dtype`` takes the forms that XLA has fast kernels for."""
    if dtype is None or jax.default_backend() != "cpu":
        return False
    return jnp.dtype(dtype) == jnp.bfloat16


def dense_dot(
    x: BFloat16[Array, "*b k"], w: BFloat16[Array, "k n"], *_: Any, **__: Any
) -> BFloat16[Array, "*b n"]:
    """``product`` as ``flax.linen.Dense`` calls it: over the last axis of x, precision aside."""
    return product(x.reshape(-1, x.shape[-1]), w).reshape(*x.shape[:-1], -1)


@jax.custom_vjp
def product(x: BFloat16[Array, "m k"], w: BFloat16[Array, "k n"]) -> BFloat16[Array, "m n"]:
    r"""The matrix :math:`x W`, rounded to bfloat16 once, after the sum.

    Args:
        x: states, m of them.
        w: a matrix of weights.
    """
    return _summed(x, w, w_axis=0).astype(x.dtype)


def _summed(x: Array, w: Array, *, w_axis: int) -> Float[Array, "m n"]:
    axes = (((1,), (w_axis,)), ((), ()))
    return lax.dot_general(x, w, axes, preferred_element_type=jnp.float32)


def _summed_over_rows(x: Array, w: Array) -> Float[Array, "m n"]:
    # One more row, of zeros: XLA would undo the transposition of x itself.
    transposed = jnp.pad(x.T, ((0, 0), (0, 1)))
    return _summed(transposed, jnp.pad(w, ((0, 1), (0, 0))), w_axis=0)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, w), (x, w)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = saved
    by_x, by_w = _summed(gradient, w, w_axis=1), _summed_over_rows(x, gradient)
    return by_x.astype(x.dtype), by_w.astype(w.dtype)


product.defvjp(_forward, _backward)


@jax.custom_vjp
def tied_head(x: BFloat16[Array, "m k"], table: Float[Array, "v k"]) -> BFloat16[Array, "m v"]:
    r"""The logits :math:`x E^\top`, rounded to bfloat16 once, of a table that is kept in any type.

    Args:
        x: states, m of them.
        table: the embeddings of v tokens; multiplied in bfloat16.
    """
    return _head_forward(x, table)[0]


def _slice_size(num_tokens: int) -> int:
    size = max(t for t in range(1, min(num_tokens, _SLICE) + 1) if num_tokens % t == 0)
    return num_tokens if size < _SMALLEST_SLICE else size


def _head_forward(x: Array, table: Array) -> tuple[Array, tuple[Array, Array, Array]]:
    (v, _), size = table.shape, _slice_size(len(table))
    rounded = table.astype(x.dtype)

    def put(i, logits):
        rows = lax.dynamic_slice_in_dim(rounded, i * size, size)
        part = _summed(x, rows, w_axis=1)
        return lax.dynamic_update_slice_in_dim(logits, part, i * size, axis=1)

    logits = lax.fori_loop(0, v // size, put, jnp.zeros((len(x), v), jnp.float32))
    of_its_type = jnp.zeros((0,), table.dtype)  # only arrays can be kept
    return logits.astype(x.dtype), (x, rounded, of_its_type)


def _head_backward(saved: tuple[Array, Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, rounded, of_its_type = saved
    size = _slice_size(len(rounded))
    starts = jnp.arange(0, len(rounded), size)

    def columns(start):
        return lax.dynamic_slice_in_dim(gradient, start, size, axis=1)

    def add(by_x, start):
        rows = lax.dynamic_slice_in_dim(rounded, start, size)
        return by_x + _summed(columns(start), rows, w_axis=0), None

    by_x, _ = lax.scan(add, jnp.zeros(x.shape, jnp.float32), starts)
    # a loop of its own, which nobody computes where the table is frozen
    by_rows = lax.map(lambda start: _summed_over_rows(columns(start), x), starts)
    return by_x.astype(x.dtype), by_rows.reshape(rounded.shape).astype(of_its_type.dtype)


tied_head.defvjp(_head_forward, _head_backward)
