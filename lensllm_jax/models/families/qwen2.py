"""Qwen 2 and 2.5 (Yang et al., 2024): Llama, with biases on query, key and value.

Late layers may see a window alone.

Example:
    >>> from lensllm_jax.models.families import FAMILIES
    >>> FAMILIES["qwen2"].architecture
    'Qwen2ForCausalLM'
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family

# max_window_layers and use_sliding_window have become layer_types and sliding_window
WINDOW = frozenset("layer_types sliding_window use_sliding_window max_window_layers".split())


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Qwen 2 config.

    Args:
        hf: the attributes.

    Returns:
        The decoder that they describe.
    """
    return dataclasses.replace(llama.config(hf), attention_bias=True, **llama.sliding_layers(hf))


FAMILY = Family(
    name="qwen2",
    config=config,
    weights=llama.weights,
    read=(llama.READ - {"attention_bias", "head_dim"}) | WINDOW,
    harmless=llama.HARMLESS,
    required={"use_mrope": False},
    prefixes=("model.", ""),
    ignored=llama.IGNORED,
    architecture="Qwen2ForCausalLM",
)
