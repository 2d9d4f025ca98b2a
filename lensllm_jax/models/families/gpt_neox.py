"""GPT-NeoX (Black et al., 2022), the class of Pythia.

Attention and feed-forward side by side on the same state, rotary positions on a part of each
head, layer norms, biases everywhere; query, key and value in one tensor, head by head.

Example:
    >>> from lensllm_jax.models.families import FAMILIES
    >>> FAMILIES["gpt_neox"].prefixes[0]
    'gpt_neox.'
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import (
    Family,
    Weight,
    linear_weights,
    norm_weights,
)

HEADS = ("lm_head.weight", "embed_out.weight")  # of today, and of the published checkpoints


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a GPT-NeoX config.

    Args:
        hf: the attributes.

    Returns:
        The decoder that they describe.
    """
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    parallel = hf["use_parallel_residual"]
    return DecoderConfig(
        vocab_size=hf["vocab_size"],
        max_positions=hf["max_position_embeddings"],
        d_model=hf["hidden_size"],
        num_layers=hf["num_hidden_layers"],
        num_heads=hf["num_attention_heads"],
        d_ff=hf["intermediate_size"],
        activation=hf["hidden_act"],
        norm_epsilon=hf["layer_norm_eps"],
        block_form=BlockForm.PARALLEL if parallel else BlockForm.PRE_NORM,
        attention_bias=hf["attention_bias"],
        output_bias=hf["attention_bias"],
        rotaries=llama.rotaries(hf["rope_parameters"], head_dim),
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table.

    Args:
        config: the decoder to fill.

    Returns:
        One entry a checkpoint tensor.
    """
    block = "layers.{layer}"
    query_key_value = tuple(f"blocks/attention/{name}" for name in ("query", "key", "value"))
    embedding = Weight("embed_in.weight", "embed/embedding")
    head = Weight(HEADS[0], "head/kernel", transpose=True, outside=True, copies=HEADS[1:])
    return (
        *(
            [dataclasses.replace(embedding, copies=HEADS)]
            if config.tied_head
            else [embedding, head]
        ),
        *norm_weights("final_layer_norm", "final_norm"),
        *norm_weights(f"{block}.input_layernorm", "blocks/attention_norm"),
        *norm_weights(f"{block}.post_attention_layernorm", "blocks/feed_forward_norm"),
        *linear_weights(
            f"{block}.attention.query_key_value",
            query_key_value,
            use_bias=config.attention_bias,
            groups=config.num_heads,
        ),
        *linear_weights(
            f"{block}.attention.dense", "blocks/attention/out", use_bias=config.output_bias
        ),
        *linear_weights(f"{block}.mlp.dense_h_to_4h", "blocks/feed_forward/up", use_bias=True),
        *linear_weights(f"{block}.mlp.dense_4h_to_h", "blocks/feed_forward/down", use_bias=True),
    )


FAMILY = Family(
    name="gpt_neox",
    config=config,
    weights=weights,
    read=frozenset(
        """vocab_size max_position_embeddings hidden_size num_hidden_layers num_attention_heads
        intermediate_size hidden_act layer_norm_eps use_parallel_residual attention_bias
        rope_parameters tie_word_embeddings""".split()
    ),
    harmless=frozenset(
        """attention_dropout hidden_dropout classifier_dropout attention_probs_dropout_prob
        hidden_dropout_prob""".split()
    ),
    required={},
    prefixes=("gpt_neox.", ""),
    ignored=(
        r"layers\.\d+\.attention\.(masked_)?bias",
        r"layers\.\d+\.attention\.rotary_emb\.inv_freq",
    ),
    architecture="GPTNeoXForCausalLM",
)
