"""OPT (Zhang et al., 2022).

Learned positions that count real tokens only, two rows in; ReLU; all sizes pre-norm but the
350M form, which normalises after each sub-layer, has no final norm, and projects narrower
embeddings in and out.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.family import (
    Family,
    Weight,
    embedding_weights,
    linear_weights,
    norm_weights,
    sizes,
)


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of an OPT config."""
    return DecoderConfig(
        **sizes(hf),
        d_ff=hf["ffn_dim"],
        activation=hf["activation_function"],
        block_form=BlockForm.PRE_NORM if hf["do_layer_norm_before"] else BlockForm.POST_NORM,
        final_norm=not hf["_remove_final_layer_norm"] and hf["do_layer_norm_before"],
        attention_bias=hf["enable_bias"],
        output_bias=hf["enable_bias"],
        feed_forward_bias=hf["enable_bias"],
        d_embedding=hf["word_embed_proj_dim"],
        position_offset=2,
        positions_from_mask=True,
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    block, ours = "layers.{layer}", "blocks"
    table = [
        embedding_weights("embed_tokens", "embed", tied_head=config.tied_head),
        Weight("embed_positions.weight", "positions/embedding"),
        *norm_weights(f"{block}.self_attn_layer_norm", f"{ours}/attention_norm"),
        *norm_weights(f"{block}.final_layer_norm", f"{ours}/feed_forward_norm"),
    ]
    for theirs, name in (
        ("self_attn.q_proj", "attention/query"),
        ("self_attn.k_proj", "attention/key"),
        ("self_attn.v_proj", "attention/value"),
        ("self_attn.out_proj", "attention/out"),
        ("fc1", "feed_forward/up"),
        ("fc2", "feed_forward/down"),
    ):
        table += linear_weights(
            f"{block}.{theirs}", f"{ours}/{name}", use_bias=config.feed_forward_bias
        )
    if config.final_norm:
        table += norm_weights("final_layer_norm", "final_norm")
    if config.embedding_width != config.d_model:
        table += linear_weights("project_in", "project_in", use_bias=False)
        table += linear_weights("project_out", "project_out", use_bias=False)
    if not config.tied_head:
        table += linear_weights("lm_head", "head", use_bias=False, outside=True)
    return tuple(table)


FAMILY = Family(
    name="opt",
    config=config,
    weights=weights,
    harmless=frozenset({"dropout", "attention_dropout", "layerdrop"}),
    required={"layer_norm_elementwise_affine": True},
    prefixes=("model.decoder.", "decoder.", ""),
    architecture="OPTForCausalLM",
)
