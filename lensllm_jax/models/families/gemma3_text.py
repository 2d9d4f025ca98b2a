"""Gemma 3, text models (Gemma Team, 2025): Gemma 2, with each head's queries and keys normalised.

Five of six layers see a window alone, and turn faster than those that see everything.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import gemma, gemma2, llama, qwen3
from lensllm_jax.models.family import Family, Weight


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Gemma 3 text config."""
    base = gemma2.config(hf)
    return dataclasses.replace(
        base,
        query_key_norm=True,
        # the first rotation is that of the layers that see everything
        rotary_of_layer=tuple(int(slides) for slides in base.sliding_layers),
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    query_key_norms = llama.block_norms(qwen3.QUERY_KEY_NORMS, offset=gemma.OFFSET)
    return (*gemma2.weights(config), *query_key_norms)


FAMILY = Family(
    name="gemma3_text",
    config=config,
    weights=weights,
    # the pattern has become layer_types
    harmless=llama.HARMLESS | {"_sliding_window_pattern"},
    # Hugging Face's class reads a cap of the scores and never applies it
    required={"use_bidirectional_attention": (None, False), "attn_logit_softcapping": None},
    ignored=llama.IGNORED,
    architecture="Gemma3ForCausalLM",
)
