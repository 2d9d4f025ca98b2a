"""Qwen 2 and 2.5 (Yang et al., 2024): Llama, with biases on query, key and value.

Late layers may see a window alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family

# these have become layer_types and sliding_window
HARMLESS = llama.HARMLESS | {"use_sliding_window", "max_window_layers"}


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Qwen 2 config."""
    return dataclasses.replace(llama.config(hf), attention_bias=True, **llama.sliding_layers(hf))


FAMILY = Family(
    name="qwen2",
    config=config,
    weights=llama.weights,
    harmless=HARMLESS,
    ignored=llama.IGNORED,
    architecture="Qwen2ForCausalLM",
)
