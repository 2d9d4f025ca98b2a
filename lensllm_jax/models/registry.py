"""Registry: every family that can be loaded, by Hugging Face's ``model_type``."""

from lensllm_jax.models.families import (
    bart,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    llama,
    mt5,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    t5,
)

_DECODERS = (gemma2, gemma3_text, gpt2, gpt_neox, llama, opt, phi, phi3, qwen2, qwen3)
_ENCODER_DECODERS = (bart, mt5, t5)
FAMILIES = {module.FAMILY.name: module.FAMILY for module in _DECODERS + _ENCODER_DECODERS}
