"""GPT-2 (Radford et al., 2019), also the class of Cerebras-GPT and LaMini-GPT.

Pre-norm blocks, learned absolute positions that count padding, query, key and value in one
tensor, weights stored (in, out), head tied to the embedding.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.family import (
    Family,
    Weight,
    embedding_weights,
    linear_weights,
    norm_weights,
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a GPT-2 config."""
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        max_positions=hf["n_positions"],
        d_model=hf["n_embd"],
        num_layers=hf["n_layer"],
        num_heads=hf["n_head"],
        d_ff=hf["n_inner"] or 4 * hf["n_embd"],
        activation=hf["activation_function"],
        norm_epsilon=hf["layer_norm_epsilon"],
        query_scale=None if hf["scale_attn_weights"] else 1.0,
        inverse_layer_scale=hf["scale_attn_by_inverse_layer_idx"],
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    block, ours = "h.{layer}", "blocks"
    query_key_value = tuple(f"{ours}/attention/{name}" for name in ("query", "key", "value"))
    table = [
        embedding_weights("wte", "embed", tied_head=config.tied_head),
        Weight("wpe.weight", "positions/embedding"),
        *norm_weights(f"{block}.ln_1", f"{ours}/attention_norm"),
        *norm_weights(f"{block}.ln_2", f"{ours}/feed_forward_norm"),
        *norm_weights("ln_f", "final_norm"),
    ]
    for kind, leaf in (("weight", "kernel"), ("bias", "bias")):
        table += [
            Weight(f"{block}.attn.c_attn.{kind}", tuple(f"{q}/{leaf}" for q in query_key_value)),
            Weight(f"{block}.attn.c_proj.{kind}", f"{ours}/attention/out/{leaf}"),
            Weight(f"{block}.mlp.c_fc.{kind}", f"{ours}/feed_forward/up/{leaf}"),
            Weight(f"{block}.mlp.c_proj.{kind}", f"{ours}/feed_forward/down/{leaf}"),
        ]
    if not config.tied_head:
        table += linear_weights("lm_head", "head", use_bias=False, outside=True)
    return tuple(table)


FAMILY = Family(
    name="gpt2",
    config=config,
    weights=weights,
    # scores are computed in float32 at least, whatever reorder_and_upcast_attn says
    harmless=frozenset(
        """resid_pdrop embd_pdrop attn_pdrop summary_type summary_use_proj summary_activation
        summary_proj_to_labels summary_first_dropout reorder_and_upcast_attn""".split()
    ),
    required={"add_cross_attention": False},
    prefixes=("transformer.", ""),
    ignored=(r"h\.\d+\.attn\.(masked_)?bias",),
    architecture="GPT2LMHeadModel",
)
