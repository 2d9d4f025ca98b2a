"""Gemma (Gemma Team, 2024): Llama, with scaled embeddings.

Norms store their scale minus one; embeddings are scaled by the root of their width.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family, Weight

OFFSET = 1.0  # a scale of 1 is stored as 0


def config(hf: Mapping[str, Any], *, activation: str = "hidden_act") -> DecoderConfig:
    """Our config from the attributes of a Gemma config; its descendants rename the activation."""
    return dataclasses.replace(
        llama.config(hf, activation=activation), embedding_scale=hf["hidden_size"] ** 0.5
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    return (
        *llama.ends(config, offset=OFFSET),
        *llama.block_norms(llama.NORMS, offset=OFFSET),
        *llama.attention(config),
        *llama.feed_forward(config),
    )


FAMILY = Family(
    name="gemma",
    config=config,
    weights=weights,
    harmless=llama.HARMLESS,
    required={"use_bidirectional_attention": (None, False)},
    ignored=llama.IGNORED,
    architecture="GemmaForCausalLM",
)
