"""Random programs: a few operations, one after the other, each on a random view of a parameter.

A program is data, so that one which failed can be written down: steps (operation, number, moves),
how many outputs an example has, and how many examples the columns have.  ``None`` stands for
outputs (n,), and for the rows' own examples.
"""

import functools
import itertools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from tests.ntk.structured.programs import halved_gradient, normal

N, WIDTH, LAYERS, ROWS = 3, 4, 3, 5


class Program(NamedTuple):
    steps: tuple
    num_outputs: int | None
    num_columns: int | None


@functools.cache
def parameters():
    return {
        "w": normal(0, LAYERS, WIDTH, WIDTH) / 2,
        "b": normal(1, WIDTH),
        "t": normal(2, ROWS, WIDTH),
        "u": normal(3, LAYERS, WIDTH),
        "z": jnp.zeros((0, WIDTH)),
        "idle": normal(4),
    }


@functools.cache
def rows():
    return normal(5, N, WIDTH)


@functools.cache
def columns(num_columns):
    return normal(6, num_columns, WIDTH)


def function(program):
    def f(p, x):
        h = x
        for operation, i, moves in program.steps:
            w = p["w"]
            for move, j in moves:
                w = MOVES[move](w, j)
            h = jnp.arcsinh(OPERATIONS[operation](p, w, h, x, i))  # which stays in bounds
        k = program.num_outputs
        return h @ jnp.arange(1.0, WIDTH + 1) if k is None else h[:, :k]

    return f


@functools.cache
def _shapes(size):
    """All ways to write a size as a product of up to four numbers above one."""
    lengths = [d for d in range(2, size + 1) if size % d == 0]
    longer = [(d, *rest) for d in lengths if d < size for rest in _shapes(size // d)]
    return [(size,), *(shape for shape in longer if len(shape) < 5)]


def _of(choices, i):
    return choices[i % len(choices)]


def _part(w, i):
    """Half of an axis."""
    axis = i % w.ndim
    half, start = (w.shape[axis] + 1) // 2, (i // w.ndim) % 3
    return lax.slice_in_dim(w, start * (w.shape[axis] - half) // 2, None, axis=axis)


def _row(w, i):
    """One index of an axis, which is dropped."""
    axis = i % w.ndim
    return lax.index_in_dim(w, i % w.shape[axis], axis, keepdims=False) if w.ndim > 1 else w


def _in_another_order(w, i):
    order = _of(list(itertools.permutations(range(w.ndim))), i)
    return lax.reshape(w, _of(_shapes(w.size), i) if w.size > 1 else (1,), order)


# from a view of any shape and a number to another
MOVES = {
    "transposed": lambda w, i: w.transpose(_of(list(itertools.permutations(range(w.ndim))), i)),
    "reshaped": lambda w, i: w.reshape(_of(_shapes(w.size), i) if w.size > 1 else (1,)),
    "reshaped in another order": _in_another_order,
    "part": _part,
    "row": _row,
    "strided": lambda w, i: w[tuple(slice(None, None, 2 if a == i % w.ndim else 1)
                                    for a in range(w.ndim))],
    "reversed": lambda w, i: jnp.flip(w, i % w.ndim),
    "longer by an axis": lambda w, i: jnp.expand_dims(w, i % (w.ndim + 1)),
    "twice": lambda w, i: jnp.concatenate([w, 2 * w], axis=i % w.ndim),
    "summed": lambda w, i: w.sum(i % w.ndim, keepdims=True) + w,
    "rounded to integers": lambda w, i: (3 * w).astype(jnp.int8).astype(float) + w / (1 + i),
    "only integers": lambda w, i: w.astype(jnp.int8).astype(w.dtype),
    "complex and back": lambda w, i: (w * (1 + 2j)).imag,
    "real of complex": lambda w, i: w.astype(complex).real,
    "sorted": lambda w, i: jnp.sort(w, axis=i % w.ndim),
    "stopped": lambda w, i: w * lax.stop_gradient(w),
    "called": lambda w, i: jax.jit(lambda w: w.T)(w),
    "recomputed": lambda w, i: jax.checkpoint(lambda w: w.reshape(-1, w.shape[-1]))(w),
    "a derivative of its own": lambda w, i: halved_gradient(w),
    "chosen": lambda w, i: jnp.where(w > 0, w, w**2),
}  # fmt: skip


def _square(w):
    """A matrix (WIDTH, WIDTH), by slices where they do."""
    size = WIDTH * WIDTH
    if w.size < size:
        return jnp.resize(w, (WIDTH, WIDTH))
    rest = w.size // w.shape[0]
    if size % rest == 0:
        return w[: size // rest].reshape(WIDTH, WIDTH)
    return w.reshape(-1)[:size].reshape(WIDTH, WIDTH)


def _wide(w):
    """A matrix (WIDTH, ...) of all numbers."""
    return w.reshape(WIDTH, -1) if w.size % WIDTH == 0 else _square(w)


def _stack(w):
    """Layers: as many as there are numbers for."""
    size = w.size - w.size % (WIDTH * WIDTH)
    flat = w.reshape(-1)[:size] if size else _square(w).reshape(-1)
    return flat.reshape(-1, WIDTH, WIDTH)


def _scan(p, h, stack, *, reverse=False, stacks=False):
    """Layers, beside them a count and a state that no parameter reaches."""

    def step(state, w):
        h, count, idle = state
        idle = lax.while_loop(lambda a: a < 9, lambda a: a + 1.5, idle)
        h = jnp.tanh(h @ w) * (1 + count % 2)
        return (h, count + 1, idle), h if stacks else None

    start = (h, jnp.int32(0), jnp.float64(0.5))
    (h, _, idle), stacked = lax.scan(step, start, stack, reverse=reverse)
    return jnp.abs(h) * idle / 9 + (stacked.sum(0) if stacks else 0)


def _two_stacks(p, w, h, x, i):
    def step(state, layer):
        (w, u), number = layer
        return jnp.tanh(state @ w) * (u[None] + number), None

    return lax.scan(step, h, ((p["w"], p["u"]), jnp.arange(LAYERS)), reverse=bool(i % 2))[0]


def _nested_loops(p, w, h, x, i):
    def outer(state, w):
        return lax.scan(lambda h, u: (jnp.sin(h @ w) + u[None], None), state, p["u"])[0], None

    return lax.scan(outer, h, p["w"])[0]


def _parameter_as_state(p, w, h, x, i):
    def step(state, w):
        h, b = state
        return (jnp.tanh(h @ w + b[None]), b * 1.5), None

    return lax.scan(step, (h, p["b"]), p["w"])[0][0]


def _random_numbers(p, w, h, x, i):
    def step(state, w):
        h, key = state
        noise = jax.random.uniform(key, (1, WIDTH))
        return (jnp.tanh(h @ w) * noise, jax.random.fold_in(key, 1)), None

    return lax.scan(step, (h, jax.random.key(i)), _stack(w))[0][0]


def _attention(p, w, h, x, i):
    tokens = jnp.stack([h, x, h * x], axis=1)
    q, k, v = tokens @ _square(w), tokens @ p["w"][1], tokens @ p["w"][2].T
    scores = jnp.where(jnp.tri(3, dtype=bool)[None], jnp.einsum("nsd,ntd->nst", q, k), -jnp.inf)
    return jnp.einsum("nst,ntd->nsd", jax.nn.softmax(scores, axis=2), v)[:, 2]


def _solved(p, w, h, x, i):
    matrix = _square(w)
    return jnp.linalg.solve(matrix @ matrix.T + 3 * jnp.eye(WIDTH), h.T).T


def _branch(p, w, h, x, i):
    return lax.cond(
        p["b"][i % WIDTH] > 0, lambda w: h @ w, lambda w: jnp.sin(h) * w[:1], _square(w)
    )


def _ids(x, rows=ROWS):
    return (jnp.abs(x[:, :2]) * 10).astype(jnp.int8) % rows


_HEADS = ("nab,abc->nc", "nab,bac->nc", "nab,acb->nc", "nab,cab->nc", "abc,nba->cn", "cba,nab->cn")


def _heads(p, w, h, x, i):
    equation = _of(_HEADS, i)
    h, w = h.reshape(-1, 2, 2), jnp.resize(w, (2, 2, WIDTH)) if w.size < 16 else _square(w)
    lengths = {"a": 2, "b": 2, "c": WIDTH}
    term = next(t for t in equation.split("->")[0].split(",") if "n" not in t)
    w = w.reshape([lengths[letter] for letter in term])
    y = jnp.einsum(equation, *((w, h) if equation.startswith(term) else (h, w)))
    return y.T if equation.endswith("cn") else y


def _convolved(p, w, h, x, i):
    kernel = _square(w)[:, None, : 1 + i % 3]
    return lax.conv_general_dilated(h[:, None], kernel, (1,), "SAME").sum(2)


# from all parameters, a view of one, the state h (n, WIDTH), the batch and a number
OPERATIONS = {
    "dense": lambda p, w, h, x, i: h @ _square(w),
    "wide": lambda p, w, h, x, i: jnp.resize(
        jnp.tanh(h @ _wide(w)).T, (WIDTH * math.ceil(_wide(w).shape[1] / WIDTH), h.shape[0])
    ).reshape(-1, WIDTH, h.shape[0]).sum(0).T,
    "left": lambda p, w, h, x, i: (_square(w) @ h.T).T,
    "two heads of one state": lambda p, w, h, x, i: (h @ _square(w)) * (h @ p["w"][0]),
    "heads": _heads,
    "batched": lambda p, w, h, x, i: jnp.einsum(
        "nab,abc->nac", h.reshape(-1, 2, 2), _square(w).reshape(2, 2, WIDTH)
    ).sum(1),
    "product of parameters": lambda p, w, h, x, i: h @ (p["w"][i % 3] @ _square(w).T),
    "single precision states": lambda p, w, h, x, i: (
        (8 * h).astype(jnp.int8).astype(jnp.float32) @ _square(w) + h
    ),
    "integer states": lambda p, w, h, x, i: (8 * h).astype(jnp.int32) @ _square(w) / 8 + h,
    "bias": lambda p, w, h, x, i: h + p["b"][None] + w.reshape(1, -1)[:, i % w.size, None],
    "scale": lambda p, w, h, x, i: h * p["b"].reshape(2, 2).T.reshape(1, WIDTH),
    "norm": lambda p, w, h, x, i: (
        h * lax.rsqrt(1 + (h**2).mean(1, keepdims=True)) * p["u"][i % 3][None]
    ),
    "lookup": lambda p, w, h, x, i: h + jnp.tanh(p["t"][_ids(x)]).sum(1),
    "lookup from the end": lambda p, w, h, x, i: h + jnp.tanh(p["t"][-1 - _ids(x)]).sum(1),
    "lookup of a view": lambda p, w, h, x, i: h + _square(w)[_ids(x, WIDTH)].prod(1),
    "lookup of columns": lambda p, w, h, x, i: h + jnp.take(p["t"].T, _ids(x), axis=1).sum(2).T,
    "lookup of numbers": lambda p, w, h, x, i: h
    + p["t"][_ids(x)[:, 0], _ids(x, WIDTH)[:, 1]][:, None],
    "lookup, filled": lambda p, w, h, x, i: h
    + p["t"].at[_ids(x) + 2].get(mode="fill", fill_value=1.0).sum(1),
    "lookup, clipped": lambda p, w, h, x, i: h + p["t"].at[_ids(x) + 2].get(mode="clip").sum(1),
    "tied head": lambda p, w, h, x, i: h * jax.nn.logsumexp(h @ p["t"].T, axis=1, keepdims=True),
    "scattered": lambda p, w, h, x, i: h.at[:, i % WIDTH].add(h @ p["b"]),
    "scattered parameter": lambda p, w, h, x, i: h @ jnp.zeros((WIDTH, WIDTH)).at[
        jnp.array([0, 2])
    ].set(_square(w)[:2]),
    "running sum": lambda p, w, h, x, i: jnp.cumsum(h @ _square(w), axis=1),
    "convolved": _convolved,
    "solved": _solved,
    "complex": lambda p, w, h, x, i: jnp.abs(jnp.fft.fft(h, axis=1) @ _square(w)),
    "spectrum": lambda p, w, h, x, i: h + jnp.imag(jnp.fft.rfft(h, axis=1) @ _square(w)[:3]),
    "layers": lambda p, w, h, x, i: _scan(p, h, p["w"]),
    "layers, backward": lambda p, w, h, x, i: _scan(p, h, p["w"], reverse=True),
    "layers, stacked": lambda p, w, h, x, i: _scan(p, h, p["w"], stacks=True),
    "layers, complex": lambda p, w, h, x, i: _scan(p, h + 1j, p["w"]),
    "layers of a view": lambda p, w, h, x, i: _scan(p, h, _stack(w)),
    "layers of two stacks": _two_stacks,
    "layers in layers": _nested_loops,
    "layers and noise": _random_numbers,
    "layers, one of them outside": lambda p, w, h, x, i: _scan(p, h, p["w"]) + h @ p["w"][i % 3],
    "parameter as state": _parameter_as_state,
    "one layer, three times": lambda p, w, h, x, i: lax.fori_loop(
        0, 3, lambda _, h: jnp.tanh(h @ _square(w)), h
    ),
    "steps along the state": lambda p, w, h, x, i: lax.scan(
        lambda c, column: (jnp.tanh(c + column * p["b"][i % WIDTH]),) * 2, h[:, 0], h.T
    )[1].T,
    "branch": _branch,
    "mapped": lambda p, w, h, x, i: lax.map(lambda row: row @ _square(w), h),
    "minus infinity": lambda p, w, h, x, i: jnp.where(
        h > 0, jnp.logaddexp(jnp.where(h > 0, -jnp.inf, h), h @ _square(w)), h
    ),
    "masked attention": lambda p, w, h, x, i: h + jax.nn.softmax(
        jnp.where(jnp.arange(WIDTH)[None] < 3, h @ _square(w), -jnp.inf), axis=1
    ),
    "causal attention": _attention,
    "empty": lambda p, w, h, x, i: h
    + (h[:, :0] @ p["z"]).sum(1, keepdims=True) + p["z"].sum() + p["w"][:0].sum(),
    "called": lambda p, w, h, x, i: jax.jit(
        jax.checkpoint(lambda w, h: jnp.tanh(h @ w))
    )(_square(w), h),
    "a derivative of its own": lambda p, w, h, x, i: halved_gradient(
        h @ halved_gradient(_square(w))
    ),
    "largest": lambda p, w, h, x, i: lax.top_k(h @ _square(w), WIDTH)[0],
}  # fmt: skip


def draw(*seed):
    """A program drawn from a seed."""
    rng = np.random.default_rng(seed)

    def number(stop):
        return int(rng.integers(stop))

    steps = tuple(
        (
            sorted(OPERATIONS)[number(len(OPERATIONS))],
            number(24),
            tuple((sorted(MOVES)[number(len(MOVES))], number(24)) for _ in range(number(4))),
        )
        for _ in range(1 + number(4))
    )
    return Program(steps, (None, 2)[number(2)], (None, None, 2)[number(3)])


def smaller(program):
    """The program with one step or one move left out, in every way."""
    steps = program.steps
    for i, (operation, number, moves) in enumerate(steps):
        if len(steps) > 1:
            yield program._replace(steps=steps[:i] + steps[i + 1 :])
        for j in range(len(moves)):
            step = (operation, number, moves[:j] + moves[j + 1 :])
            yield program._replace(steps=(*steps[:i], step, *steps[i + 1 :]))
