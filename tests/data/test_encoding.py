"""Token arrays: where special tokens go, what is scored, and that nothing of a text is lost."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.encoding import encode_causal, encode_seq2seq, longest_rows
from lensllm_jax.data.task import Example
from lensllm_jax.typing import IGNORE
from tests.data.conftest import WORDS, word_tokenizer

PAD, BOS, EOS, A, B, C, D = 0, 1, 2, 3, 4, 5, 6
words = st.lists(st.sampled_from("abcdefghij"), min_size=1, max_size=12).map(" ".join)
records = st.lists(st.builds(Example, st.just("") | words, words), min_size=1, max_size=5)


def rows(array):
    return np.asarray(array).tolist()


def encode_pair(tokenizer, *examples, **lengths):
    return encode_seq2seq(examples, tokenizer, decoder_start_token_id=PAD, **lengths)


def test_prompt_target_and_end_stand_in_one_row_and_the_prompt_is_not_scored(opt_like):
    encoded = encode_causal([Example("a b", "c d")], opt_like, length=8)
    assert rows(encoded.input_ids) == [[BOS, A, B, C, D, EOS, PAD, PAD]]
    assert rows(encoded.attention_mask) == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert rows(encoded.labels) == [[IGNORE, IGNORE, IGNORE, C, D, EOS, IGNORE, IGNORE]]
    assert rows(encoded.num_target_tokens) == [3]


def test_a_beginning_stands_only_where_the_tokenizer_puts_one(pythia_like):
    begins = {"bos_token": "<s>", "eos_token": "</s>"}  # known, as SmolLM2's, and not put
    for tokenizer, context in ((pythia_like, EOS), (word_tokenizer(**begins), BOS)):
        encoded = encode_causal([Example("a", "b")], tokenizer)
        assert rows(encoded.input_ids) == [[A, B, EOS]]
        # a target without a prompt would have nothing to be predicted from
        encoded = encode_causal([Example("", "a b")], tokenizer)
        assert rows(encoded.input_ids) == [[context, A, B, EOS]]
        assert rows(encoded.labels) == [[IGNORE, A, B, EOS]]


def test_padding_with_the_end_token_is_masked_but_the_end_itself_is_scored(pythia_like):
    encoded = encode_causal([Example("a", "b")], pythia_like, length=6)
    scored = encoded.labels[0] != IGNORE
    assert rows(encoded.input_ids[0][scored]) == [B, EOS]
    assert rows(encoded.attention_mask) == [[1, 1, 1, 0, 0, 0]]


@given(records, st.integers(0, 8), st.sampled_from(["opt_like", "pythia_like"]))
def test_shapes_masks_and_counts_agree_for_any_records(examples, more, kind):
    opt_like = {"bos_token": "<s>", "pad_token": "<pad>"}
    tokenizer = {
        "opt_like": word_tokenizer("<s>", "$A", eos_token="</s>", **opt_like),
        "pythia_like": word_tokenizer(eos_token="</s>"),
    }[kind]
    longest, _ = longest_rows(examples, tokenizer, is_encoder_decoder=False, chat=False)
    encoded = encode_causal(examples, tokenizer, length=longest + more)
    scored = encoded.labels != IGNORE
    assert encoded.input_ids.shape == encoded.labels.shape == (len(examples), longest + more)
    assert encoded.attention_mask.sum(axis=1).max() == longest
    assert np.array_equal(encoded.labels[scored], encoded.input_ids[scored])
    assert np.all(encoded.attention_mask[scored] == 1)
    assert not scored[:, 0].any()  # the shift would lose it
    assert np.array_equal(encoded.num_target_tokens, scored.sum(axis=1))
    for example, row, keep in zip(examples, encoded.input_ids, scored, strict=True):
        assert rows(row[keep]) == [*(WORDS.index(w) for w in example.target.split()), EOS]


def test_bad_records_lengths_and_tokenizers_are_refused(opt_like, t5_like):
    with pytest.raises(UserError, match="token to score in every target, got none in record 1"):
        encode_causal([Example("a", "b"), Example("a", "  ")], opt_like)
    with pytest.raises(UserError, match="token to score in every target, got none in record 0"):
        encode_pair(t5_like, Example("a", "  "))
    with pytest.raises(UserError, match="`examples` must hold at least one record"):
        encode_causal([], opt_like)
    two = [Example("a", "b"), Example("a b", "c")]
    with pytest.raises(UserError, match=r"`length` must be at least 5 \(tokens of record 1\)"):
        encode_causal(two, opt_like, length=4)
    with pytest.raises(UserError, match="`target_length` must be at least 2"):
        encode_pair(t5_like, *two, target_length=1)
    with pytest.raises(UserError, match="`tokenizer` must have an end-of-sequence token"):
        encode_causal([Example("a", "b")], word_tokenizer(bos_token="<s>"))
    with pytest.raises(UserError, match="`tokenizer` must be a fast tokenizer"):
        encode_causal([Example("a", "b")], object())


def test_t5_reads_the_prompt_and_decodes_the_target(t5_like):
    encoded = encode_pair(t5_like, Example("a b", "c d"), length=5, target_length=5)
    assert rows(encoded.input_ids) == [[A, B, EOS, PAD, PAD]]
    assert rows(encoded.attention_mask) == [[1, 1, 1, 0, 0]]
    assert rows(encoded.decoder_input_ids) == [[PAD, C, D, EOS, PAD]]
    assert rows(encoded.labels) == [[C, D, EOS, IGNORE, IGNORE]]
    assert rows(encoded.num_target_tokens) == [3]


def test_bart_wraps_both_sides_and_its_own_first_token_is_not_scored(bart_like):
    encoded = encode_pair(bart_like, Example("a b", "c d"), length=5, target_length=5)
    assert rows(encoded.input_ids) == [[BOS, A, B, EOS, PAD]]
    assert rows(encoded.decoder_input_ids) == [[PAD, BOS, C, D, EOS]]
    assert rows(encoded.labels) == [[IGNORE, C, D, EOS, IGNORE]]


def test_an_encoder_has_something_to_read_where_a_cut_left_no_prompt(t5_like, pythia_like):
    for tokenizer in (t5_like, pythia_like):
        assert rows(encode_pair(tokenizer, Example("", "a")).input_ids) == [[EOS]]


def test_all_kinds_of_model_are_scored_on_the_same_tokens(opt_like, bart_like, t5_like):
    example = Example("a b", "c d")
    kinds = (encode_causal([example], opt_like), encode_pair(bart_like, example),
             encode_pair(t5_like, example))  # fmt: skip
    for encoded in kinds:
        assert encoded.labels[encoded.labels != IGNORE].tolist() == [C, D, EOS]
        assert rows(encoded.num_target_bytes) == [3]


def test_the_longest_rows_of_an_encoder_decoder_are_those_of_either_side(bart_like):
    examples = [Example("a b c", "a")] * 5000 + [Example("a", "a b c d")]
    lengths = longest_rows(examples, bart_like, is_encoder_decoder=True, chat=False)
    encoded = encode_pair(bart_like, examples[0], examples[-1])
    assert lengths == (encoded.input_ids.shape[1], encoded.labels.shape[1]) == (5, 6)


def test_the_end_token_is_told_from_the_text_and_the_bytes_are_those_of_the_target(
    opt_like, t5_like
):
    examples = [Example("a", "b c"), Example("a", "b  e f g h i")]
    for encoded in (encode_causal(examples, opt_like), encode_pair(t5_like, *examples)):
        assert encoded.labels[encoded.is_end].tolist() == [EOS, EOS]
        assert rows(encoded.num_target_bytes) == [3, 12]
        batch = encoded.take(np.array([1, 0])).scored_batch(np.array([1, -1]))
        assert rows(batch["num_target_bytes"]) == [3, 0]
        assert rows(batch["is_end"].sum(axis=1)) == [1, 0]


def test_padding_rows_of_a_batch_carry_no_target(opt_like):
    encoded = encode_causal([Example("a", w) for w in "abc"], opt_like, length=5)
    batch = encoded.batch(np.array([2, -1]))
    assert batch["labels"].shape == (2, 5)
    assert rows(batch["labels"])[0] == rows(encoded.labels)[2]
    assert np.all(batch["labels"][1] == IGNORE)
    assert batch["attention_mask"][1].any()  # no row without a token to attend to


def test_batches_of_an_encoder_decoder_carry_the_decoder_s_input(t5_like):
    batch = encode_pair(t5_like, Example("a b", "c d")).batch(np.array([0]))
    assert sorted(batch) == ["attention_mask", "decoder_input_ids", "input_ids", "labels"]


def test_taken_examples_are_those_asked_for(opt_like):
    encoded = encode_causal([Example("a", w) for w in "abcd"], opt_like, length=5)
    taken = encoded.take(np.array([2, 0]))
    assert len(taken) == 2
    assert np.array_equal(taken.labels, encoded.labels[[2, 0]])
    assert taken.decoder_input_ids is None
