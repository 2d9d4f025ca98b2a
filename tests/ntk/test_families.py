"""Families of functions at shapes of every kind, as a peer's tests have them, written anew.

Every family is a list of functions of three parameters p and one example x; each function is an
output of its own.  What shapes do not allow is left out (``test_every_function_is_tested``).
The columns have examples of another shape than the rows.
"""

import functools
import itertools
import math
import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.ntk import interpreter
from tests.ntk.random_programs import normal

# shapes of the three parameters, of an example of the rows, and of one of the columns
SHAPES = [
    ([(3, 3), (3, 3), (3, 3)], (3, 3), (3, 3)),
    ([(3, 3), (3, 3), (3, 3)], (3, 3), (2, 3)),
    ([(2, 2), (2, 2), (2, 2)], (2, 2), (2, 1)),
    ([(4, 2), (2, 4), (4, 1)], (4, 4), (4, 2)),
    ([(3, 2), (2, 3), (3, 1)], (2,), (1,)),
    ([(3, 2), (2, 3), (3, 1)], (2, 4), (2, 2)),
    ([(2, 1), (2, 4), (4, 1)], (1, 2), (2, 2)),
    ([(1, 1), (1, 1), (1, 1)], (1, 1), (1, 3)),
    ([(5,), (5,), (5,)], (5,), (5,)),
    ([(5,), (1, 5), (5, 1)], (5, 5), (1, 5)),
    ([(1,), (1,), (1,)], (2,), (7,)),
    ([(), (), ()], (), ()),
    ([(), (2, 1), (3, 1)], (3,), (1,)),
    ([(2, 3, 4), (2, 4, 3), (4, 3)], (4, 2), (4, 5)),
    ([(0, 3), (3, 0), (0, 3)], (3, 2), (3, 1)),
    ([(2, 2), (0, 2), (1, 2)], (2, 0), (2, 3)),
]
N, M = 2, 3

DIMENSIONS = [
    (((), ()), ((), ())), (((1,), (0,)), ((), ())), (((0,), (0,)), ((), ())),
    (((0, 1), (0, 1)), ((), ())), (((0, 1), (1, 0)), ((), ())), (((1,), (1,)), ((0,), (0,))),
    (((), ()), ((0, 1), (0, 1))), (((), ()), ((1,), (0,))), (((0,), (1,)), ((1,), (0,))),
]  # fmt: skip


def _product(left, right, dimensions):
    return lambda p, x: lax.dot_general(left(p, x), right(p, x), dimensions)


def _p(i):
    return lambda p, x: p[i]


def _x(p, x):
    return x


def _window(size, strides, padding):
    return lambda p, x: lax.reduce_window(p[0], 0.0, lax.add, size, strides, padding)


def _convolution(**settings):
    def f(p, x):
        kernel = jnp.resize(p[0], (4, settings.get("inputs", 2), 2))
        rest = {name: value for name, value in settings.items() if name != "inputs"}
        signal = jnp.resize(x, (1, 2, 6))
        return lax.conv_general_dilated(
            signal, kernel, **{"window_strides": (1,), "padding": "VALID", **rest}
        )

    return f


FAMILIES = {
    "arithmetic": [
        lambda p, x: jnp.abs(p[0]) ** (p[1] + jnp.tanh(x)),
        lambda p, x: p[2] / x + p[0],
        lambda p, x: -p[0] + 2 / p[1] - p[2] * 3,
        lambda p, x: p[1] / p[1] + p[1] * p[1],
        lambda p, x: p[0] * p[0][..., :1] - p[1] / p[0],
        lambda p, x: [p[0], x, p[0] * x, (x**2, p[2])],
        lambda p, x: x**2,
        lambda p, x: jnp.ones(3, x.dtype),
    ],
    "reductions": [
        lambda p, x: sum(jnp.sum(leaf) for leaf in p) * jnp.sum(x),
        lambda p, x: math.prod([jnp.prod(leaf) for leaf in p]),
        lambda p, x: [jnp.sum(p[0], axis=0), jnp.sum(p[0], axis=-1, keepdims=True)],
        lambda p, x: jnp.sum(p[2] * p[1]) + jnp.max(p[2]),
        lambda p, x: jnp.linalg.norm(p[0]) * p[2],
        lambda p, x: jnp.cumsum(p[0], axis=0) * jnp.cumprod(p[1]).sum(),
    ],
    "products of matrices": [
        lambda p, x: p[0] @ p[1] @ x,
        lambda p, x: p[0].T @ p[0],
        lambda p, x: (p[0] @ p[1], p[1].T, p[0]),
        lambda p, x: p[2] @ p[0] @ p[1],
        lambda p, x: (p[0] @ p[1].T) @ (p[2].T @ p[1]) @ x,
        lambda p, x: jnp.sum(p[0] @ p[0]) * p[1],
        lambda p, x: x @ p[0],
        lambda p, x: jnp.vdot(p[0], p[0]) * x,
    ],
    **{
        f"products, {name}": [_product(left, right, dims) for dims in DIMENSIONS]
        for name, left, right in [
            ("parameter first", _p(0), _x), ("parameter last", _x, _p(0)),
            ("two parameters", _p(0), _p(1)), ("one parameter twice", _p(0), _p(0)),
        ]
    },
    "shapes": [
        lambda p, x: p[0].reshape(-1) * jnp.arange(p[0].size),
        lambda p, x: [p[0].reshape(2, -1), p[0].reshape(-1, 2), p[0].T.reshape(2, -1)],
        lambda p, x: p[0].reshape(1, -1) @ p[1].reshape(-1, 1),
        lambda p, x: jnp.squeeze(jnp.expand_dims(p[0], 0)) * jnp.squeeze(p[0]),
        lambda p, x: lax.reshape(p[0], (1, p[0].size), tuple(range(p[0].ndim))[::-1]) * x.sum(),
        lambda p, x: lax.reshape(p[2], (*p[2].shape[::-1], 1), tuple(range(p[2].ndim))[::-1]),
        lambda p, x: lax.reshape(p[1], (p[1].size, 1, 1), tuple(range(p[1].ndim))),
        lambda p, x: jnp.broadcast_to(p[1], (2, *p[1].shape)),
        lambda p, x: p[0][:1] * jnp.flip(p[0])[..., -1:],
        lambda p, x: p[1] * p[0].ravel()[0] + p[0].ravel()[-1],
    ],
    "stacks": [
        *[lambda p, x, axes=axes: jnp.stack(p).transpose(axes) ** 2
          for axes in itertools.permutations(range(3))],
        lambda p, x: jnp.concatenate([p[0], p[1], p[0].T], 0) * x.sum(),
        lambda p, x: jnp.concatenate([p[0], p[0]], -1),
        lambda p, x: (jnp.concatenate([p[0], x], 1) @ jnp.concatenate([p[1], p[2]], 0)) ** 2,
        lambda p, x: jnp.stack(p, 1)[:, None].swapaxes(0, 2),
    ],
    "reversals, margins, windows": [
        lambda p, x: [lax.rev(leaf, range(leaf.ndim)) for leaf in p],
        lambda p, x: lax.rev(p[0], (0,)) * p[0],
        lambda p, x: lax.pad(p[0], 1.0, [(0, 1, 2)] * p[0].ndim) * x.sum(),
        lambda p, x: lax.pad(p[2], 2.0, [(-1, 1, 0)] * p[2].ndim),
        lambda p, x: jnp.pad(p[0], [(2, 3), (0, 0)], "wrap"),
        lambda p, x: jnp.pad(p[0], [(0, 0), (1, 0)], "maximum"),
        _window((1, 2), (1, 1), [(0, 0), (0, 1)]),
        _window((2, 2), (1, 2), [(2, 3), (0, 0)]),
    ],
    "complex numbers": [
        lambda p, x: jnp.abs(lax.complex(p[0], p[1]) * lax.complex(p[2], p[0])),
        lambda p, x: jnp.imag(lax.conj(lax.complex(p[0], p[1])) @ p[2]),
        lambda p, x: jnp.real(p[2]) + jnp.abs(-p[2]),
        lambda p, x: jnp.abs(jnp.fft.fft(p[0])) * x.sum(),
    ],
    "loops": [
        lambda p, x: lax.map(lambda s: 2 * s + 1, p[0]) * jnp.sum(p[1]),
        lambda p, x: lax.map(lambda s: -s / 2, p[0]) * lax.map(jnp.sin, p[0]),
        lambda p, x: [lax.map(lambda s: lax.map(lambda t: t**2, s), p[0]), p[0]],
        lambda p, x: lax.scan(lambda c, s: (c * s.sum(), c), x.sum(), p[0]),
        lambda p, x: lax.scan(lambda c, w: (jnp.tanh(w @ c), None), x, jnp.stack(p))[0],
        lambda p, x: lax.fori_loop(0, 3, lambda i, c: jnp.tanh(p[0] @ c), x),
    ],
    "convolutions": [
        _convolution(),
        _convolution(padding="SAME"),
        _convolution(window_strides=(2,), padding=[(1, 2)]),
        _convolution(lhs_dilation=(2,), padding=[(1, 0)]),
        _convolution(rhs_dilation=(3,)),
        _convolution(feature_group_count=2, inputs=1),
    ],
}  # fmt: skip


def _outputs(functions, p, x):
    """A number of each function's results, for all examples."""

    def one(x):
        numbers = []
        for f in functions:
            leaves = [jnp.ravel(jnp.asarray(y)) for y in jax.tree.leaves(f(p, x))]
            numbers.append(sum(leaf @ np.cos(np.arange(leaf.size)) for leaf in leaves))
        return jnp.stack(numbers)

    return jax.vmap(one)(x)


@pytest.fixture(scope="module", autouse=True)
def _memory():
    """Traced programs are dropped at the end."""
    yield
    jax.clear_caches()


@functools.cache
def _problem(family, number):
    """What of a family these shapes allow, parameters, and the examples of both sides."""
    shapes, *sides = SHAPES[number]
    p = [normal(i, *shape) for i, shape in enumerate(shapes)]
    rows, columns = (normal(5 + n, n, *shape) for n, shape in zip((N, M), sides, strict=True))
    return [f for f in FAMILIES[family] if _fits(f, p, rows, columns)], p, [rows, columns]


def _fits(f, *arguments):
    p, *sides = arguments
    try:
        return all(
            jax.eval_shape(functools.partial(_outputs, [f]), p, x).dtype == jnp.float64
            for x in sides
        )
    except (TypeError, ValueError, IndexError, ZeroDivisionError):
        return False


# all shapes in `make fuzz`; else three that allow most, and for each family another one (a
# convolution has lengths of its own)
EVERYTHING = int(os.environ.get("FUZZ_PROGRAMS", "0")) > 300
CASES = [
    (family, number)
    for i, family in enumerate(FAMILIES)
    for number in range(len(SHAPES))
    if (EVERYTHING or number in (0, 2, 3, i + 3))
    and (family != "convolutions" or number in (0, 15))
]


@pytest.mark.parametrize(("family", "number"), CASES)
def test_family(x64, family, number):
    functions, p, sides = _problem(family, number)
    if not functions:
        return
    f = functools.partial(_outputs, functions)
    exact = interpreter.dense_kernel(f, p, sides)
    finite = np.isfinite(exact).all(axis=(0, 1, 3))  # 0 / 0 of an empty mean, say
    theta = interpreter.structured_kernel(f, p, sides)[:, :, finite][..., finite]
    exact = exact[:, :, finite][..., finite]
    assert exact.size
    np.testing.assert_allclose(theta, exact, rtol=0, atol=1e-10 * max(1, np.abs(exact).max()))


def test_every_function_is_tested(x64):
    for name, family in FAMILIES.items():
        used = [f for case in CASES if case[0] == name for f in _problem(*case)[0]]
        assert set(family) == set(used), [i for i, f in enumerate(family) if f not in used]
