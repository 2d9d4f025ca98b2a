"""Configs of published encoder-decoders, as their config.json has them.

Written down from memory; docs/families.md says what each was compared with.
"""

T5 = {
    "model_type": "t5",
    "architectures": ["T5ForConditionalGeneration"],
    "d_kv": 64,
    "decoder_start_token_id": 0,
    "dropout_rate": 0.1,
    "eos_token_id": 1,
    "initializer_factor": 1.0,
    "is_encoder_decoder": True,
    "layer_norm_epsilon": 1e-06,
    "n_positions": 512,
    "output_past": True,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 32,
    "vocab_size": 32128,
}
# version 1.1, Flan-T5 and mT5
GATED = {
    **{name: value for name, value in T5.items() if name != "n_positions"},
    "feed_forward_proj": "gated-gelu",
    "tie_word_embeddings": False,
}
MT5 = {
    **GATED,
    "model_type": "mt5",
    "architectures": ["MT5ForConditionalGeneration"],
    "tokenizer_class": "T5Tokenizer",
    "vocab_size": 250112,
}
UMT5 = {
    **MT5,
    "model_type": "umt5",
    "architectures": ["UMT5ForConditionalGeneration"],
    "scalable_attention": True,
    "vocab_size": 256384,
}
BART = {
    "model_type": "bart",
    "architectures": ["BartModel"],
    "activation_dropout": 0.1,
    "activation_function": "gelu",
    "add_bias_logits": False,
    "add_final_layer_norm": False,
    "attention_dropout": 0.1,
    "bos_token_id": 0,
    "classif_dropout": 0.1,
    "classifier_dropout": 0.0,
    "decoder_layerdrop": 0.0,
    "decoder_start_token_id": 2,
    "dropout": 0.1,
    "early_stopping": True,
    "encoder_layerdrop": 0.0,
    "eos_token_id": 2,
    "forced_bos_token_id": 0,
    "forced_eos_token_id": 2,
    "gradient_checkpointing": False,
    "init_std": 0.02,
    "is_encoder_decoder": True,
    "max_position_embeddings": 1024,
    "no_repeat_ngram_size": 3,
    "normalize_before": False,
    "num_beams": 4,
    "pad_token_id": 1,
    "scale_embedding": False,
    "vocab_size": 50265,
}


def bart(width, layers, heads):
    """A BART of equal stacks."""
    sizes = {"layers": layers, "attention_heads": heads, "ffn_dim": 4 * width}
    stacks = {f"{s}_{name}": size for s in ("encoder", "decoder") for name, size in sizes.items()}
    return {**BART, "d_model": width, "num_hidden_layers": layers, **stacks}


PUBLISHED = {
    "google-t5/t5-small": {**T5, "d_model": 512, "d_ff": 2048, "num_layers": 6, "num_heads": 8},
    "google-t5/t5-base": {**T5, "d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12},
    "google/t5-v1_1-base": {
        **GATED, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12,
    },
    "google/flan-t5-small": {
        **GATED, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6,
    },
    "google/mt5-base": {**MT5, "d_model": 768, "d_ff": 2048, "num_layers": 12, "num_heads": 12},
    "google/mt5-large": {**MT5, "d_model": 1024, "d_ff": 2816, "num_layers": 24, "num_heads": 16},
    "google/umt5-small": {**UMT5, "d_model": 512, "d_ff": 1024, "num_layers": 8, "num_heads": 6},
    "facebook/bart-base": bart(768, 6, 12),
    "facebook/bart-large": bart(1024, 12, 16),
}  # fmt: skip
