"""Config of a GGUF file: its metadata as the attributes of Hugging Face's config.json.

What llama.cpp keeps in its code and not in the file (the scale of Gemma's queries, T5's
activation) is stated here; what the tensors show (tied head, biases) is taken from them.

Sources: llama.cpp's convert_hf_to_gguf.py and its graph of each architecture.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.gguf.header import Header, read_header
from lensllm_jax.checkpoints.gguf.tensors import read_values

# Hugging Face's name -> llama.cpp's, of what most decoders have
_SIZES = {
    "max_position_embeddings": "context_length",
    "num_hidden_layers": "block_count",
    "hidden_size": "embedding_length",
    "intermediate_size": "feed_forward_length",
    "num_attention_heads": "attention.head_count",
}
_NORM, _RMS_NORM = "attention.layer_norm_epsilon", "attention.layer_norm_rms_epsilon"
_TOKENS = {"bos_token_id": "bos", "eos_token_id": "eos", "pad_token_id": "padding"}
# what Llama 3 has in common over all its releases; the file holds the factors of all pairs
_LLAMA3 = {
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def gguf_config(header: Header) -> dict[str, Any]:
    """The attributes that a config.json beside the same weights would hold.

    Raises:
        UserError: if the architecture is not supported or the metadata lack a setting.
    """
    if header.architecture not in _ATTRIBUTES:
        raise checks.UserError(
            f"general.architecture of `{header.path}` must be one of "
            f"{', '.join(sorted(_ATTRIBUTES))}, got {header.architecture!r}"
        )
    if "token_embd.weight" not in header.tensors:
        raise checks.UserError(
            f"`{header.path}` must hold a language model with token_embd.weight, got none"
        )
    if header.architecture_value("expert_count"):
        raise checks.UserError(f"`{header.path}` must be a dense model, got one of experts")
    tokens = {
        name: header.metadata.get(f"tokenizer.ggml.{theirs}_token_id")
        for name, theirs in _TOKENS.items()
    }
    return {
        "vocab_size": header.tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in header.tensors,
        **{name: token for name, token in tokens.items() if token is not None},
        **_ATTRIBUTES[header.architecture](header),
    }


def _llama(header: Header) -> dict[str, Any]:
    return {
        **_rms_decoder(header, "llama"),
        "head_dim": header.architecture_value("attention.key_length")
        or _required(header, "rope.dimension_count"),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


def _qwen2(header: Header) -> dict[str, Any]:
    return _rms_decoder(header, "qwen2")


def _qwen3(header: Header) -> dict[str, Any]:
    return {**_rms_decoder(header, "qwen3"), "head_dim": _required(header, "attention.key_length")}


def _olmo2(header: Header) -> dict[str, Any]:
    return _rms_decoder(header, "olmo2")


def _smollm3(header: Header) -> dict[str, Any]:
    return _rms_decoder(header, "smollm3")


def _stablelm(header: Header) -> dict[str, Any]:
    return {
        **_decoder(header, "stablelm"),
        "num_key_value_heads": _required(header, "attention.head_count_kv", "attention.head_count"),
        "layer_norm_eps": _required(header, _NORM),
        "partial_rotary_factor": _required(header, "rope.dimension_count") / _head_dim(header),
        "rope_theta": header.architecture_value("rope.freq_base", 10000.0),
        # llama.cpp too looks for the tensors
        "use_parallel_residual": "blk.0.ffn_norm.weight" not in header.tensors,
        "use_qkv_bias": "blk.0.attn_q.bias" in header.tensors,
        "qk_layernorm": "blk.0.attn_q_norm.weight" in header.tensors,
    }


def _phi3(header: Header) -> dict[str, Any]:
    width = _head_dim(header)
    rotated = header.architecture_value("rope.dimension_count")
    return {
        **_rms_decoder(header, "phi3"),
        "sliding_window": header.architecture_value("attention.sliding_window") or None,
        "partial_rotary_factor": (
            1.0 if rotated is None else _required(header, "rope.dimension_count") / width
        ),
        "original_max_position_embeddings": header.architecture_value(
            "rope.scaling.original_context_length", _required(header, "context_length")
        ),
    }


def _gemma(header: Header) -> dict[str, Any]:
    return {
        **_rms_decoder(header, "gemma"), "tie_word_embeddings": True,
        "head_dim": _required(header, "attention.key_length"),
    }  # fmt: skip


def _gemma2(header: Header) -> dict[str, Any]:
    return {
        **_gemma(header),
        "model_type": "gemma2",
        "sliding_window": _required(header, "attention.sliding_window"),
        "attn_logit_softcapping": header.architecture_value("attn_logit_softcapping", 50.0),
        "final_logit_softcapping": header.architecture_value("final_logit_softcapping", 30.0),
        "query_pre_attn_scalar": _query_scalar(header, of_27b=46),
    }


def _gemma3(header: Header) -> dict[str, Any]:
    return {
        **_gemma(header),
        "model_type": "gemma3_text",
        "sliding_window": _required(header, "attention.sliding_window"),
        "rope_local_base_freq": header.architecture_value("rope.freq_base_swa", 10000.0),
        "final_logit_softcapping": header.architecture_value("final_logit_softcapping"),
        "query_pre_attn_scalar": _query_scalar(header, of_27b=62),
    }


def _gpt2(header: Header) -> dict[str, Any]:
    return {
        "model_type": "gpt2",
        "n_positions": _required(header, "context_length"),
        "n_embd": _required(header, "embedding_length"),
        "n_layer": _required(header, "block_count"),
        "n_head": _required(header, "attention.head_count"),
        "n_inner": _required(header, "feed_forward_length"),
        "layer_norm_epsilon": _required(header, _NORM),
    }


def _gptneox(header: Header) -> dict[str, Any]:
    return {
        **_decoder(header, "gpt_neox"),
        "layer_norm_eps": _required(header, _NORM),
        "rotary_pct": _required(header, "rope.dimension_count") / _head_dim(header),
        "rotary_emb_base": header.architecture_value("rope.freq_base", 10000.0),
        "use_parallel_residual": header.architecture_value("use_parallel_residual", True),
        "attention_bias": "blk.0.attn_qkv.bias" in header.tensors,
    }


def _phi2(header: Header) -> dict[str, Any]:
    return {
        **_decoder(header, "phi"),
        "num_key_value_heads": _required(header, "attention.head_count_kv"),
        "layer_norm_eps": _required(header, _NORM),
        "partial_rotary_factor": _required(header, "rope.dimension_count") / _head_dim(header),
        "rope_theta": header.architecture_value("rope.freq_base", 10000.0),
        "tie_word_embeddings": False,
    }


def _t5(header: Header) -> dict[str, Any]:
    gated = "enc.blk.0.ffn_gate.weight" in header.tensors
    layers = _required(header, "block_count")
    return {
        # only UMT5 has a table of relative positions in every block
        "model_type": "umt5" if "enc.blk.1.attn_rel_b.weight" in header.tensors else "t5",
        "n_positions": _required(header, "context_length"),
        "num_layers": layers,
        "num_decoder_layers": header.architecture_value("decoder_block_count", layers),
        "d_model": _required(header, "embedding_length"),
        "d_ff": _required(header, "feed_forward_length"),
        "d_kv": _required(header, "attention.key_length"),
        "num_heads": _required(header, "attention.head_count"),
        "layer_norm_epsilon": _required(header, _RMS_NORM, _NORM),
        "relative_attention_num_buckets": _required(header, "attention.relative_buckets_count"),
        "feed_forward_proj": "gated-gelu" if gated else "relu",
        "decoder_start_token_id": header.architecture_value("decoder_start_token_id", 0),
    }


_ATTRIBUTES: Mapping[str, Callable[[Header], dict[str, Any]]] = {
    "gemma": _gemma,
    "gemma2": _gemma2,
    "gemma3": _gemma3,
    "gpt2": _gpt2,
    "gptneox": _gptneox,
    "llama": _llama,
    "olmo2": _olmo2,
    "phi2": _phi2,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "smollm3": _smollm3,
    "stablelm": _stablelm,
    "t5": _t5,
}


def _decoder(header: Header, model_type: str) -> dict[str, Any]:
    sizes = {name: _required(header, theirs) for name, theirs in _SIZES.items()}
    return {"model_type": model_type, **sizes}


def _rms_decoder(header: Header, model_type: str) -> dict[str, Any]:
    """The attributes of Llama and what was made after it."""
    return {
        **_decoder(header, model_type),
        "num_key_value_heads": header.architecture_value(
            "attention.head_count_kv", _required(header, "attention.head_count")
        ),
        "rms_norm_eps": _required(header, _RMS_NORM),
        "rope_theta": header.architecture_value("rope.freq_base", 10000.0),
        **({"rope_scaling": scaling} if (scaling := _rope_scaling(header)) else {}),
    }


def _required(header: Header, *keys: str) -> Any:
    """The first of these settings that the file has, a number."""
    value = next((v for key in keys if (v := header.architecture_value(key)) is not None), None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < np.inf:
        raise checks.UserError(
            f"{header.architecture}.{keys[0]} of `{header.path}` must be a number, got {value!r}"
        )
    return value


def _head_dim(header: Header) -> int:
    width, heads = _required(header, "embedding_length"), _required(header, "attention.head_count")
    if heads > width:
        raise checks.UserError(
            f"`{header.path}` must be at least as wide as it has heads, got {width} and {heads}"
        )
    return int(width // heads)


def _query_scalar(header: Header, *, of_27b: int) -> int | float:
    """Gemma's largest model, known by its number of blocks, has a scale of its own."""
    is_27b = _required(header, "block_count") == of_27b
    return _head_dim(header) if is_27b else _required(header, "attention.key_length")


def _rope_scaling(header: Header) -> dict[str, Any] | None:
    """How rotary positions are stretched, in Hugging Face's terms."""
    if "rope_freqs.weight" in header.tensors:
        return _llama3_scaling(header)
    kind = header.architecture_value("rope.scaling.type", "none")
    if kind == "none":
        longrope = any(name.startswith("rope_factors_") for name in header.tensors)
        return {"rope_type": "longrope"} if longrope else None
    return {"rope_type": kind, "factor": header.architecture_value("rope.scaling.factor")}


def _llama3_scaling(header: Header) -> dict[str, Any]:
    """Llama 3's settings, if they give the divisors of the frequencies that the file holds."""
    from lensllm_jax.models.rotary import Rotary

    divisors = read_values(header, "rope_freqs.weight")
    settings = {"rope_type": "llama3", "factor": max(float(divisors.max()), 1.0), **_LLAMA3}
    default = header.architecture_value("rope.freq_base") is None
    base = 10000.0 if default else _required(header, "rope.freq_base")
    width = 2 * len(divisors)
    scaled = Rotary.of_config({**settings, "rope_theta": base}, width).frequencies()
    plain = Rotary.of_config({"rope_theta": base}, width).frequencies()
    if not np.allclose(scaled * divisors, plain, rtol=1e-5):
        raise checks.UserError(
            f"rope_freqs.weight of `{header.path}` must be that of Llama 3 (wavelengths of 8192 "
            f"tokens stretched between factors 1 and 4), got others up to {divisors.max():g}"
        )
    return settings


def read_gguf_config(path: Any) -> dict[str, Any]:
    """As :func:`gguf_config`, of a file."""
    return gguf_config(read_header(path))
