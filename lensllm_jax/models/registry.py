"""Registry: every family that can be loaded, by Hugging Face's ``model_type``."""

from lensllm_jax.models.families import (
    bart,
    gemma,
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neo,
    gpt_neox,
    llama,
    mistral,
    mt5,
    olmo2,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
    smollm3,
    stablelm,
    t5,
    umt5,
)

_DECODERS = (
    gemma, gemma2, gemma3_text, gpt2, gpt_neo, gpt_neox, llama, mistral, olmo2, opt, phi, phi3,
    qwen2, qwen3, smollm3, stablelm,
)  # fmt: skip
_ENCODER_DECODERS = (bart, mt5, t5, umt5)
FAMILIES = {module.FAMILY.name: module.FAMILY for module in _DECODERS + _ENCODER_DECODERS}
