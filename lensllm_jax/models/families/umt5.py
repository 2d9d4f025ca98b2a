"""UMT5 (Chung et al., 2023): mT5 with relative positions of its own in every block.

Published checkpoints hold a head of their own, whose states are not scaled; their config says so
by ``tie_word_embeddings``, which today's Hugging Face class overwrites and their training obeyed.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig
from lensllm_jax.models.families import t5
from lensllm_jax.models.family import Family


def config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config from the attributes of a UMT5 config."""
    return t5.described(hf, scaled_head=bool(hf["tie_word_embeddings"]), table_per_block=True)


FAMILY = Family(
    name="umt5",
    config=config,
    weights=t5.weights,
    harmless=t5.HARMLESS - {"tie_word_embeddings"},
    required={"tie_word_embeddings": (True, False)},
    prefixes=("",),
    ties_absent_head=True,
    as_stored=("tie_word_embeddings",),
    ignored=t5.IGNORED,
    architecture="UMT5ForConditionalGeneration",
)
