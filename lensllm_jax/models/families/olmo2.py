"""OLMo 2 (OLMo Team, 2024): Llama, with norms behind each sub-layer instead of before.

Queries and keys are normalised over all heads at once.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import llama, qwen3
from lensllm_jax.models.family import Family, Weight

NORMS = {
    "post_attention_layernorm": "attention_out_norm",
    "post_feedforward_layernorm": "feed_forward_out_norm",
}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of an OLMo 2 config."""
    return dataclasses.replace(
        llama.config(hf), block_form=BlockForm.OUT_NORM, joint_query_key_norm=True
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    return (
        *llama.ends(config),
        *llama.block_norms(NORMS),
        *llama.block_norms(qwen3.QUERY_KEY_NORMS),
        *llama.attention(config),
        *llama.feed_forward(config),
    )


FAMILY = Family(
    name="olmo2",
    config=config,
    weights=weights,
    harmless=llama.HARMLESS,
    ignored=llama.IGNORED,
    architecture="Olmo2ForCausalLM",
)
