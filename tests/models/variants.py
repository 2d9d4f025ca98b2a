"""Tiny configs of every family and variant, as Hugging Face attributes, and their weights.

Weights are drawn with a standard deviation of 0.2, not 0.02: logits of order one, and every
activation, norm and projection far from its linear regime, so that a wrong one shows.
"""

import zlib

import numpy as np

GPT2 = {
    "model_type": "gpt2",
    "vocab_size": 37,
    "n_positions": 16,
    "n_embd": 12,
    "n_layer": 3,
    "n_head": 2,
    "initializer_range": 0.2,
}
OPT = {
    "model_type": "opt",
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "ffn_dim": 20,
    "word_embed_proj_dim": 12,
    "init_std": 0.2,
}

LLAMA = {
    "model_type": "llama",
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "intermediate_size": 20,
    "initializer_range": 0.2,
}
GROUPED = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 6}
# The slowest of three pairs is slowed down, the fastest kept, the middle one blended.
LLAMA3_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 100.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
QWEN2 = {**LLAMA, "model_type": "qwen2"}
SLIDING = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 1}
QWEN3 = {**LLAMA, "model_type": "qwen3", "head_dim": 6}
GEMMA2 = {
    **LLAMA,
    **GROUPED,
    "model_type": "gemma2",
    "query_pre_attn_scalar": 9,
    "sliding_window": 3,
    "attn_logit_softcapping": 2.0,
    "final_logit_softcapping": 3.0,
}
GEMMA3 = {
    **{name: value for name, value in GEMMA2.items() if "softcapping" not in name},
    "model_type": "gemma3_text",
    "num_hidden_layers": 7,  # the sixth sees everything
}
NEOX = {
    "model_type": "gpt_neox",
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "hidden_size": 24,
    "num_hidden_layers": 3,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "initializer_range": 0.2,
    "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
PHI = {
    **LLAMA,
    "model_type": "phi",
    "hidden_size": 16,
    "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5},
}
PHI3 = {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "eos_token_id": 2}

MISTRAL = {**LLAMA, "model_type": "mistral", "sliding_window": None}
GEMMA = {**LLAMA, "model_type": "gemma", "head_dim": 6}
GPT_NEO = {
    "model_type": "gpt_neo",
    "vocab_size": 37,
    "max_position_embeddings": 16,
    "hidden_size": 12,
    "num_layers": 3,
    "attention_types": [[["global", "local", "global"], 1]],
    "num_heads": 2,
    "window_size": 3,
    "initializer_range": 0.2,
}
SMOLLM3 = {**LLAMA, "model_type": "smollm3", "no_rope_layer_interval": 2, "pad_token_id": 0}
OLMO2 = {**LLAMA, "model_type": "olmo2", "pad_token_id": 0}
STABLELM = {
    **LLAMA,
    "model_type": "stablelm",
    "hidden_size": 16,
    "rope_parameters": {"rope_theta": 100.0, "partial_rotary_factor": 0.5},
}

VARIANTS = {
    "gpt2": GPT2,
    "gpt2-inverse-layers": {
        **GPT2, "scale_attn_by_inverse_layer_idx": True, "reorder_and_upcast_attn": True,
    },
    "gpt2-unscaled": {**GPT2, "scale_attn_weights": False},
    "gpt2-cerebras": {**GPT2, "activation_function": "gelu", "n_inner": 20},
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
    "gpt2-relu-epsilon": {**GPT2, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "opt": OPT,
    "opt-350m-form": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8},
    "opt-no-bias-gelu": {**OPT, "enable_bias": False, "activation_function": "gelu"},
    "opt-untied": {**OPT, "tie_word_embeddings": False},
    "opt-no-final-norm": {**OPT, "_remove_final_layer_norm": True},
    "llama": LLAMA,
    "llama-tied-grouped": {**LLAMA, **GROUPED, "tie_word_embeddings": True},
    "llama-3-rope": {**LLAMA, "rope_parameters": LLAMA3_ROPE},
    "llama-linear-rope": {
        **LLAMA,
        "rope_parameters": {"rope_type": "linear", "rope_theta": 100.0, "factor": 4.0},
    },
    "llama-biases-gelu": {
        **LLAMA, "attention_bias": True, "mlp_bias": True, "hidden_act": "gelu",
    },
    "mistral": MISTRAL,
    "mistral-grouped-sliding-tied": {
        **MISTRAL, **GROUPED, "sliding_window": 3, "tie_word_embeddings": True,
    },
    "gemma": GEMMA,
    "gemma-grouped-untied-gelu": {
        **GEMMA, **GROUPED, "tie_word_embeddings": False, "hidden_act": "gelu",
    },
    "gpt-neo": GPT_NEO,
    "gpt-neo-untied": {**GPT_NEO, "tie_word_embeddings": False, "intermediate_size": 20},
    "smollm3": SMOLLM3,
    "smollm3-grouped-sliding-untied": {
        **SMOLLM3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24,
        "use_sliding_window": True, "sliding_window": 3, "tie_word_embeddings": False,
    },
    "olmo2": OLMO2,
    "olmo2-grouped-biases-tied": {
        **OLMO2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24,
        "attention_bias": True, "tie_word_embeddings": True,
    },
    "stablelm": STABLELM,
    "stablelm-parallel-grouped-biases": {
        **STABLELM, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 32,
        "use_parallel_residual": True, "use_qkv_bias": True, "tie_word_embeddings": True,
    },
    "qwen2": QWEN2,
    "qwen2-tied-sliding": {**QWEN2, **SLIDING, "tie_word_embeddings": True},
    "qwen3": QWEN3,
    "qwen3-tied-grouped-sliding": {**QWEN3, **GROUPED, **SLIDING, "tie_word_embeddings": True},
    "qwen3-biases": {**QWEN3, "attention_bias": True},
    "gemma2": GEMMA2,
    "gemma2-uncapped-untied": {
        **GEMMA2,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
        "tie_word_embeddings": False,
    },
    "gemma3": GEMMA3,
    "gemma3-capped-scaled-rope": {
        **GEMMA3,
        "final_logit_softcapping": 3.0,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 100.0, "factor": 8.0},
        },
    },
    "pythia": NEOX,
    "pythia-sequential-tied": {
        **NEOX, "use_parallel_residual": False, "tie_word_embeddings": True,
    },
    "pythia-no-attention-bias": {**NEOX, "attention_bias": False},
    "phi": PHI,
    "phi-grouped-normed": {
        **PHI, "num_attention_heads": 4, "num_key_value_heads": 2, "qk_layernorm": True,
        "hidden_size": 32,
    },
    "phi3": PHI3,
    "phi3-grouped-sliding-tied": {
        **PHI3, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 24,
        "sliding_window": 3, "tie_word_embeddings": True,
    },
}  # fmt: skip


def weight(name, shape, centre):
    """The weights of one checkpoint tensor: they depend on its name and on nothing else."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    # exact in float32, so that every type holds the same numbers
    return np.float32(centre) + rng.normal(scale=0.2, size=shape).astype(np.float32)


def batch():
    """Two padded sequences, one to the right and one to the left; pads are masked labels."""
    rng = np.random.default_rng(0)
    input_ids = rng.integers(4, 37, (3, 9)).astype(np.int32)
    attention_mask = np.ones((3, 9), np.int32)
    attention_mask[1, 6:] = 0
    attention_mask[2, :3] = 0
    labels = np.where(attention_mask == 1, input_ids, -100).astype(np.int32)
    labels[0, :3] = -100  # a prompt
    labels[2, 3] = -100  # its logits stand at padding, where they mean nothing
    return {
        "input_ids": np.where(attention_mask == 1, input_ids, 1),
        "attention_mask": attention_mask,
        "labels": labels,
    }
