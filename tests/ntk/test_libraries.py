"""Models of other libraries, each made ``f(params, x)`` by the line that docs/kernel.md has."""

import dataclasses
import functools
import re
from pathlib import Path
from types import SimpleNamespace

import equinox as eqx
import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from lensllm_jax.ntk.gram import empirical_ntk
from tests import oracles
from tests.tolerances import assert_close

X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


class Linen(flax.linen.Module):
    @flax.linen.compact
    def __call__(self, x):
        h = jnp.tanh(flax.linen.Dense(5)(x))
        return flax.linen.Dense(2)(flax.linen.LayerNorm()(h))


class Nnx(nnx.Module):
    def __init__(self, rngs):
        self.first = nnx.Linear(3, 5, rngs=rngs)
        self.norm = nnx.BatchNorm(5, use_running_average=True, rngs=rngs)
        self.last = nnx.Linear(5, 2, rngs=rngs)

    def __call__(self, x):
        return self.last(self.norm(jnp.tanh(self.first(x))))


class Equinox(eqx.Module):
    layers: list
    scale: jax.Array
    power: int = 2  # neither an array nor differentiable

    def __call__(self, x):
        for layer in self.layers:
            x = jnp.tanh(layer(x)) ** self.power
        return x * self.scale


@functools.partial(jax.tree_util.register_dataclass, data_fields=["w", "b"], meta_fields=[])
@dataclasses.dataclass
class Dataclass:
    w: jax.Array
    b: jax.Array

    def __call__(self, x):
        return jnp.tanh(x @ self.w + self.b[None])


def _haiku():
    """A pair of pure functions, as ``hk.transform`` gives it."""

    def init(key, x):
        return {"linear": {"w": jax.random.normal(key, (x.shape[1], 2)), "b": jnp.zeros(2)}}

    def apply(params, key, x):
        del key
        return jnp.tanh(x @ params["linear"]["w"] + params["linear"]["b"][None])

    return SimpleNamespace(init=init, apply=apply)


# what the lines of the page may name
NAMES = {
    "flax.linen": lambda: {"module": (m := Linen()), "variables": m.init(jax.random.key(0), X)},
    "flax.nnx": lambda: {"model": Nnx(nnx.Rngs(0)), "nnx": nnx},
    "Equinox": lambda: {
        "model": Equinox(
            [eqx.nn.Linear(*sizes, key=jax.random.key(0)) for sizes in ((3, 4), (4, 2))],
            jnp.ones(2),
        ),
        "eqx": eqx, "jax": jax,
    },
    "Haiku": lambda: {"net": (net := _haiku()), "params": net.init(jax.random.key(0), X)},
    "a dataclass": lambda: {"model": Dataclass(jnp.ones((3, 2)) / 3, jnp.ones(2) / 2)},
}  # fmt: skip


def documented():
    """Library to the line that gives ``params`` and ``f``."""
    page = (Path(__file__).parents[2] / "docs" / "kernel.md").read_text(encoding="utf-8")
    return dict(re.findall(r"^\| (flax\.\w+|Equinox|Haiku|a dataclass) \| `(.*)` \|$", page, re.M))


def test_every_library_has_its_line():
    assert documented().keys() == NAMES.keys()


@pytest.mark.parametrize("library", NAMES)
def test_the_line_gives_a_function_with_an_exact_kernel(x64, library):
    names = NAMES[library]()
    exec(documented()[library], names)
    f, params = names["f"], names["params"]
    theta = empirical_ntk(f, params, X, X[:3] + 1)
    exact = oracles.dense_kernel(f, params, X, X[:3] + 1)
    assert_close(theta, exact)
    assert np.abs(exact).max() > 1e-3
    moved = jax.tree.map(lambda leaf: leaf * 1.01, params)
    assert np.abs(oracles.dense_kernel(f, moved, X, X[:3] + 1) - exact).max() > 1e-4
