"""Tiny encoder-decoders of every family and variant, as Hugging Face attributes; a batch."""

import numpy as np

T5 = {
    "model_type": "t5",
    "vocab_size": 37,
    "d_model": 12,
    "d_kv": 5,
    "d_ff": 20,
    "num_layers": 3,
    "num_decoder_layers": 2,
    "num_heads": 2,
    # so few that the batch reaches exact, logarithmic and shared buckets
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 6,
    "decoder_start_token_id": 0,
}
BART = {
    "model_type": "bart",
    "vocab_size": 37,
    "d_model": 12,
    "max_position_embeddings": 16,
    "encoder_layers": 3,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 3,
    "encoder_ffn_dim": 20,
    "decoder_ffn_dim": 16,
}
UNTIED = {"tie_word_embeddings": False}

ENCODER_DECODERS = {
    "t5": T5,
    "t5-gated-tied": {**T5, "feed_forward_proj": "gated-gelu"},
    "t5-1.1": {**T5, **UNTIED, "feed_forward_proj": "gated-gelu"},
    "t5-untied-relu": {**T5, **UNTIED},
    "t5-gated-silu-epsilon": {**T5, "feed_forward_proj": "gated-silu", "layer_norm_epsilon": 1e-2},
    "mt5": {**T5, **UNTIED, "model_type": "mt5", "feed_forward_proj": "gated-gelu"},
    "umt5": {**T5, **UNTIED, "model_type": "umt5", "feed_forward_proj": "gated-gelu"},
    "umt5-tied": {**T5, "model_type": "umt5", "feed_forward_proj": "gated-gelu"},
    "bart": BART,
    "bart-scaled-embeddings": {**BART, "scale_embedding": True},
    "bart-relu": {**BART, "activation_function": "relu"},
    "bart-untied": {**BART, **UNTIED},
}


def seq2seq_batch():
    """Encoder rows padded left, right and not at all; labels of three lengths."""
    rng = np.random.default_rng(0)
    input_ids = rng.integers(4, 37, (3, 9)).astype(np.int32)
    attention_mask = np.ones((3, 9), np.int32)
    attention_mask[1, 6:] = 0
    attention_mask[2, :3] = 0
    labels = rng.integers(4, 37, (3, 7)).astype(np.int32)
    labels[1, 5:] = -100
    labels[2, 2:] = -100
    return {
        "input_ids": np.where(attention_mask == 1, input_ids, 1).astype(np.int32),
        "attention_mask": attention_mask,
        "labels": labels,
    }
