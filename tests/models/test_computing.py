"""How a decoder computes changes its cost, not its answer: loops, recomputing, bfloat16."""

import jax
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax.models import layers
from tests.models.compiling import least_compile_seconds
from tests.models.tiny import tiny_candidate
from tests.models.variants import VARIANTS, batch
from tests.tolerances import relative_difference

# a learned and a rotary family, the latter with all that differs from layer to layer
FAMILIES = ("gpt2", "gemma3")


def loss_fn(candidate, data, **settings):
    module = candidate.config.module(**settings)

    def loss(params):
        logits = module.apply({"params": params}, data["input_ids"], data["attention_mask"])
        real = data["attention_mask"][..., None] == 1
        return (jax.nn.log_softmax(logits.astype(jax.numpy.float32)) * real)[..., 5].mean()

    return loss


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("settings", [{"unroll_layers": True}, {"remat": True}])
def test_unrolled_and_recomputed_blocks_give_the_same_gradient(variant, settings):
    candidate, data = tiny_candidate(VARIANTS[variant]), batch()
    plain = jax.jit(jax.grad(loss_fn(candidate, data)))(candidate.params)
    other = jax.jit(jax.grad(loss_fn(candidate, data, **settings)))(candidate.params)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
        # an entry that is zero but for rounding has no digits of its own
        assert np.abs(a - b).max() <= 1e-5 * max(np.abs(x).max() for x in jax.tree.leaves(plain))


def test_recomputing_really_recomputes():
    candidate, data = tiny_candidate(VARIANTS["gpt2"]), batch()
    programs = [
        str(jax.make_jaxpr(jax.grad(loss_fn(candidate, data, remat=remat)))(candidate.params))
        for remat in (False, True)
    ]
    assert ["checkpoint" in program or "remat" in program for program in programs] == [False, True]


@pytest.mark.parametrize("variant", FAMILIES)
def test_bfloat16_stays_bfloat16_and_near(variant):
    candidate, data = tiny_candidate(VARIANTS[variant]), batch()
    half = tiny_candidate(VARIANTS[variant], "bfloat16")
    real = data["attention_mask"] == 1
    exact = np.asarray(candidate.apply_fn(candidate.params, data))[real]
    for got in (
        half.apply_fn(half.params, data),  # stored and computed in bfloat16
        candidate.config.module(dtype=jax.numpy.dtype("bfloat16")).apply(  # computed in it alone
            {"params": candidate.params}, data["input_ids"], data["attention_mask"]
        ),
    ):
        assert got.dtype == jax.numpy.bfloat16
        difference = relative_difference(np.asarray(got, np.float32)[real], exact)
        # bfloat16 keeps 8 bits: 0.4 % an operation, through layers of weights far from small
        assert 1e-4 < difference < 0.15


def test_large_biases_of_queries_and_keys_cost_bfloat16_no_digits(monkeypatch):
    """As those of Qwen2.5, up to 158: a key and its bias, or their rotation, rounded together."""
    candidate, data = tiny_candidate(VARIANTS["qwen2"]), batch()
    flat_params = traverse_util.flatten_dict(candidate.params, sep="/")
    for name, large in (("query", 80.0), ("key", 150.0)):
        bias = np.array(flat_params[f"blocks/attention/{name}/bias"])
        # of each head's last feature, which hardly rotates: they add the same to all scores
        bias.reshape(len(bias), -1, candidate.config.head_dim)[..., -1] = large
        flat_params[f"blocks/attention/{name}/bias"] = bias
    params = traverse_util.unflatten_dict(flat_params, sep="/")
    real = data["attention_mask"] == 1

    def logits(**settings):
        module = candidate.config.module(**settings)
        found = module.apply({"params": params}, data["input_ids"], data["attention_mask"])
        return np.asarray(found, np.float32)[real]

    half, exact = {"dtype": jax.numpy.dtype("bfloat16")}, logits()
    near = relative_difference(logits(**half), exact)
    monkeypatch.setattr(layers, "_widened", lambda dot, *args, **kwargs: dot(*args, **kwargs))
    rounded = relative_difference(logits(**half), exact)  # the control
    assert near < 0.05 < rounded
    assert 3 * near < rounded


@pytest.mark.parametrize("variant", FAMILIES)
@pytest.mark.parametrize("unroll_layers", [False, True])
def test_gradients_in_bfloat16_are_near(variant, unroll_layers):
    candidate, data = tiny_candidate(VARIANTS[variant]), batch()
    half = {"dtype": jax.numpy.dtype("bfloat16"), "unroll_layers": unroll_layers}
    exact, rough = (
        flat(jax.jit(jax.grad(loss_fn(candidate, data, **settings)))(candidate.params))
        for settings in ({}, half)
    )
    # bfloat16 keeps 8 bits: as the logits, of weights far from small
    assert 1e-4 < np.linalg.norm(rough - exact) / np.linalg.norm(exact) < 0.15


def flat(tree):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)])


def compile_seconds(num_layers, times=3, **settings):
    """Seconds that XLA needs for the gradient of a model of so many layers."""
    config = tiny_candidate({**VARIANTS["llama"], "num_hidden_layers": num_layers}).config
    ids = np.ones((2, 8), np.int32)
    return least_compile_seconds(config.module(**settings), ids, ids, times=times)


@pytest.mark.slow
def test_24_layers_compile_about_as_fast_as_6():
    shallow = compile_seconds(6)
    assert compile_seconds(24) < 1.5 * shallow
    # the control: written out, they do not
    assert compile_seconds(24, times=1, unroll_layers=True) > 1.5 * shallow
