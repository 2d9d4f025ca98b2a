"""mT5 (Xue et al., 2021): T5 of version 1.1 on a hundred languages, with 250,112 tokens.

Its head is never the table of embeddings, whatever ``tie_word_embeddings`` says: published
checkpoints say false there, those that Hugging Face saves today say true, and both hold a head
of its own.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig
from lensllm_jax.models.families import t5
from lensllm_jax.models.family import Family


def config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config from the attributes of an mT5 config."""
    return t5.described(hf, tied_head=False)


FAMILY = Family(
    name="mt5",
    config=config,
    weights=t5.weights,
    harmless=t5.HARMLESS,
    prefixes=("",),
    ignored=t5.IGNORED,
    architecture="MT5ForConditionalGeneration",
)
