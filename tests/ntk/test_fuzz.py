"""Random programs: every method's kernel against a dense float64 product of Jacobians.

Hypothesis draws a list of operations, which are applied one after the other.  ``make fuzz`` draws
20,000 programs; a run of the tests a few of them, and every one that ever failed.
"""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jax import lax

from lensllm_jax.ntk.gram import NtkMethod, empirical_ntk
from lensllm_jax.ntk.operator import ntk_matvec
from tests import oracles
from tests.ntk.structured.programs import normal

NUM_PROGRAMS = int(os.environ.get("FUZZ_PROGRAMS", "20"))
N, WIDTH, LAYERS, ROWS = 3, 4, 3, 5
TOLERANCE = 1e-9  # relative to the largest entry

# what a use of the stack (LAYERS, WIDTH, WIDTH) or the table (ROWS, WIDTH) may see: a matrix
VIEWS = {
    "slice": lambda p: p["w"][1],
    "transposed": lambda p: p["w"].transpose(0, 2, 1)[0],
    "merged": lambda p: p["w"].reshape(LAYERS * WIDTH, WIDTH)[2:6],
    "reshaped in another order": lambda p: lax.reshape(p["w"][0], (WIDTH, WIDTH), (1, 0)),
    "split": lambda p: p["w"].reshape(LAYERS, 2, 2, WIDTH)[2].reshape(WIDTH, WIDTH),
    "strided": lambda p: p["w"][::2][1],
    "summed": lambda p: p["w"][:2].sum(0),
    "rounded to integers": lambda p: (3 * p["w"][0]).astype(jnp.int8).astype(float) + p["w"][1],
    "complex and back": lambda p: (p["w"][2] * (1 + 2j)).imag,
    "rows of the table": lambda p: p["t"][:WIDTH],
    "product": lambda p: p["w"][0] @ p["w"][1].T,
    "sorted": lambda p: jnp.sort(p["w"][1], axis=0),
    "stopped": lambda p: p["w"][0] * lax.stop_gradient(p["w"][0]),
}


@jax.custom_jvp
def _odd(h):
    return jnp.tanh(h)


@_odd.defjvp
def _(primals, tangents):
    return jnp.tanh(primals[0]), 0.5 * tangents[0]


def _scan(p, h, *, reverse=False, stacks=False, dtype=None):
    def step(state, w):
        h, count, idle = state
        idle = lax.while_loop(lambda a: a < 9, lambda a: a + 1.5, idle)
        h = jnp.tanh(h @ w) * (1 + count % 2)
        return (h, count + 1, idle), h if stacks else None

    start = (h if dtype is None else h.astype(dtype), jnp.int32(0), jnp.float64(0.5))
    (h, _, idle), stacked = lax.scan(step, start, p["w"], reverse=reverse)
    return (jnp.abs(h) if dtype else h) * idle / 9 + (stacked.sum(0) if stacks else 0)


def _ids(x):
    return (jnp.abs(x[:, :2]) * 10).astype(jnp.int8) % ROWS


# from parameters, one view of them, the state h (n, WIDTH) and the batch
OPERATIONS = {
    "dense": lambda p, w, h, x: jnp.tanh(h @ w),
    "left": lambda p, w, h, x: jnp.sin(w @ h.T).T,
    "two heads of one state": lambda p, w, h, x: jnp.tanh((h @ w) * (h @ p["w"][0])),
    "heads of another split": lambda p, w, h, x: h + jnp.einsum(
        "nab,abc->nc", h.reshape(-1, 2, 2), jnp.tanh(w).reshape(2, 2, WIDTH)
    ),
    "single precision states": lambda p, w, h, x: jnp.tanh(
        (8 * h).astype(jnp.int8).astype(jnp.float32) @ w + h
    ),
    "bias": lambda p, w, h, x: h + p["b"][None],
    "scale": lambda p, w, h, x: h * p["b"].reshape(2, 2).T.reshape(1, WIDTH),
    "lookup": lambda p, w, h, x: h + jnp.tanh(p["t"][_ids(x)]).sum(1),
    "lookup, filled": lambda p, w, h, x: h
    + p["t"].at[_ids(x) + 2].get(mode="fill", fill_value=1.0).sum(1),
    "tied head": lambda p, w, h, x: h * jax.nn.logsumexp(h @ p["t"].T, axis=1, keepdims=True),
    "complex": lambda p, w, h, x: jnp.abs(jnp.fft.fft(h, axis=1) @ w),
    "spectrum": lambda p, w, h, x: h + jnp.imag(jnp.fft.rfft(h, axis=1) @ w[:3]),
    "layers": lambda p, w, h, x: _scan(p, h),
    "layers, backward": lambda p, w, h, x: _scan(p, h, reverse=True),
    "layers, stacked": lambda p, w, h, x: _scan(p, h, stacks=True),
    "layers, complex": lambda p, w, h, x: _scan(p, h + 1j, dtype=complex),
    "one layer, three times": lambda p, w, h, x: lax.fori_loop(
        0, 3, lambda _, h: jnp.tanh(h @ w), h
    ),
    "minus infinity": lambda p, w, h, x: jnp.where(
        h > 0, jnp.logaddexp(jnp.where(h > 0, -jnp.inf, h), h @ w), h
    ),
    "masked attention": lambda p, w, h, x: h
    + jax.nn.softmax(jnp.where(jnp.arange(WIDTH)[None] < 3, h @ w, -jnp.inf), axis=1),
    "empty": lambda p, w, h, x: h + (h[:, :0] @ p["z"]).sum() + p["z"].sum() + p["w"][:0].sum(),
    "called": lambda p, w, h, x: jax.jit(jax.checkpoint(lambda w, h: jnp.tanh(h @ w)))(w, h),
    "a derivative of its own": lambda p, w, h, x: _odd(h @ _odd(w)),
}  # fmt: skip

STEP = st.tuples(st.sampled_from(sorted(OPERATIONS)), st.sampled_from(sorted(VIEWS)))
PROGRAM = st.lists(STEP, min_size=1, max_size=5)

# programs that once failed, and each operation alone
SEEDS = [[(name, "slice")] for name in sorted(OPERATIONS)] + [
    [("dense", name)] for name in sorted(VIEWS)
]


def parameters():
    return {
        "w": normal(0, LAYERS, WIDTH, WIDTH) / 2,
        "b": normal(1, WIDTH),
        "t": normal(2, ROWS, WIDTH),
        "z": jnp.zeros((0, WIDTH)),
        "idle": normal(3),
    }


def function(program, num_outputs):
    def f(p, x):
        h = x
        for name, view in program:
            h = OPERATIONS[name](p, VIEWS[view](p), h, x)
        return h @ jnp.arange(1.0, WIDTH + 1) if num_outputs is None else h[:, :num_outputs]

    return f


def differences(program, num_outputs):
    """Of each method, relative to the largest entry of the dense kernel."""
    f, p, x = function(program, num_outputs), parameters(), normal(4, N, WIDTH)
    exact = oracles.dense_kernel(f, p, x)
    largest = max(np.abs(exact).max(), 1e-30)
    k = num_outputs or 1
    v = np.random.default_rng(0).normal(size=(N, k))
    product = np.einsum("ijab,jb->ia", exact, v)
    got = {
        method: empirical_ntk(f, p, x, method=method).reshape(N, N, k, k) - exact
        for method in (NtkMethod.STRUCTURED, NtkMethod.JACOBIAN_CONTRACTION)
    }
    shape = (N,) if num_outputs is None else (N, k)
    got["product"] = ntk_matvec(f, p, x, v.reshape(shape)).reshape(N, k) - product
    return {name: np.abs(difference).max() / largest for name, difference in got.items()}


@pytest.mark.parametrize("program", SEEDS, ids=lambda program: " then ".join(map(str, program)))
def test_each_operation_alone(x64, program):
    assert max(differences(program, None).values()) < TOLERANCE


def test_random_programs(x64):
    @settings(
        max_examples=NUM_PROGRAMS, deadline=None, derandomize=NUM_PROGRAMS < 100,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(PROGRAM, st.sampled_from([None, 2]))
    def check(program, num_outputs):
        found = differences(program, num_outputs)
        assert max(found.values()) < TOLERANCE, found

    check()


def test_a_wrong_kernel_is_noticed(x64, monkeypatch):
    monkeypatch.setattr(oracles, "dense_kernel", lambda f, p, x: _other(f, p, x))
    assert min(differences([("dense", "slice")], None).values()) > 1e-3


def _other(f, p, x):
    jacobian = oracles.dense_jacobian(f, jax.tree.map(lambda leaf: leaf * 1.1, p), x)
    return np.einsum("iap,jbp->ijab", jacobian, jacobian)
