"""Phi 1, 1.5 and 2 (Li et al., 2023).

Attention and feed-forward side by side behind one layer norm, rotary positions on a part of
each head, biases everywhere, on the head too.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import (
    Family,
    Weight,
    embedding_weights,
    linear_weights,
    norm_weights,
    sizes,
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Phi config."""
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    return DecoderConfig(
        **sizes(hf),
        num_kv_heads=hf["num_key_value_heads"],
        d_ff=hf["intermediate_size"],
        activation=hf["hidden_act"],
        norm_epsilon=hf["layer_norm_eps"],
        block_form=BlockForm.PARALLEL_ONE_NORM,
        query_key_norm=hf["qk_layernorm"],
        rotaries=llama.rotaries(hf["rope_parameters"], head_dim),
        tied_head=False,
        head_bias=True,
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    block = "layers.{layer}"
    table = [
        embedding_weights("embed_tokens", "embed", tied_head=False),
        *norm_weights("final_layernorm", "final_norm"),
        *norm_weights(f"{block}.input_layernorm", "blocks/norm"),
        *linear_weights("lm_head", "head", use_bias=True, outside=True),
    ]
    for theirs, ours in (
        ("self_attn.q_proj", "attention/query"),
        ("self_attn.k_proj", "attention/key"),
        ("self_attn.v_proj", "attention/value"),
        ("self_attn.dense", "attention/out"),
        ("mlp.fc1", "feed_forward/up"),
        ("mlp.fc2", "feed_forward/down"),
    ):
        table += linear_weights(f"{block}.{theirs}", f"blocks/{ours}", use_bias=True)
    if config.query_key_norm:
        for theirs, ours in (("q_layernorm", "query_norm"), ("k_layernorm", "key_norm")):
            table += norm_weights(f"{block}.self_attn.{theirs}", f"blocks/attention/{ours}")
    return tuple(table)


FAMILY = Family(
    name="phi",
    config=config,
    weights=weights,
    harmless=frozenset("attention_dropout resid_pdrop embd_pdrop".split()),
    required={"tie_word_embeddings": False},
    ignored=llama.IGNORED,
    architecture="PhiForCausalLM",
)
