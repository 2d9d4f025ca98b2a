"""Llama (Touvron et al., 2023; Llama 3: Dubey et al., 2024), also the class of SmolLM2.

Pre-norm blocks with root-mean-square norms, gated feed-forward networks, rotary positions,
fewer heads of keys and values than of queries, biases only where the config has them.  Qwen,
Gemma and Phi-3 descend from it: their files say what they changed.
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
    sizes,
)
from lensllm_jax.models.rotary import Rotary

HARMLESS = frozenset({"attention_dropout", "pretraining_tp"})
NORMS = {"input_layernorm": "attention_norm", "post_attention_layernorm": "feed_forward_norm"}
IGNORED = (r"layers\.\d+\.self_attn\.rotary_emb\.inv_freq",)
BLOCK = "layers.{layer}"


def config(hf: Mapping[str, Any], *, activation: str = "hidden_act") -> DecoderConfig:
    """Our config from the attributes of a Llama config; descendants rename the activation."""
    head_dim = hf.get("head_dim") or hf["hidden_size"] // hf["num_attention_heads"]
    return DecoderConfig(
        **sizes(hf),
        num_kv_heads=hf["num_key_value_heads"],
        head_dim=head_dim,
        d_ff=hf["intermediate_size"],
        activation=hf[activation],
        gated=True,
        norm="rms",
        norm_epsilon=hf["rms_norm_eps"],
        attention_bias=hf.get("attention_bias", False),
        output_bias=hf.get("attention_bias", False),
        feed_forward_bias=hf.get("mlp_bias", False),
        rotaries=rotaries(hf["rope_parameters"], head_dim),
        tied_head=hf["tie_word_embeddings"],
    )


def rotaries(parameters: Mapping[str, Any], head_dim: int) -> tuple[Rotary, ...]:
    """The rotations of a model, one, or one for each kind of layer."""
    kinds = ("full_attention", "sliding_attention")
    parts = [parameters[kind] for kind in kinds if kind in parameters] or [parameters]
    return tuple(Rotary.of_config(part, head_dim) for part in parts)


def sliding_layers(hf: Mapping[str, Any]) -> dict[str, Any]:
    """Which layers see a window alone, as settings of a ``DecoderConfig``.

    Raises:
        UserError: if a layer is of a kind that is not implemented.
    """
    kinds = ("full_attention", "sliding_attention")
    slides = [checks.one_of("layer_types", kind, kinds) == kinds[1] for kind in hf["layer_types"]]
    return {"window": hf["sliding_window"], "sliding_layers": tuple(slides)}


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    return (*ends(config), *block_norms(NORMS), *attention(config), *feed_forward(config))


def ends(config: DecoderConfig, *, offset: float = 0.0) -> tuple[Weight, ...]:
    """What stands before and after the blocks: embedding, final norm, head."""
    head = linear_weights("lm_head", "head", use_bias=False, outside=True)
    return (
        embedding_weights("embed_tokens", "embed", tied_head=config.tied_head),
        *norm_weights("norm", "final_norm", use_bias=False, offset=offset),
        *(() if config.tied_head else head),
    )


def block_norms(names: Mapping[str, str], *, offset: float = 0.0) -> tuple[Weight, ...]:
    """The norms of a block."""
    return tuple(
        weight
        for theirs, ours in names.items()
        for weight in norm_weights(
            f"{BLOCK}.{theirs}", f"blocks/{ours}", use_bias=False, offset=offset
        )
    )


def attention(config: DecoderConfig) -> tuple[Weight, ...]:
    """The four projections of a block's attention."""
    return tuple(
        weight
        for theirs, ours, use_bias in (
            ("q_proj", "query", config.attention_bias),
            ("k_proj", "key", config.attention_bias),
            ("v_proj", "value", config.attention_bias),
            ("o_proj", "out", config.output_bias),
        )
        for weight in linear_weights(
            f"{BLOCK}.self_attn.{theirs}", f"blocks/attention/{ours}", use_bias=use_bias
        )
    )


def feed_forward(config: DecoderConfig) -> tuple[Weight, ...]:
    """The three layers of a block's gated network."""
    return tuple(
        weight
        for name in ("gate", "up", "down")
        for weight in linear_weights(
            f"{BLOCK}.mlp.{name}_proj",
            f"blocks/feed_forward/{name}",
            use_bias=config.feed_forward_bias,
        )
    )


FAMILY = Family(
    name="llama",
    config=config,
    weights=weights,
    harmless=HARMLESS,
    ignored=IGNORED,
    architecture="LlamaForCausalLM",
)
