"""GPT-Neo (Black et al., 2021): GPT-2, every other layer of which sees a window alone.

Scores are not scaled; query, key and value have no biases and tensors of their own, stored
(out, in).
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax import checks
from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.family import (
    Family,
    Weight,
    embedding_weights,
    linear_weights,
    norm_weights,
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a GPT-Neo config."""
    kinds = ("global", "local")
    slides = [
        checks.one_of("attention_types", kind, kinds) == "local" for kind in hf["attention_layers"]
    ]
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        max_positions=hf["max_position_embeddings"],
        d_model=hf["hidden_size"],
        num_layers=hf["num_layers"],
        num_heads=hf["num_heads"],
        d_ff=hf["intermediate_size"] or 4 * hf["hidden_size"],
        activation=hf["activation_function"],
        norm_epsilon=hf["layer_norm_epsilon"],
        attention_bias=False,
        query_scale=1.0,
        window=hf["window_size"],
        sliding_layers=tuple(slides),
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    block = "h.{layer}"
    table = [
        embedding_weights("wte", "embed", tied_head=config.tied_head),
        Weight("wpe.weight", "positions/embedding"),
        *norm_weights(f"{block}.ln_1", "blocks/attention_norm"),
        *norm_weights(f"{block}.ln_2", "blocks/feed_forward_norm"),
        *norm_weights("ln_f", "final_norm"),
    ]
    for theirs, ours, use_bias in (
        ("attn.attention.q_proj", "attention/query", False),
        ("attn.attention.k_proj", "attention/key", False),
        ("attn.attention.v_proj", "attention/value", False),
        ("attn.attention.out_proj", "attention/out", True),
        ("mlp.c_fc", "feed_forward/up", True),
        ("mlp.c_proj", "feed_forward/down", True),
    ):
        table += linear_weights(f"{block}.{theirs}", f"blocks/{ours}", use_bias=use_bias)
    if not config.tied_head:
        table += linear_weights("lm_head", "head", use_bias=False, outside=True)
    return tuple(table)


FAMILY = Family(
    name="gpt_neo",
    config=config,
    weights=weights,
    # attention_types has become attention_layers
    harmless=frozenset(
        "resid_dropout embed_dropout attention_dropout classifier_dropout attention_types".split()
    ),
    prefixes=("transformer.", ""),
    ignored=(r"h\.\d+\.attn\.attention\.(masked_)?bias",),
    architecture="GPTNeoForCausalLM",
)
