"""The plan's bytes, which need no device, are those of XLA's account of the compiled step."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.compute import LORA, ComputeConfig, config_apply_fn
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.memory import step_memory
from tests.models.encoder_decoders import BART, T5
from tests.models.variants import GPT2, LLAMA

ROWS, TOKENS = 32, 64
CASES = {
    "gpt2": ({**GPT2, "vocab_size": 8000, "n_positions": 64, "n_embd": 256, "n_layer": 6,
              "n_head": 8}, ComputeConfig()),
    "llama": ({**LLAMA, "vocab_size": 8000, "max_position_embeddings": 64, "hidden_size": 256,
               "num_hidden_layers": 6, "num_attention_heads": 8, "num_key_value_heads": 4,
               "intermediate_size": 768}, ComputeConfig(tune=LORA, frozen_dtype="bfloat16")),
    "t5": ({**T5, "vocab_size": 8000, "d_model": 256, "d_kv": 32, "d_ff": 1024, "num_heads": 8},
           ComputeConfig(remat=True)),
    "bart": ({**BART, "vocab_size": 8000, "d_model": 256, "max_position_embeddings": 64,
              "encoder_attention_heads": 8, "decoder_attention_heads": 8, "encoder_ffn_dim": 1024,
              "decoder_ffn_dim": 1024}, ComputeConfig(micro_batches=4)),
}  # fmt: skip


NUM_LOGITS = {"gpt2": 400}  # of the positions; the others compute all


def compiled_bytes(config, compute, num_logits):
    """Arguments, temporaries and results of two compiled steps, as XLA places them.

    Of a step in several passes they are those of a pass, beside the moments, which it leaves alone.
    """
    loop = Loop(
        config_apply_fn(config, compute), OptimizerConfig(1e-3),
        shift=not config.is_encoder_decoder, micro_batches=compute.passes,
    )  # fmt: skip
    flat = parameter_shapes(config)
    dtype, frozen = jnp.dtype(compute.frozen_dtype or "float32"), {}
    params = traverse_util.unflatten_dict(
        {path: jax.ShapeDtypeStruct(shape, dtype) for path, shape in flat.items()}, sep="/"
    )
    if compute.tune == LORA:
        frozen = params
        params = jax.eval_shape(
            lambda: lora.init_factors(frozen, rank=compute.lora_rank, seed=0)
        )  # fmt: skip
    names = ["input_ids", "attention_mask", "labels"]
    names += ["decoder_input_ids"] if config.is_encoder_decoder else []
    state = jax.eval_shape(loop.start, params)

    def batch(*axes):
        return {name: jax.ShapeDtypeStruct((*axes, TOKENS), jnp.int32) for name in names}

    if compute.passes == 1:
        return bytes_of(loop._train.lower(state, batch(2, ROWS), 1e-3, None, frozen, num_logits))
    part, divisor = batch(ROWS // compute.passes), jax.ShapeDtypeStruct((), jnp.int32)
    gradient = state.params
    a_pass = loop._add.lower(state.params, gradient, part, divisor, frozen, num_logits)
    moments = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state[1]))
    return max(
        bytes_of(a_pass) + moments, bytes_of(loop._update.lower(state, gradient, 1e-3, None))
    )


def bytes_of(lowered):
    found = lowered.compile().memory_analysis()
    return (
        found.argument_size_in_bytes + found.temp_size_in_bytes
        + found.output_size_in_bytes - found.alias_size_in_bytes
    )  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bytes_from_shapes_are_within_15_percent_of_the_compiled_step(name):
    attributes, compute = CASES[name]
    config = parse_config(attributes).config
    number = NUM_LOGITS.get(name)
    planned = step_memory(
        config, compute, batch_size=ROWS, num_tokens=TOKENS, num_logits=number
    )  # fmt: skip
    measured = compiled_bytes(config, compute, number)
    assert abs(planned.step / measured - 1) < 0.15, (planned, measured)
    # the control: the plan of another way to compute is not
    other = dataclasses.replace(ComputeConfig(), remat=not compute.remat, micro_batches=32)
    changed = step_memory(config, other, batch_size=ROWS, num_tokens=TOKENS)
    assert abs(changed.step / measured - 1) > 0.15


def test_devices_share_all_but_what_they_gather():
    config = parse_config(CASES["gpt2"][0]).config
    one, eight = (
        step_memory(config, ComputeConfig(devices=n), batch_size=ROWS, num_tokens=TOKENS)
        for n in (1, 8)
    )
    for name in ("trained", "gradients", "moments", "logits"):
        assert getattr(one, name) == 8 * getattr(eight, name)
    assert 7 < one.activations / eight.activations <= 8  # masks have no axis of examples
    assert (one.gathered, eight.loaded) == (0, 0)
    assert eight.gathered > 4 * 8000 * 256
