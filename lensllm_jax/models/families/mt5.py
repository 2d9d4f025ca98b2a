"""mT5 (Xue et al., 2021): T5 of version 1.1 on a hundred languages, with 250,112 tokens.

Its head is never scaled, and is the table of embeddings only where a checkpoint holds no other,
whatever ``tie_word_embeddings`` says: published checkpoints say false there, those that Hugging
Face saves today say true.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig
from lensllm_jax.models.families import t5
from lensllm_jax.models.family import Family


def config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config from the attributes of an mT5 config."""
    return t5.described(hf, scaled_head=False)


FAMILY = Family(
    name="mt5",
    config=config,
    weights=t5.weights,
    harmless=t5.HARMLESS,
    prefixes=("",),
    ties_absent_head=True,
    ignored=t5.IGNORED,
    architecture="MT5ForConditionalGeneration",
)
