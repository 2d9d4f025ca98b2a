"""Products of bfloat16 matrices and their derivatives, against dense float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.models.products import dense_dot, product, tied_head
from tests.tolerances import assert_close, relative_difference

ROUNDED_ONCE = 2.0**-8  # bfloat16 keeps 8 bits; relative to the largest number, less


def matrices(*shapes):
    rng = np.random.default_rng(0)
    return [jnp.asarray(rng.normal(size=shape), jnp.bfloat16) for shape in shapes]


def exact(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


# 1,000 numbers in a sum: enough to see which type holds it
@pytest.mark.parametrize(("m", "k", "n"), [(1000, 1000, 3), (1, 7, 1), (64, 48, 1000)])
def test_product_and_derivatives_are_rounded_once(m, k, n):
    x, w, gradient = matrices((m, k), (k, n), (m, n))
    found, pull_back = jax.vjp(product, x, w)
    by_x, by_w = pull_back(gradient)
    a, b, g = exact(x, w, gradient)
    for got, expected in ((found, a @ b), (by_x, g @ b.T), (by_w, a.T @ g)):
        assert got.dtype == jnp.bfloat16
        assert relative_difference(got, expected) <= ROUNDED_ONCE


def test_a_sum_in_bfloat16_is_seen():
    x, w = matrices((20, 1000), (1000, 3))
    total = jnp.zeros((20, 3), jnp.bfloat16)
    for i in range(1000):
        total = total + x[:, i : i + 1] * w[i : i + 1]
    assert relative_difference(total, np.matmul(*exact(x, w))) > 4 * ROUNDED_ONCE


# slices of 2,048 and of 1,733 tokens; no slices, for those of a prime number have one token; few
@pytest.mark.parametrize("vocab_size", [4096, 3466, 4099, 6])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_tied_head_and_derivatives(vocab_size, dtype):
    x, table, gradient = matrices((33, 48), (vocab_size, 48), (33, vocab_size))
    table = table.astype(dtype)
    logits, pull_back = jax.vjp(tied_head, x, table)
    by_x, by_table = pull_back(gradient)
    a, e, g = exact(x, table, gradient)
    assert logits.dtype == by_x.dtype == jnp.bfloat16
    assert by_table.dtype == dtype
    assert relative_difference(logits, a @ e.T) <= ROUNDED_ONCE
    assert relative_difference(by_x, g @ e) <= ROUNDED_ONCE
    assert_close(by_table, g.T @ a, rel=ROUNDED_ONCE if dtype == "bfloat16" else 1e-5)
    assert relative_difference(logits, np.roll(a @ e.T, 1, axis=1)) > 0.1  # the control


def test_tied_heads_side_by_side_are_those_alone():
    x, table = matrices((2, 5, 8), (2, 4096, 8))

    def gradient(x, table):
        return jax.grad(lambda *a: jnp.sum(tied_head(*a).astype(jnp.float32) ** 2), (0, 1))(
            x, table
        )

    for together, *alone in zip(
        jax.vmap(gradient)(x, table),
        gradient(x[0], table[0]),
        gradient(x[1], table[1]),
        strict=True,
    ):
        np.testing.assert_array_equal(together, jnp.stack(alone))


def test_leading_axes_are_as_many_rows():
    x, w = matrices((2, 5, 8), (8, 3))
    apart = dense_dot(x, w, (((2,), (0,)), ((), ())), precision=None)
    assert apart.shape == (2, 5, 3)
    assert (apart.reshape(10, 3) == product(x.reshape(10, 8), w)).all()
