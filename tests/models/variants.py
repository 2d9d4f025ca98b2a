"""Tiny configs of every family and variant, as Hugging Face attributes.

Weights are drawn with a standard deviation of 0.2, not 0.02: logits of order one, and every
activation, norm and projection far from its linear regime, so that a wrong one shows.
"""

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

VARIANTS = {
    "gpt2": GPT2,
    "gpt2-cerebras": {**GPT2, "activation_function": "gelu", "n_inner": 20},
    "gpt2-untied": {**GPT2, "tie_word_embeddings": False},
    "gpt2-relu-epsilon": {**GPT2, "activation_function": "relu", "layer_norm_epsilon": 1e-2},
    "opt": OPT,
    "opt-350m-form": {**OPT, "do_layer_norm_before": False, "word_embed_proj_dim": 8},
    "opt-no-bias-gelu": {**OPT, "enable_bias": False, "activation_function": "gelu"},
    "opt-untied": {**OPT, "tie_word_embeddings": False},
    "opt-no-final-norm": {**OPT, "_remove_final_layer_norm": True},
}


def batch():
    """Two padded sequences, one to the right and one to the left; pads are masked labels."""
    import numpy as np

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
