"""BART (Lewis et al., 2020).

Post-norm blocks with biases; learned positions, two rows in, that count padding; a norm on the
embeddings and none after the last block; one table for encoder, decoder and head, and
constants that are added to the logits (zero in the published checkpoints).
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm
from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig, StackConfig
from lensllm_jax.models.family import CONSTANT, Family, Weight, linear_weights, norm_weights

POSITION_OFFSET = 2
ATTENTION = {"q_proj": "query", "k_proj": "key", "v_proj": "value", "out_proj": "out"}
PREFIXES = ("model.", "")


def config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config from the attributes of a BART config."""
    encoder, decoder = (
        StackConfig(
            num_layers=hf[f"{stack}_layers"],
            num_heads=hf[f"{stack}_attention_heads"],
            head_dim=hf["d_model"] // hf[f"{stack}_attention_heads"],
            d_ff=hf[f"{stack}_ffn_dim"],
        )
        for stack in ("encoder", "decoder")
    )
    return EncoderDecoderConfig(
        vocab_size=hf["vocab_size"],
        d_model=hf["d_model"],
        encoder=encoder,
        decoder=decoder,
        max_positions=hf["max_position_embeddings"],
        position_offset=POSITION_OFFSET,
        activation=hf["activation_function"],
        block_form=BlockForm.POST_NORM,
        embedding_norm=True,
        final_norm=False,
        use_bias=True,
        embedding_scale=hf["d_model"] ** 0.5 if hf["scale_embedding"] else 1.0,
        tied_head=hf["tie_word_embeddings"],
        logit_bias=True,
        decoder_start_token_id=hf["decoder_start_token_id"],
        pad_token_id=hf["pad_token_id"],
    )


def weights(config: EncoderDecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    copies = [f"{p}{s}.embed_tokens.weight" for p in PREFIXES for s in ("encoder", "decoder")]
    copies += ["lm_head.weight"] if config.tied_head else []
    table = [
        Weight(
            "shared.weight",
            "embed/embedding",
            copies=tuple(copies),
            writes_copies=not config.tied_head,
        ),
        # checkpoints of the bare model lack it
        Weight("final_logits_bias", f"logit_bias/{CONSTANT}", outside=True, optional=True),
    ]
    for stack, attentions in (
        ("encoder", {"self_attn": "attention"}),
        ("decoder", {"self_attn": "attention", "encoder_attn": "cross_attention"}),
    ):
        theirs, ours = f"{stack}.layers.{{layer}}", f"{stack}/blocks"
        table += [
            Weight(f"{stack}.embed_positions.weight", f"{stack}/positions/embedding"),
            *norm_weights(f"{stack}.layernorm_embedding", f"{stack}/embedding_norm"),
            *norm_weights(f"{theirs}.final_layer_norm", f"{ours}/feed_forward_norm"),
        ]
        layers = {"fc1": "feed_forward/up", "fc2": "feed_forward/down"}
        for module, name in attentions.items():
            table += norm_weights(f"{theirs}.{module}_layer_norm", f"{ours}/{name}_norm")
            layers |= {f"{module}.{t}": f"{name}/{layer}" for t, layer in ATTENTION.items()}
        for module, name in layers.items():
            table += linear_weights(f"{theirs}.{module}", f"{ours}/{name}", use_bias=True)
    if not config.tied_head:
        table += linear_weights("lm_head", "head", use_bias=False, outside=True)
    return tuple(table)


FAMILY = Family(
    name="bart",
    config=config,
    weights=weights,
    harmless=frozenset(
        """dropout attention_dropout activation_dropout classifier_dropout encoder_layerdrop
        decoder_layerdrop num_hidden_layers""".split()
    ),
    prefixes=PREFIXES,
    ignored=(r"(encoder|decoder)\.version",),
    architecture="BartForConditionalGeneration",
)
