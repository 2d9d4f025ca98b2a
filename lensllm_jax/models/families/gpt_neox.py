"""GPT-NeoX (Black et al., 2022), the class of Pythia.

Attention and feed-forward side by side on the same state, rotary positions on a part of each
head, layer norms, biases everywhere; query, key and value in one tensor, head by head.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import (
    Family,
    Weight,
    linear_weights,
    norm_weights,
    sizes,
)

HEADS = ("lm_head.weight", "embed_out.weight")  # of today, and of the published checkpoints


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a GPT-NeoX config."""
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    parallel = hf["use_parallel_residual"]
    return DecoderConfig(
        **sizes(hf),
        d_ff=hf["intermediate_size"],
        activation=hf["hidden_act"],
        norm_epsilon=hf["layer_norm_eps"],
        block_form=BlockForm.PARALLEL if parallel else BlockForm.PRE_NORM,
        attention_bias=hf["attention_bias"],
        output_bias=hf["attention_bias"],
        rotaries=llama.rotaries(hf["rope_parameters"], head_dim),
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    block = "layers.{layer}"
    query_key_value = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
    embedding = Weight("embed_in.weight", "embed/embedding")
    head = Weight(HEADS[0], "head/kernel", transpose=True, outside=True, copies=HEADS[1:])
    return (
        *(
            [dataclasses.replace(embedding, copies=HEADS)]
            if config.tied_head
            else [embedding, head]
        ),
        *norm_weights("final_layer_norm", "final_norm"),
        *norm_weights(f"{block}.input_layernorm", "blocks/attention_norm"),
        *norm_weights(f"{block}.post_attention_layernorm", "blocks/feed_forward_norm"),
        *linear_weights(
            f"{block}.attention.query_key_value",
            query_key_value,
            use_bias=config.attention_bias,
            groups=config.num_heads,
        ),
        *linear_weights(
            f"{block}.attention.dense", "blocks/attention/out", use_bias=config.output_bias
        ),
        *linear_weights(f"{block}.mlp.dense_h_to_4h", "blocks/feed_forward/up", use_bias=True),
        *linear_weights(f"{block}.mlp.dense_4h_to_h", "blocks/feed_forward/down", use_bias=True),
    )


FAMILY = Family(
    name="gpt_neox",
    config=config,
    weights=weights,
    harmless=frozenset({"attention_dropout", "hidden_dropout", "classifier_dropout"}),
    prefixes=("gpt_neox.", ""),
    ignored=(
        r"layers\.\d+\.attention\.(masked_)?bias",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
    architecture="GPTNeoXForCausalLM",
)
