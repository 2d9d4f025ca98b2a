"""Small functions of every kind, each with parameters and examples, for the kernel tests."""

import functools
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax.ntk.structured.gradients import Group, Lookup, Outer

VOCABULARY, WIDTH, HEADS, LENGTH, LAYERS = 13, 8, 2, 6, 2


class Case(NamedTuple):
    f: Any  # f(params, x) -> (n,) or (n, k)
    params: Any
    x: Any


class Mlp(nn.Module):
    num_outputs: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(7)(x))
        x = nn.LayerNorm()(x)
        return nn.Dense(self.num_outputs)(nn.gelu(nn.Dense(5)(x)))


class Block(nn.Module):
    @nn.compact
    def __call__(self, x, mask):
        y = nn.LayerNorm()(x)
        x = x + nn.MultiHeadDotProductAttention(num_heads=HEADS)(y, y, mask=mask)
        y = nn.RMSNorm()(x)
        return x + nn.Dense(WIDTH)(nn.gelu(nn.Dense(2 * WIDTH)(y))), None


class Transformer(nn.Module):
    """A causal language model whose embedding table is also its head."""

    scanned: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, ids, attention_mask):
        s = ids.shape[1]
        table = nn.Embed(VOCABULARY, WIDTH, name="embed")
        positions = self.param("positions", nn.initializers.normal(0.5), (LENGTH + 2, WIDTH))
        x = table(ids) + positions[None, :s]
        mask = nn.make_causal_mask(ids) * attention_mask[:, None, None, :]
        block = nn.remat(Block) if self.remat else Block
        if self.scanned:
            x, _ = nn.scan(
                block,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                in_axes=nn.broadcast,
                length=LAYERS,
            )(name="blocks")(x, mask)
        else:
            for _ in range(LAYERS):
                x, _ = block()(x, mask)
        return table.attend(nn.LayerNorm()(x))


class ConvNet(nn.Module):
    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(4, (3, 3))(x))
        x = nn.Conv(3, (2, 2), strides=2, use_bias=False)(x)
        return nn.Dense(2)(x.reshape(x.shape[0], -1))


def tokens(n, key):
    """Ids, a mask with padding at the right, labels with ignored positions."""
    ids = np.array(jax.random.randint(key, (n, LENGTH), 0, VOCABULARY))
    ids[: n // 2, 3] = ids[: n // 2, 1]  # a token that stands twice in one example
    lengths = LENGTH - np.arange(n) % 3
    mask = (np.arange(LENGTH)[None, :] < lengths[:, None]).astype(np.int32)
    labels = np.where((mask == 1) & (np.arange(LENGTH) >= 2), ids, -100)
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _mean_logprob(logits, labels):
    logprob = jax.nn.log_softmax(logits[:, :-1])
    wanted = labels[:, 1:]
    is_target = wanted != -100
    chosen = jnp.take_along_axis(logprob, jnp.where(is_target, wanted, 0)[..., None], axis=2)
    return jnp.where(is_target, chosen[..., 0], 0).sum(1) / is_target.sum(1)


@functools.cache
def transformer_module(scanned=False, remat=False):
    return Transformer(scanned=scanned, remat=remat)


def _transformer(key, num_outputs, **settings):
    model = transformer_module(**settings)
    x = tokens(5, key)
    params = jax.eval_shape(model.init, key, x["input_ids"], x["attention_mask"])

    def scalar(params, x):
        logits = model.apply(params, x["input_ids"], x["attention_mask"])
        return _mean_logprob(logits, x["labels"])

    def three_logits(params, x):
        return model.apply(params, x["input_ids"], x["attention_mask"])[:, -2, 3:6]

    return Case(scalar if num_outputs is None else three_logits, params, x)


def _mlp(key, num_outputs):
    model = Mlp(num_outputs or 1)
    x = jax.random.normal(key, (5, 3))
    params = jax.eval_shape(model.init, key, x)

    def f(params, x):
        out = model.apply(params, x)
        return out if num_outputs else out[:, 0]

    return Case(f, params, x)


def _convnet(key):
    model = ConvNet()
    x = jax.random.normal(key, (4, 6, 6, 2))
    return Case(model.apply, jax.eval_shape(model.init, key, x), x)


CASES = {
    "mlp": lambda key: _mlp(key, None),
    "mlp, 3 outputs": lambda key: _mlp(key, 3),
    "convolutions": _convnet,
    "tied transformer": lambda key: _transformer(key, None),
    "tied transformer, 3 logits": lambda key: _transformer(key, 3),
    "scanned transformer": lambda key: _transformer(key, None, scanned=True),
    "scanned and rematerialised": lambda key: _transformer(key, None, scanned=True, remat=True),
}


def make(name):
    """The case, in whatever float type JAX is set to.

    Parameters are drawn here and not by Flax: compiling its initialisers takes longer than all
    the rest, and it starts biases at zero, where mistakes hide.
    """
    case = CASES[name](jax.random.key(0))
    rng = np.random.default_rng(1)

    def drawn(shape):
        values = rng.normal(size=shape.shape) / np.sqrt(shape.shape[0])
        return jnp.asarray(values, jnp.result_type(float))

    return case._replace(params=jax.tree.map(drawn, case.params))


def first(x, rows):
    """Some examples of a pytree."""
    return jax.tree.map(lambda leaf: leaf[rows], x)


def random_group(key, n, k, rows, columns):
    """A tied table: a head with cotangents on its rows, one on its columns, and a lookup."""
    keys = iter(jax.random.split(key, 6))
    return Group(
        (
            Outer(
                jax.random.normal(next(keys), (n, k, 3, rows)),
                jax.random.normal(next(keys), (n, 1, 3, columns)),
            ),
            Outer(
                jax.random.normal(next(keys), (n, 1, 2, rows)),
                jax.random.normal(next(keys), (n, k, 2, columns)),
            ),
            Lookup(
                jax.random.randint(next(keys), (n, 4), -1, rows),
                jax.random.normal(next(keys), (n, k, 4, columns)),
            ),
        ),
        rows,
        columns,
    )
