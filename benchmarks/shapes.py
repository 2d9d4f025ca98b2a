"""Configs of published models, whose shapes several benchmarks take with random weights."""

from collections.abc import Mapping
from typing import Any

# SmolLM2-135M, as its config.json says it
SMOLLM2: Mapping[str, Any] = {
    "model_type": "llama", "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536,
    "num_hidden_layers": 30, "num_attention_heads": 9, "num_key_value_heads": 3,
    "tie_word_embeddings": True, "rope_theta": 100000.0, "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip
