"""Mistakes with the shapes and variants of models."""

import dataclasses

from lensllm_jax.models import layers, rotary
from lensllm_jax.models.decoder import DecoderConfig
from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig, StackConfig
from lensllm_jax.models.families import gpt_neo, llama
from lensllm_jax.models.relative import Buckets

DECODER = DecoderConfig(vocab_size=8, max_positions=8, d_model=4, num_layers=2, num_heads=2, d_ff=8)
STACK = StackConfig(num_layers=1, num_heads=2, head_dim=2, d_ff=8)
ENCODER_DECODER = EncoderDecoderConfig(
    vocab_size=8, d_model=4, encoder=STACK, decoder=STACK, max_positions=8
)
ROPE = {"rope_theta": 1e4}


def decoder(**changes):
    return dataclasses.replace(DECODER, **changes)


def encoder_decoder(**changes):
    return dataclasses.replace(ENCODER_DECODER, **changes)


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("d_ff", "positive ... got 0", lambda tmp: decoder(d_ff=0)),
    ("logit_cap", "positive ... got -1.0", lambda tmp: decoder(logit_cap=-1.0)),
    ("norm", "one of ... got 'batch'", lambda tmp: decoder(norm="batch")),
    ("activation_function", "one of ... got 'tanh'", lambda tmp: decoder(activation="tanh")),
    ("d_model", "multiple of `num_heads` ... got 4 and 3", lambda tmp: decoder(num_heads=3)),
    (
        "num_heads",
        "multiple of `num_kv_heads` ... got 2 and 4",
        lambda tmp: decoder(num_heads=2, num_kv_heads=4, head_dim=2),
    ),
    ("sliding_layers", "have one entry ... got 1", lambda tmp: decoder(sliding_layers=(True,))),
    (
        "window",
        "number where layers slide ... got None",
        lambda tmp: decoder(sliding_layers=(True, False)),
    ),
    ("head_bias", "False with a tied ... got True", lambda tmp: decoder(head_bias=True)),
    ("d_ff", "positive ... got 0", lambda tmp: dataclasses.replace(STACK, d_ff=0)),
    ("d_model", "positive ... got 0", lambda tmp: encoder_decoder(d_model=0)),
    ("query_scale", "positive ... got 0.0", lambda tmp: encoder_decoder(query_scale=0.0)),
    ("pad_token_id", "token below 8 ... got 8", lambda tmp: encoder_decoder(pad_token_id=8)),
    ("norm", "one of ... got 'batch'", lambda tmp: encoder_decoder(norm="batch")),
    ("block_form", "one of ... got 'parallel'", lambda tmp: encoder_decoder(block_form="parallel")),
    (
        "encoder.buckets",
        "given where `max_positions` ... got None and None",
        lambda tmp: encoder_decoder(max_positions=None),
    ),
    (
        "layer_types",
        "one of ... got 'linear_attention'",
        lambda tmp: llama.sliding_layers(
            {"layer_types": ["linear_attention"], "sliding_window": 4}
        ),
    ),
    (
        "attention_types",
        "one of ... got 'linear'",
        lambda tmp: gpt_neo.config({"attention_layers": ["linear"]}),
    ),
    ("input_ids", "have at most 8 ... got 9", lambda tmp: layers.check_length(9, 8)),
    (
        "num_buckets",
        "even and at least ... got 5",
        lambda tmp: Buckets(num_buckets=5, max_distance=8, bidirectional=True),
    ),
    (
        "max_distance",
        "positive ... got 0",
        lambda tmp: Buckets(num_buckets=8, max_distance=2, bidirectional=True),
    ),
    ("base", "positive ... got 0.0", lambda tmp: rotary.Rotary(base=0.0, width=2)),
    ("width", "positive ... got 0", lambda tmp: rotary.Rotary(base=1e4, width=0)),
    ("factor", "positive ... got 0.0", lambda tmp: rotary.Rotary(base=1e4, width=2, factor=0.0)),
    ("width", "even ... got 3", lambda tmp: rotary.Rotary(base=1e4, width=3)),
    (
        "rope_type",
        "one of ... got 'yarn'",
        lambda tmp: rotary.Rotary.of_config({**ROPE, "rope_type": "yarn"}, 4),
    ),
    (
        "rope_parameters",
        "hold only supported settings ... got factor=2.0",
        lambda tmp: rotary.Rotary.of_config({**ROPE, "factor": 2.0}, 4),
    ),
    (
        "rope_parameters",
        "hold factor ... got none",
        lambda tmp: rotary.Rotary.of_config({**ROPE, "rope_type": "linear"}, 4),
    ),
]
