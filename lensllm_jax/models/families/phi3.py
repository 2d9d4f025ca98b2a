"""Phi 3 and 4 (Abdin et al., 2024): Llama, with joined tensors.

Query, key and value lie in one tensor, gate and up in another; all layers may see a window
alone.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family, Weight, linear_weights


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a Phi 3 config."""
    slides = hf["sliding_window"] is not None
    return dataclasses.replace(
        llama.config(hf),
        window=hf["sliding_window"],
        sliding_layers=(True,) * hf["num_hidden_layers"] if slides else (),
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    joined = {
        "self_attn.qkv_proj": ("attention/query", "attention/key", "attention/value"),
        "self_attn.o_proj": ("attention/out",),
        "mlp.gate_up_proj": ("feed_forward/gate", "feed_forward/up"),
        "mlp.down_proj": ("feed_forward/down",),
    }
    return (
        *llama.ends(config),
        *llama.block_norms(llama.NORMS),
        *(
            weight
            for theirs, ours in joined.items()
            for weight in linear_weights(
                f"{llama.BLOCK}.{theirs}", tuple(f"blocks/{name}" for name in ours), use_bias=False
            )
        ),
    )


FAMILY = Family(
    name="phi3",
    config=config,
    weights=weights,
    # longrope alone reads the original context, and is refused
    harmless=llama.HARMLESS | {"resid_pdrop", "embd_pdrop", "original_max_position_embeddings"},
    ignored=llama.IGNORED,
    architecture="Phi3ForCausalLM",
)
