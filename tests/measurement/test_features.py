"""Features before the head, compared with the logits that the head computes from them."""

import jax.numpy as jnp
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.data.encoding import encode_causal, encode_seq2seq
from lensllm_jax.data.task import Example
from lensllm_jax.measurement.features import first_target_states, first_word_classes
from tests.tolerances import assert_close

TEXTS = [Example(f"What of the {i}?", "a man" if i % 2 else "the old king said so")
         for i in range(5)]  # fmt: skip


def encoded(candidate):
    if not candidate.is_encoder_decoder:
        return encode_causal(TEXTS, candidate.tokenizer).batch(np.arange(5))
    return encode_seq2seq(
        TEXTS, candidate.tokenizer, length=24, target_length=12,
        decoder_start_token_id=candidate.decoder_start_token_id,
    ).batch(np.arange(5))  # fmt: skip


@pytest.mark.parametrize("name", ["zoo/gpt2-xs", "zoo/t5-xs"])
def test_the_head_makes_the_first_target_tokens_logits_of_the_features(name):
    candidate = lens.load_candidate(name)
    batch = encoded(candidate)
    logits = np.asarray(candidate.apply_fn(candidate.params, batch))
    first = [int(np.flatnonzero(row != -100)[0]) for row in batch["labels"]]
    at = np.array(first) - (not candidate.is_encoder_decoder)
    if candidate.config.tied_head:
        head = np.asarray(candidate.params["embed"]["embedding"]).T
    else:
        head = np.asarray(candidate.params["head"]["kernel"])
    features = first_target_states(candidate, batch, block_size=2)  # 5 = 2 + 2 + 1
    expected = logits[np.arange(5), at]
    assert_close(features @ head, expected, jnp.float32)
    # the logits one position on are others by far more than any tolerance
    assert np.abs(features @ head - logits[np.arange(5), at + 1]).max() > 0.1


def test_classes_are_words_whatever_the_tokens():
    texts = [Example("", text) for text in ("The king", "a man", "the end", "so", "A", "the")]
    assert first_word_classes(texts, num_words=2).tolist() == [0, 1, 0, 2, 1, 0]
    assert first_word_classes(texts, num_words=1).tolist() == [0, 1, 0, 1, 1, 0]
    with pytest.raises(checks.UserError, match="`num_words` must be"):
        first_word_classes(texts, num_words=0)
