"""The families that can be loaded, by Hugging Face's ``model_type``."""

from lensllm_jax.models.families import (
    gemma2,
    gemma3_text,
    gpt2,
    gpt_neox,
    llama,
    opt,
    phi,
    phi3,
    qwen2,
    qwen3,
)

_MODULES = (gemma2, gemma3_text, gpt2, gpt_neox, llama, opt, phi, phi3, qwen2, qwen3)
FAMILIES = {module.FAMILY.name: module.FAMILY for module in _MODULES}
