"""T5 (Raffel et al., 2020), its version 1.1, and Flan-T5 (Chung et al., 2022).

Pre-norm blocks with root-mean-square norms and no biases; relative positions, one table a
stack; attention scores that are not scaled.  The first version ties the head to the table of
embeddings and scales the states before it; version 1.1 and Flan-T5 have a head of their own
and gated feed-forward networks.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig, StackConfig
from lensllm_jax.models.family import Family, Weight, linear_weights, norm_weights
from lensllm_jax.models.relative import Buckets

# feed_forward_proj arrives as the two attributes that Hugging Face makes of it, and
# tie_word_embeddings is overwritten by Hugging Face whatever the checkpoint says
HARMLESS = frozenset(
    """feed_forward_proj tie_word_embeddings dropout_rate classifier_dropout
    initializer_factor""".split()
)
# a table that early checkpoints hold and no version of the model reads
IGNORED = (r"decoder\.block\.0\.layer\.1\.EncDecAttention\.relative_attention_bias\.weight",)


def config(hf: Mapping[str, Any]) -> EncoderDecoderConfig:
    """Our config from the attributes of a T5 config."""
    # Hugging Face keeps only this of what a checkpoint says about its head
    return described(hf, scaled_head=hf["scale_decoder_outputs"])


def described(
    hf: Mapping[str, Any], *, scaled_head: bool, table_per_block: bool = False
) -> EncoderDecoderConfig:
    """Our config; a scaled head is the table of embeddings, unless the checkpoint holds another."""
    encoder, decoder = (
        StackConfig(
            num_layers=hf[depth],
            num_heads=hf["num_heads"],
            head_dim=hf["d_kv"],
            d_ff=hf["d_ff"],
            buckets=Buckets(
                num_buckets=hf["relative_attention_num_buckets"],
                max_distance=hf["relative_attention_max_distance"],
                bidirectional=bidirectional,
            ),
            table_per_block=table_per_block,
        )
        for depth, bidirectional in (("num_layers", True), ("num_decoder_layers", False))
    )
    start = hf.get("decoder_start_token_id")
    return EncoderDecoderConfig(
        vocab_size=hf["vocab_size"],
        d_model=hf["d_model"],
        encoder=encoder,
        decoder=decoder,
        activation=hf["dense_act_fn"],
        gated=hf["is_gated_act"],
        norm="rms",
        norm_epsilon=hf["layer_norm_epsilon"],
        query_scale=1.0,
        tied_head=scaled_head,
        head_scale=hf["d_model"] ** -0.5 if scaled_head else 1.0,
        decoder_start_token_id=hf["pad_token_id"] if start is None else start,
        pad_token_id=hf["pad_token_id"],
        # the scaled head wants rows of unit variance, as T5's own initial weights have
        embedding_stddev=1.0,
    )


def weights(config: EncoderDecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    copies = ["encoder.embed_tokens.weight", "decoder.embed_tokens.weight"]
    copies += ["lm_head.weight"] if config.tied_head else []
    table = [Weight("shared.weight", "embed/embedding", copies=tuple(copies))]
    for stack, sublayers in (
        ("encoder", ("attention", "feed_forward")),
        ("decoder", ("attention", "cross_attention", "feed_forward")),
    ):
        # one table for all blocks is stored with the first
        own = config.encoder.table_per_block
        block, holder = ("{layer}", f"{stack}/blocks") if own else ("0", stack)
        table += [
            Weight(
                f"{stack}.block.{block}.layer.0.SelfAttention.relative_attention_bias.weight",
                f"{holder}/relative_bias/table/embedding",
            ),
            *norm_weights(f"{stack}.final_layer_norm", f"{stack}/final_norm", use_bias=False),
        ]
        for place, sublayer in enumerate(sublayers):
            theirs, ours = f"{stack}.block.{{layer}}.layer.{place}", f"{stack}/blocks/{sublayer}"
            table += norm_weights(f"{theirs}.layer_norm", f"{ours}_norm", use_bias=False)
            for tensor, name in _layers(sublayer, gated=config.gated).items():
                table += linear_weights(f"{theirs}.{tensor}", f"{ours}/{name}", use_bias=False)
    if not config.tied_head:
        table += linear_weights("lm_head", "head", use_bias=False)
    return tuple(table)


def _layers(sublayer: str, *, gated: bool) -> dict[str, str]:
    """Their names of a sub-layer's matrices -> ours."""
    if sublayer == "feed_forward":
        names = {"wi_0": "gate", "wi_1": "up"} if gated else {"wi": "up"}
        return {f"DenseReluDense.{t}": name for t, name in {**names, "wo": "down"}.items()}
    module = "SelfAttention" if sublayer == "attention" else "EncDecAttention"
    names = {"q": "query", "k": "key", "v": "value", "o": "out"}
    return {f"{module}.{t}": name for t, name in names.items()}


FAMILY = Family(
    name="t5",
    config=config,
    weights=weights,
    harmless=HARMLESS,
    prefixes=("",),
    ties_absent_head=True,
    ignored=IGNORED,
    architecture="T5ForConditionalGeneration",
)
