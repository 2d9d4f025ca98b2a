"""Functions for which a cheap form would be wrong: exact all the same."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import taps
from tests import oracles
from tests.ntk.structured.programs import normal
from tests.tolerances import assert_close, relative_difference


def _layers(step, start=lambda x: x, stack=lambda w: w):
    """A loop over the layers of a stacked parameter."""

    def f(w, x):
        return jnp.abs(lax.scan(lambda h, w: (step(h, w), None), start(x), stack(w))[0]).sum(1)

    return f


def _dense(h, w):
    return jnp.tanh(h @ w)


def _idle_while_loop(w, x):
    """A state that no parameter reaches passes through a loop without a reverse mode."""

    def step(state, w):
        h, c = state
        return (jnp.tanh(h @ w) * c, lax.while_loop(lambda a: a < 9, lambda a: a + 1.5, c)), None

    return lax.scan(step, (x, x.dtype.type(0.3)), w)[0][0].sum(1)


def _random_numbers(w, x):
    """Keys pass from layer to layer."""

    def step(state, w):
        h, key = state
        return (jnp.tanh(h @ w) * jax.random.normal(key, (1, 4)), jax.random.split(key)[0]), None

    return lax.scan(step, (x, jax.random.key(0)), w)[0][0].sum(1)


STACK, X = (lambda: normal(0, 3, 4, 4)), (lambda: normal(1, 5, 4))
PROGRAMS = {
    "a real matrix times complex states": (
        lambda w, x: jnp.imag(jnp.fft.rfft(x, axis=1) @ w).sum(1),
        lambda: normal(0, 4, 3),
        lambda: normal(1, 5, 6),
    ),
    "complex states": (_layers(lambda h, w: h @ w * 1j, lambda x: x + 0j), STACK, X),
    "a complex stack": (
        _layers(lambda h, w: h @ w, lambda x: x + 0j, lambda w: w + 0j), STACK, X,
    ),
    "a reshape with its axes transposed": (
        lambda w, x: x @ lax.reshape(w, (6,), (1, 0)) + x**2 @ w.reshape(6),
        lambda: normal(0, 2, 3),
        lambda: normal(1, 5, 6),
    ),
    "a stack rounded to integers": (
        lambda w, x: _layers(_dense, stack=lambda w: w.astype(jnp.int8).astype(x.dtype))(w, x)
        + x @ w[0, 0],
        lambda: 3 * normal(0, 3, 4, 4),
        X,
    ),
    "a stack rounded to float8": (
        _layers(_dense, stack=lambda w: w.astype(jnp.float8_e4m3fn).astype(w.dtype)), STACK, X,
    ),
    **{
        f"a stack rounded to {dtype}": (
            _layers(
                _dense,
                stack=lambda w, d=dtype: w.astype(d).astype(jnp.float32).astype(w.dtype),
            ),
            STACK, X,
        )
        for dtype in ("float16", "bfloat16")
    },
    "the same states read in two splits": (
        lambda p, x: sum(
            jnp.tanh(jnp.einsum(axes, x.reshape(-1, 2, 3), w)).sum(1)
            for axes, w in zip(("nab,abc->nc", "nab,bac->nc"), p, strict=True)
        ),
        lambda: [normal(0, 2, 3, 4), normal(2, 3, 2, 4)],
        lambda: normal(1, 5, 6),
    ),
    "the same states read in two lengths": (
        lambda p, x: sum(jnp.tanh(x @ w.reshape(6, 4)).sum(1) for w in p),
        lambda: [normal(0, 2, 3, 4), normal(2, 3, 2, 4)],
        lambda: normal(1, 5, 6),
    ),
    "states of fewer bits": (
        lambda w, x: (jnp.tanh(x @ w) + jnp.tanh((x.astype(w.dtype) ** 2) @ w)).sum((1, 2)),
        lambda: normal(0, 4, 3),
        lambda: normal(1, 40, 7, 4).astype(jnp.float32),
    ),
    "integer states": (
        lambda w, x: jnp.tanh(x @ w / 20).sum(1),
        lambda: normal(0, 4, 3),
        lambda: np.arange(20).reshape(5, 4),
    ),
    "minus infinity between layers": (
        _layers(
            lambda h, w: jnp.logaddexp(h, (jnp.where(jnp.isinf(h), 0.5, jnp.tanh(h)) @ w)),
            lambda x: jnp.where(x > 0, x, -jnp.inf),
        ),
        STACK, X,
    ),
    "a parameter of eight bits": (
        lambda w, x: jnp.tanh(x @ w.astype(x.dtype)).sum(1),
        lambda: normal(0, 4, 4).astype(jnp.float8_e5m2),
        X,
    ),
    "an empty parameter": (
        lambda p, x: x @ p["w"] + p["z"].sum() + (x[:, :0] @ p["z"]).sum(1),
        lambda: {"w": normal(0, 4), "z": normal(0, 0, 3)},
        X,
    ),
    "a loop of no steps": (
        lambda p, x: lax.scan(lambda h, w: (h @ w, h), x, p["z"])[1].sum((0, 2)) + x @ p["w"],
        lambda: {"w": normal(0, 4), "z": normal(0, 0, 4, 4)},
        X,
    ),
    "an empty sequence": (
        lambda p, x: jnp.tanh(x @ p["w"]).sum((1, 2)) + p["b"] * jnp.ones(len(x)),
        lambda: {"w": normal(0, 4, 3), "b": normal(1)},
        lambda: normal(1, 5, 0, 4),
    ),
    "ids of eight bits": (
        lambda w, x: jnp.tanh(w[x]).sum((1, 2)),
        lambda: normal(0, 300, 3),
        lambda: np.array([[1, 255], [200, 5], [127, 127]], np.uint8),
    ),
    "a while loop that no parameter enters": (_idle_while_loop, STACK, X),
    "keys between layers": (_random_numbers, STACK, X),
}  # fmt: skip


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernel_equals_product_of_dense_jacobians(x64, name):
    f, make_params, make_x = PROGRAMS[name]
    params, x = make_params(), make_x()
    exact = oracles.dense_kernel(f, params, x)[:, :, 0, 0]
    assert np.abs(exact).max() > 1e-3
    assert_close(empirical_ntk(f, params, x), exact)


def test_minus_infinity_does_pass_between_layers():
    f, make_params, make_x = PROGRAMS["minus infinity between layers"]
    assert np.isinf(np.where(make_x() > 0, 0, -np.inf)).any()
    assert np.isfinite(f(make_params(), make_x())).all()


@pytest.mark.parametrize(
    "name", ["a reshape with its axes transposed", "a real matrix times complex states"]
)
def test_without_its_conditions_a_cheap_form_is_wrong(x64, monkeypatch, name):
    f, make_params, make_x = PROGRAMS[name]
    params, x = make_params(), make_x()
    exact = oracles.dense_kernel(f, params, x)[:, :, 0, 0]
    monkeypatch.setattr(taps, "rule_of", lambda equation: taps.RULES.get(equation.primitive.name))
    wrong = empirical_ntk(lambda params, x: f(params, x), params, x)
    assert relative_difference(wrong.real, exact) > 0.1


def _by_length(p, x):
    """Slices and loops that depend on the examples' length."""
    h = jnp.tanh(x @ p["in"] + p["positions"][None, : x.shape[1]])
    if x.shape[1] < 4:
        h = lax.scan(lambda h, w: (_dense(h, w), None), h, p["layers"])[0]
        return h.sum((1, 2)) + x[:, 0, 0] * p["positions"][:2].sum()
    return (h @ p["layers"][0]).sum((1, 2)) * p["layers"].sum() + p["out"] * x[:, 0, 0]


@pytest.mark.parametrize("n", [3, 40])
@pytest.mark.parametrize("lengths", [(3, 5), (5, 3), (1, 2), (6, 7)])
def test_rows_and_columns_of_other_lengths(x64, lengths, n):
    params = {
        "in": normal(0, 3, 4), "positions": normal(1, 9, 4), "layers": normal(2, 3, 4, 4),
        "out": normal(3),
    }  # fmt: skip
    x1, x2 = (normal(4 + i, n + i, length, 3) for i, length in enumerate(lengths))
    exact = oracles.dense_kernel(_by_length, params, x1, x2)[:, :, 0, 0]
    assert_close(empirical_ntk(_by_length, params, x1, x2), exact)
    other = oracles.dense_kernel(_by_length, params, x1, x2[:, ::-1])[:, :, 0, 0]
    assert lengths[1] == 1 or relative_difference(other, exact) > 1e-3


def test_sides_that_use_disjoint_slices_have_a_kernel_of_zeros(x64):
    def f(w, x):
        return x[:, 0] * (w[:2] if x.shape[1] < 3 else w[2:]).sum()

    for n in (2, 40):
        theta = empirical_ntk(f, jnp.ones(4), jnp.ones((n, 2)), jnp.ones((n, 3)))
        assert theta.shape == (n, n)
        assert not theta.any()
        assert empirical_ntk(f, jnp.ones(4), jnp.ones((n, 2))).all()
