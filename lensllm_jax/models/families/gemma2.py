"""Gemma 2 (Gemma Team, 2024): Gemma, with norms on both sides of each sub-layer.

Scores and logits are softly capped; every other layer sees a window alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import gemma, llama
from lensllm_jax.models.family import Family, Weight

NORMS = {
    "input_layernorm": "attention_norm",
    "post_attention_layernorm": "attention_out_norm",
    "pre_feedforward_layernorm": "feed_forward_norm",
    "post_feedforward_layernorm": "feed_forward_out_norm",
}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Gemma 2 config."""
    return dataclasses.replace(
        gemma.config(hf, activation="hidden_activation"),
        block_form=BlockForm.SANDWICH,
        query_scale=hf["query_pre_attn_scalar"] ** -0.5,
        attention_cap=hf["attn_logit_softcapping"],
        logit_cap=hf["final_logit_softcapping"],
        **llama.sliding_layers(hf),
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    return (
        *llama.ends(config, offset=gemma.OFFSET),
        *llama.block_norms(NORMS, offset=gemma.OFFSET),
        *llama.attention(config),
        *llama.feed_forward(config),
    )


FAMILY = Family(
    name="gemma2",
    config=config,
    weights=weights,
    harmless=llama.HARMLESS,
    required={"use_bidirectional_attention": (None, False)},
    ignored=llama.IGNORED,
    architecture="Gemma2ForCausalLM",
)
