"""Adapter folders beside tiny bases."""

import json

import numpy as np
from flax import traverse_util
from safetensors.numpy import save_file

import lensllm_jax as lens
from lensllm_jax.checkpoints.adapters import ADAPTER_CONFIG
from tests.checkpoints.gguf_configs import MODELS
from tests.models.tiny import write_tiny_checkpoint

# a module, and where its weight is in our tree
QUERY = {
    "llama": ("model.layers.1.self_attn.q_proj", "blocks/attention/query/kernel"),
    "gpt2": ("transformer.h.1.mlp.c_fc", "blocks/feed_forward/up/kernel"),
}


def flat(candidate):
    return traverse_util.flatten_dict(candidate.params, sep="/")


def write_adapter(folder, model, *, rank=3, tensors=None, **settings):
    """A base, an adapter of one of its matrices, and the factors (A, B)."""
    base, adapter = folder / "base", folder / "adapter"
    for each in (base, adapter):
        each.mkdir()
    write_tiny_checkpoint(MODELS[model][1], base)
    rng = np.random.default_rng(0)
    module, path = QUERY[model]
    d_in, d_out = flat(lens.load_candidate(base))[path].shape[-2:]
    a = rng.normal(size=(rank, d_in)).astype(np.float32)
    b = rng.normal(size=(d_out, rank)).astype(np.float32)
    stored = {
        f"base_model.model.{module}.lora_A.weight": a,
        f"base_model.model.{module}.lora_B.weight": b,
    }
    save_file(stored if tensors is None else tensors(stored), adapter / "adapter_model.safetensors")
    described = {
        "peft_type": "LORA", "base_model_name_or_path": str(base), "r": rank, "lora_alpha": 6,
        "fan_in_fan_out": model == "gpt2", **settings,
    }  # fmt: skip
    (adapter / ADAPTER_CONFIG).write_text(json.dumps(described))
    return base, adapter, a, b
