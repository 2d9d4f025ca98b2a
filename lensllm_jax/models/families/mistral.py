"""Mistral (Jiang et al., 2023): Llama, whose layers may all see a window alone."""

from lensllm_jax.models.families import llama, phi3
from lensllm_jax.models.family import Family

FAMILY = Family(
    name="mistral",
    config=phi3.config,
    weights=llama.weights,
    harmless=llama.HARMLESS,
    ignored=llama.IGNORED,
    architecture="MistralForCausalLM",
)
