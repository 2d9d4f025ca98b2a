"""A language model of 400 numbers and examples of several lengths, for tests of the loop."""

import jax.numpy as jnp
import numpy as np

from lensllm_jax.finetune.evaluation import Evaluation

VOCAB = 20
MODEL_INPUTS = ("input_ids", "attention_mask", "labels")


def apply_fn(params, batch):
    """Logits from a token and the one before it, ``(b, s, v)``."""
    x = params["embed"]["embedding"][batch["input_ids"]]
    before = jnp.pad(x[:, :-1], ((0, 0), (1, 0), (0, 0)))
    return jnp.tanh(x + 2 * before) @ params["head"]["kernel"] + params["head"]["bias"][None, None]


def params(*, dtype=np.float32):
    """Random weights."""
    rng = np.random.default_rng(0)
    return {
        "embed": {"embedding": jnp.asarray(rng.normal(size=(VOCAB, 10)), dtype)},
        "head": {
            "kernel": jnp.asarray(rng.normal(size=(10, VOCAB)), dtype),
            "bias": jnp.asarray(rng.normal(size=VOCAB), dtype),
        },
    }


def examples(num_examples, *, seed=0, width=16):
    """Arrays (n, width): two tokens of prompt, then targets, padding behind; half are short.

    The last target is the end token; every other one spells one to three bytes.
    """
    rng = np.random.default_rng(seed)
    ids = rng.integers(3, VOCAB, (num_examples, width)).astype(np.int32)
    ends = np.where(rng.random(num_examples) < 0.5, rng.integers(4, 7, num_examples),
                    rng.integers(7, width + 1, num_examples))  # fmt: skip
    position = np.arange(width)[None, :]
    is_token = position < ends[:, None]
    is_target, is_end = is_token & (position >= 2), position == ends[:, None] - 1
    return {
        "input_ids": ids,
        "attention_mask": is_token.astype(np.int32),
        "labels": np.where(is_target, ids, -100).astype(np.int32),
        "is_end": is_end,
        "num_target_bytes": ((1 + ids % 3) * (is_target & ~is_end)).sum(1),
    }


def evaluation(loss):
    """Of two test records of ten bytes each, at ``loss`` nats per byte."""
    return Evaluation(loss * np.array([9.0, 11.0]), np.ones(2), np.array([10, 10]), 2)


def trained(loop, params, batches):
    """Parameters and losses after the steps of one call."""
    state, losses = loop.train(loop.start(params), batches)
    return state.params, losses


def calls(num_steps, batch_size, **settings):
    """Arrays (steps, b, width)."""
    data = examples(num_steps * batch_size, **settings)
    return {name: data[name].reshape(num_steps, batch_size, -1) for name in MODEL_INPUTS}
