"""SmolLM3 (Bakouch et al., 2025): Llama, every fourth of whose layers has no positions."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a SmolLM3 config."""
    base = llama.config(hf)
    (rotary,) = base.rotaries
    return dataclasses.replace(
        base,
        rotaries=(dataclasses.replace(rotary, is_still=True), rotary),
        rotary_of_layer=tuple(int(bool(rotates)) for rotates in hf["no_rope_layers"]),
        **llama.sliding_layers(hf),
    )


FAMILY = Family(
    name="smollm3",
    config=config,
    weights=llama.weights,
    # these have become no_rope_layers and layer_types
    harmless=llama.HARMLESS | {"no_rope_layer_interval", "use_sliding_window"},
    ignored=llama.IGNORED,
    architecture="SmolLM3ForCausalLM",
)
