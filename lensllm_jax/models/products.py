r"""Product: :math:`x W` of bfloat16 matrices, summed in float32, as a CPU computes it fast.

The numbers are those of ``jax.lax.dot_general`` but for the order of its sums.  What differs is
the form in which XLA reads it: it has kernels for bfloat16 (on processors with AMX or AVX512-BF16)
for products whose result is float32 and whose first factor is summed over its last axis; any other
it turns into float32 first.  With :math:`G` the derivative by the product, the derivatives

.. math:: \partial x = G W^\top, \qquad \partial W = x^\top G

are written in that form too.

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
from jaxtyping import BFloat16

from lensllm_jax.typing import Array


def is_bfloat16_on_cpu(dtype: jnp.dtype | None) -> bool:
    """Whether what is computed in ``dtype`` takes the forms that XLA has fast kernels for."""
    return dtype == jnp.bfloat16 and jax.default_backend() == "cpu"


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
    return _summed(x, w, w_axis=0)


def _summed(x: Array, w: Array, *, w_axis: int) -> Array:
    axes = (((1,), (w_axis,)), ((), ()))
    return lax.dot_general(x, w, axes, preferred_element_type=jnp.float32).astype(x.dtype)


def _forward(x: Array, w: Array) -> tuple[Array, tuple[Array, Array]]:
    return product(x, w), (x, w)


def _backward(saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, w = saved
    # One more state, of zeros: XLA would undo the transposition of x itself.
    transposed = jnp.pad(x.T, ((0, 0), (0, 1)))
    padded = jnp.pad(gradient, ((0, 1), (0, 0)))
    return _summed(gradient, w, w_axis=1), _summed(transposed, padded, w_axis=0)


product.defvjp(_forward, _backward)
