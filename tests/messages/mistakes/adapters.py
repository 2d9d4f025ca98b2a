"""Mistakes with adapter folders; part of the room of checkpoints."""

import shutil

import lensllm_jax as lens
from lensllm_jax.checkpoints.adapters import ADAPTER_CONFIG
from tests.checkpoints.adapter_folders import write_adapter
from tests.checkpoints.gguf_configs import MODELS
from tests.models.tiny import write_tiny_checkpoint


def loaded(folder, **settings):
    return lens.load_candidate(write_adapter(folder, "llama", **settings)[1])


def on_another(folder, model):
    """Its base is replaced after it was made."""
    base, adapter, _, _ = write_adapter(folder, "llama")
    shutil.rmtree(base)
    base.mkdir()
    write_tiny_checkpoint(MODELS[model][1], base)
    return lens.load_candidate(adapter)


def with_list_for_settings(folder):
    _, adapter, _, _ = write_adapter(folder, "llama")
    (adapter / ADAPTER_CONFIG).write_text("[]")
    return lens.load_candidate(adapter)


def on_an_adapter(folder):
    (folder / "first").mkdir()
    _, first, _, _ = write_adapter(folder / "first", "llama")
    return loaded(folder, base_model_name_or_path=str(first))


def with_one_side(folder):
    return loaded(folder, tensors=lambda stored: dict(list(stored.items())[:1]))


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("adapter_config.json", "hold settings, got []", with_list_for_settings),
    (
        "adapter_config.json",
        "describe low-rank updates alone ... got use_dora=True ... merge_and_unload",
        lambda tmp: loaded(tmp, use_dora=True),
    ),
    (
        "adapter_config.json",
        "name its base_model_name_or_path, got None",
        lambda tmp: loaded(tmp, base_model_name_or_path=None),
    ),
    ("adapter", "be a whole model, got the adapter", on_an_adapter),
    ("adapter_model.safetensors", "hold lora_A and lora_B of ... got only one", with_one_side),
    (
        "adapter_model.safetensors",
        "hold lora_A (r, d_in) and lora_B (d_out, r) of ... got (3,) and (3,)",
        lambda tmp: loaded(
            tmp,
            tensors=lambda stored: {
                k: v[0, :3] if "A" in k else v[:3, 0] for k, v in stored.items()
            },
        ),
    ),
    (
        "adapter_config.json",
        "scale by finite numbers ... got must be real number, not str",
        lambda tmp: loaded(tmp, lora_alpha="twice"),
    ),
    ("adapter", "be an adapter of ... got an update of", lambda tmp: on_another(tmp, "gpt2")),
    (
        "model.layers.1.self_attn.q_proj.weight",
        "be of shape (128, 64), got one of (32, 32)",
        lambda tmp: on_another(tmp, "llama3"),
    ),
]
