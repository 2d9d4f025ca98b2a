"""Qwen 3 (Yang et al., 2025): Llama, with each head's queries and keys normalised."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama, qwen2
from lensllm_jax.models.family import Family, Weight

QUERY_KEY_NORMS = {
    "self_attn.q_norm": "attention/query_norm",
    "self_attn.k_norm": "attention/key_norm",
}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Qwen 3 config."""
    return dataclasses.replace(llama.config(hf), query_key_norm=True, **llama.sliding_layers(hf))


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    return (*llama.weights(config), *llama.block_norms(QUERY_KEY_NORMS))


FAMILY = Family(
    name="qwen3",
    config=config,
    weights=weights,
    harmless=qwen2.HARMLESS,
    ignored=llama.IGNORED,
    architecture="Qwen3ForCausalLM",
)
