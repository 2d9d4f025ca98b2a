"""Tiny models whose rows divide into the blocks of GGUF files, as Hugging Face attributes."""

SIZES = {"vocab_size": 64, "num_hidden_layers": 2, "max_position_embeddings": 48}
# widths are multiples of 32, so that rows divide into blocks
LLAMA = {
    **SIZES, "model_type": "llama", "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "rope_theta": 500.0, "rms_norm_eps": 1e-5,
}  # fmt: skip
GEMMA = {**LLAMA, "head_dim": 16, "sliding_window": 4, "rope_theta": 10000.0}
STABLELM = {
    **SIZES, "model_type": "stablelm", "hidden_size": 32, "intermediate_size": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "layer_norm_eps": 1e-5,
    "partial_rotary_factor": 0.25, "rope_theta": 500.0, "tie_word_embeddings": False,
}  # fmt: skip
T5 = {
    "model_type": "t5", "vocab_size": 64, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 3,
    "num_decoder_layers": 2, "num_heads": 2, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0, "n_positions": 48,
}  # fmt: skip

# llama.cpp's architecture, and the attributes of a tiny model of it
MODELS = {
    "llama": ("llama", LLAMA),
    "llama-untied": ("llama", {**LLAMA, "tie_word_embeddings": False}),
    "llama-tied": ("llama", {**LLAMA, "tie_word_embeddings": True}),
    "llama3": (
        "llama",
        {
            **LLAMA, "rope_theta": 500000.0, "hidden_size": 64, "head_dim": 32,
            "rope_scaling": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 8192,
            },
        },
    ),
    "qwen2": ("qwen2", {**LLAMA, "model_type": "qwen2"}),
    "qwen3": ("qwen3", {**LLAMA, "model_type": "qwen3", "head_dim": 16}),
    "mistral": ("llama", {**LLAMA, "model_type": "mistral", "sliding_window": None}),
    "olmo2": ("olmo2", {**LLAMA, "model_type": "olmo2", "pad_token_id": 0}),
    "smollm3": (
        "smollm3",
        {
            **LLAMA, "model_type": "smollm3", "pad_token_id": 0, "num_hidden_layers": 5,
            "tie_word_embeddings": True,
        },
    ),
    "stablelm": ("stablelm", STABLELM),
    "stablelm-parallel-biases": (
        "stablelm", {**STABLELM, "use_parallel_residual": True, "use_qkv_bias": True},
    ),
    "gemma": ("gemma", {**GEMMA, "model_type": "gemma"}),
    "gemma2": ("gemma2", {**GEMMA, "model_type": "gemma2", "query_pre_attn_scalar": 16}),
    "gemma3": (
        "gemma3",
        {
            **GEMMA, "model_type": "gemma3_text", "query_pre_attn_scalar": 16,
            "rope_theta": 1e6, "rope_local_base_freq": 10000.0, "num_hidden_layers": 7,
        },
    ),
    "phi3": (
        "phi3",
        {**LLAMA, "model_type": "phi3", "pad_token_id": 0, "tie_word_embeddings": False},
    ),
    "phi2": (
        "phi2",
        {
            **SIZES, "model_type": "phi", "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 4, "partial_rotary_factor": 0.5, "layer_norm_eps": 1e-5,
        },
    ),
    "gptneox": (
        "gptneox",
        {
            **SIZES, "model_type": "gpt_neox", "hidden_size": 32, "intermediate_size": 64,
            "num_attention_heads": 4, "rotary_pct": 0.25, "layer_norm_eps": 1e-5,
        },
    ),
    "gpt2": (
        "gpt2",
        {
            "model_type": "gpt2", "vocab_size": 64, "n_layer": 2, "n_embd": 32, "n_head": 4,
            "n_positions": 48, "layer_norm_epsilon": 1e-5,
        },
    ),
    "t5": ("t5", {**T5, "tie_word_embeddings": True}),
    "umt5": (
        "t5",
        {
            **T5, "model_type": "umt5", "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
        },
    ),
    "t5-1.1": (
        "t5", {**T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}
    ),
}  # fmt: skip
