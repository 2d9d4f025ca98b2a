"""The families that can be loaded, by Hugging Face's ``model_type``."""

from lensllm_jax.models.families import gpt2, opt

FAMILIES = {family.name: family for family in (gpt2.FAMILY, opt.FAMILY)}
