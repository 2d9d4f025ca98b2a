"""Encoder-decoders compute the same however their layers are run, and refuse what they cannot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig, StackConfig
from lensllm_jax.models.relative import Buckets
from tests.models.compiling import least_compile_seconds
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.tiny import tiny_candidate
from tests.tolerances import assert_close, relative_difference

FAMILIES = ("t5-1.1", "bart")


def logits(candidate, data, **settings):
    module = candidate.config.module(**settings)
    return jax.jit(module.apply)({"params": candidate.params}, *candidate.config.arguments(data))


@pytest.mark.parametrize(
    ("variant", "settings"), [("t5-1.1", {"unroll_layers": True}), ("bart", {"remat": True})]
)
def test_unrolled_and_recomputed_blocks_give_the_same_loss_and_gradient(variant, settings):
    candidate, data = tiny_candidate(ENCODER_DECODERS[variant]), seq2seq_batch()

    def gradient(**settings):
        module = candidate.config.module(**settings)

        def loss(params):
            z = module.apply({"params": params}, *candidate.config.arguments(data))
            return jax.nn.log_softmax(z)[..., 5].mean()

        return jax.jit(jax.value_and_grad(loss))(candidate.params)

    value, plain = gradient()
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(plain))
    other_value, other = gradient(**settings)
    assert_close(other_value, value)
    for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(plain), strict=True):
        # an entry that is zero but for rounding has no digits of its own
        assert np.abs(a - b).max() <= 1e-5 * scale


@pytest.mark.parametrize("variant", FAMILIES)
def test_bfloat16_stays_bfloat16_and_near(variant):
    candidate, data = tiny_candidate(ENCODER_DECODERS[variant]), seq2seq_batch()
    exact = np.asarray(logits(candidate, data), np.float32)
    half = logits(candidate, data, dtype=jnp.dtype(jnp.bfloat16))
    assert half.dtype == jnp.bfloat16
    # bfloat16 keeps 8 bits: 0.4 % an operation, through layers of weights far from small
    assert 1e-4 < relative_difference(np.asarray(half, np.float32), exact) < 0.15


@pytest.mark.parametrize("variant", FAMILIES)
def test_padding_and_later_labels_change_no_logit(variant):
    candidate, data = tiny_candidate(ENCODER_DECODERS[variant]), seq2seq_batch()
    before = np.asarray(logits(candidate, data))
    unseen = np.where(data["attention_mask"] == 1, data["input_ids"], 7).astype(np.int32)
    assert_close(logits(candidate, {**data, "input_ids": unseen}), before)
    later = data["labels"].copy()
    later[:, 3] = 9  # the decoder reads it at position 4
    after = np.asarray(logits(candidate, {**data, "labels": later}))
    assert_close(after[:, :4], before[:, :4])
    assert relative_difference(after[:, 4:], before[:, 4:]) > 1e-2


@pytest.mark.slow
def test_24_layers_compile_about_as_fast_as_6():
    def seconds(num_layers):
        depths = {"num_layers": num_layers, "num_decoder_layers": num_layers}
        config = parse_config({**ENCODER_DECODERS["t5"], **depths}).config
        ids = np.ones((2, 8), np.int32)
        return least_compile_seconds(config.module(), ids, ids, ids)

    assert seconds(24) < 1.5 * seconds(6)


def test_labels_are_shifted_behind_the_start_token_and_ignored_ones_become_padding():
    config = tiny_candidate(ENCODER_DECODERS["bart"]).config
    labels = np.array([[5, 6, -100, -100]], np.int32)
    assert config.shift_right(labels).tolist() == [[2, 5, 6, 1]]


def test_a_bucket_holds_each_distance_once_and_far_ones_together():
    buckets = Buckets(num_buckets=32, max_distance=128, bidirectional=False)
    past = buckets.bucket(-np.arange(2000))
    assert past[:16].tolist() == list(range(16))
    assert (np.diff(past) >= 0).all()
    assert set(past.tolist()) == set(range(32))
    assert (past[128:] == 31).all()
    assert (buckets.bucket(np.arange(9)) == 0).all()  # the future is unseen


def test_settings_that_do_not_fit_are_refused():
    stack = StackConfig(num_layers=1, num_heads=2, head_dim=4, d_ff=8)
    settings = {"vocab_size": 11, "d_model": 8, "encoder": stack, "decoder": stack}
    with pytest.raises(checks.UserError, match=r"encoder\.buckets"):
        EncoderDecoderConfig(**settings)
    with pytest.raises(checks.UserError, match="activation"):
        EncoderDecoderConfig(**settings, max_positions=8, activation="sine")
    with pytest.raises(checks.UserError, match="pad_token_id"):
        EncoderDecoderConfig(**settings, max_positions=8, pad_token_id=11)
    with pytest.raises(checks.UserError, match="even"):
        Buckets(num_buckets=7, max_distance=128, bidirectional=True)


def test_a_text_longer_than_the_positions_is_refused():
    candidate, data = tiny_candidate(ENCODER_DECODERS["bart"]), seq2seq_batch()
    long = np.ones((3, 17), np.int32)
    with pytest.raises(checks.UserError, match="at most 16 tokens"):
        logits(candidate, {**data, "labels": long})
