"""Labels stand on the target alone, in arrays of one shape."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.encoding import encode_causal, encode_seq2seq, num_truncated
from lensllm_jax.data.task import Example
from lensllm_jax.typing import IGNORE
from tests.data.conftest import WORDS, word_tokenizer

PAD, BOS, EOS, A, B, C, D = range(7)
SUMMARY = WORDS.index("Summary:")
letters = st.lists(st.sampled_from(list("abcdefghij")), min_size=1, max_size=12).map(" ".join)
records = st.lists(st.builds(Example, st.one_of(st.just(""), letters), letters), min_size=1)


def rows(array):
    return array.tolist()


def test_prompt_and_padding_are_not_scored_and_the_end_is(opt_like):
    encoded = encode_causal([Example("a b", "c d")], opt_like, max_length=8)
    assert rows(encoded.input_ids) == [[BOS, A, B, C, D, EOS, PAD, PAD]]
    assert rows(encoded.attention_mask) == [[1, 1, 1, 1, 1, 1, 0, 0]]
    assert rows(encoded.labels) == [[IGNORE] * 3 + [C, D, EOS] + [IGNORE] * 2]
    assert rows(encoded.num_target_tokens) == [3]


def test_a_record_without_prompt_starts_at_the_mark_between_documents(opt_like, pythia_like):
    with_bos = encode_causal([Example("", "a b")], opt_like, max_length=4)
    assert rows(with_bos.input_ids) == [[BOS, A, B, EOS]]
    without = encode_causal([Example("", "a b")], pythia_like, max_length=6)
    assert rows(without.input_ids) == [[EOS, A, B, EOS, EOS, EOS]]
    assert rows(without.labels) == [[IGNORE, A, B, EOS, IGNORE, IGNORE]]
    assert rows(without.attention_mask) == [[1, 1, 1, 1, 0, 0]]


def test_padding_with_the_end_token_is_masked_but_the_end_itself_is_scored(pythia_like):
    encoded = encode_causal([Example("a", "b")], pythia_like, max_length=6)
    scored = encoded.labels[0] != IGNORE
    assert rows(encoded.input_ids[0][scored]) == [B, EOS]


def test_a_long_prompt_keeps_its_last_line_and_the_start_of_its_text(opt_like):
    long = Example("a b c d\na b c d\nSummary:", "a b")
    encoded = encode_causal([long], opt_like, max_length=8)
    assert rows(encoded.input_ids) == [[BOS, A, B, C, SUMMARY, A, B, EOS]]
    assert rows(encoded.num_target_tokens) == [3]


@pytest.mark.parametrize("prompt", ["a b c d a b c d Summary:", "c\na b c d Summary:\n"])
def test_a_long_prompt_without_text_above_its_last_line_keeps_its_end(opt_like, prompt):
    encoded = encode_causal([Example(prompt, "a b")], opt_like, max_length=6)
    assert rows(encoded.input_ids) == [[BOS, D, SUMMARY, A, B, EOS]]


def test_a_prompt_with_no_room_left_vanishes(opt_like):
    encoded = encode_causal([Example("c\nd", "a b")], opt_like, max_length=4)
    assert rows(encoded.input_ids) == [[BOS, A, B, EOS]]


def test_a_target_is_cut_only_when_it_alone_is_too_long(opt_like, pythia_like):
    encoded = encode_causal([Example("a b", "a b c d")], opt_like, max_length=4)
    assert rows(encoded.input_ids) == [[BOS, A, B, C]]
    assert rows(encoded.labels) == [[IGNORE, A, B, C]]
    encoded = encode_causal([Example("a b", "a b c d")], pythia_like, max_length=4)
    assert rows(encoded.input_ids) == [[B, A, B, C]]  # one prompt token stays for context


@given(records, st.integers(2, 20), st.sampled_from(["opt_like", "pythia_like"]))
def test_shapes_masks_and_counts_agree_for_any_records(examples, max_length, kind):
    special = {"opt_like": {"bos_token": "<s>", "pad_token": "<pad>"}, "pythia_like": {}}[kind]
    encoded = encode_causal(
        examples, word_tokenizer(eos_token="</s>", **special), max_length=max_length
    )
    scored = encoded.labels != IGNORE
    assert encoded.input_ids.shape == encoded.labels.shape == (len(examples), max_length)
    assert np.array_equal(encoded.labels[scored], encoded.input_ids[scored])
    assert np.all(encoded.attention_mask[scored] == 1)
    assert not scored[:, 0].any()  # the shift would lose it
    assert np.array_equal(encoded.num_target_tokens, scored.sum(axis=1))
    assert np.all(encoded.num_target_tokens >= 1)
    for example, row, keep in zip(examples, encoded.input_ids, scored, strict=True):
        expected = [*(WORDS.index(w) for w in example.target.split()), EOS][: max_length - 1]
        assert rows(row[keep]) == expected


def test_target_is_tokenised_as_a_continuation_of_its_prompt(opt_like):
    seen = []

    class Recorder:
        bos_token_id, eos_token_id, pad_token_id = BOS, EOS, PAD

        def __call__(self, texts, **settings):
            seen.append(texts)
            return opt_like(texts, **settings)

    examples = [Example("a", "b"), Example("a\n", "b"), Example("", "b")]
    encode_causal(examples, Recorder(), max_length=4)
    assert seen[1:] == [["a", "a\n", ""], [" b", "b", "b"]]


def test_bad_records_and_tokenizers_are_refused(opt_like):
    with pytest.raises(UserError, match="token to score in every target, got none in record 1"):
        encode_causal([Example("a", "b"), Example("a", "  ")], opt_like, max_length=4)
    with pytest.raises(UserError, match="`examples` must hold at least one record"):
        encode_causal([], opt_like, max_length=4)
    with pytest.raises(UserError, match="`max_length` must be at least 2 tokens, got 1"):
        encode_causal([Example("a", "b")], opt_like, max_length=1)
    with pytest.raises(UserError, match="`tokenizer` must have an end-of-sequence token"):
        encode_causal([Example("a", "b")], word_tokenizer(bos_token="<s>"), max_length=4)


def encode_pair(tokenizer, example, **lengths):
    lengths = {"max_length": 5, "max_target_length": 5, **lengths}
    return encode_seq2seq([example], tokenizer, decoder_start_token_id=PAD, **lengths)


def test_t5_reads_the_prompt_and_decodes_the_target(t5_like):
    encoded = encode_pair(t5_like, Example("a b", "c d"))
    assert rows(encoded.input_ids) == [[A, B, EOS, PAD, PAD]]
    assert rows(encoded.attention_mask) == [[1, 1, 1, 0, 0]]
    assert rows(encoded.decoder_input_ids) == [[PAD, C, D, EOS, PAD]]
    assert rows(encoded.labels) == [[C, D, EOS, IGNORE, IGNORE]]
    assert rows(encoded.num_target_tokens) == [3]


def test_bart_wraps_both_sides_and_its_own_first_token_is_not_scored(opt_like):
    encoded = encode_pair(opt_like, Example("a b", "c d"))
    assert rows(encoded.input_ids) == [[BOS, A, B, EOS, PAD]]
    assert rows(encoded.decoder_input_ids) == [[PAD, BOS, C, D, EOS]]
    assert rows(encoded.labels) == [[IGNORE, C, D, EOS, IGNORE]]


def test_both_kinds_of_model_are_scored_on_the_same_tokens(opt_like, t5_like):
    example = Example("a b", "c d")
    scored = [
        encoded.labels[encoded.labels != IGNORE].tolist()
        for encoded in (
            encode_causal([example], opt_like, max_length=9),
            encode_pair(opt_like, example),
            encode_pair(t5_like, example),
        )
    ]
    assert scored[0] == scored[1] == scored[2] == [C, D, EOS]


def test_long_sides_are_cut_as_in_a_decoder_only_model(t5_like):
    encoded = encode_pair(t5_like, Example("a b c d", "a b c d"), max_length=3, max_target_length=3)
    assert rows(encoded.input_ids) == [[C, D, EOS]]
    assert rows(encoded.labels) == [[A, B, C]]


@given(records, st.integers(3, 8), st.integers(2, 8), st.booleans())
def test_every_cut_target_of_an_encoder_decoder_keeps_a_token(examples, length, target, with_bos):
    bos = {"bos_token": "<s>"} if with_bos else {}
    encoded = encode_seq2seq(
        [e for e in examples if e.prompt] or [Example("a", "b c")],
        word_tokenizer(eos_token="</s>", pad_token="<pad>", **bos),
        max_length=length, max_target_length=target, decoder_start_token_id=0,
    )  # fmt: skip
    assert np.all(encoded.num_target_tokens >= 1)
    assert np.array_equal(encoded.num_target_tokens, (encoded.labels != IGNORE).sum(axis=1))


def test_without_a_prompt_the_first_third_is_the_context(t5_like):
    encoded = encode_pair(t5_like, Example("", "a b c"))
    assert rows(encoded.input_ids) == [[A, EOS, PAD, PAD, PAD]]
    assert rows(encoded.labels) == [[B, C, EOS, IGNORE, IGNORE]]


def test_the_end_token_is_told_from_the_text_and_the_bytes_are_those_of_the_target(
    opt_like, t5_like
):
    examples = [Example("a", "b c"), Example("a", "b  e f g h i")]
    for encoded in (
        encode_causal(examples, opt_like, max_length=6),
        encode_seq2seq(
            examples, t5_like, max_length=6, max_target_length=5, decoder_start_token_id=PAD
        ),
    ):
        assert encoded.labels[encoded.is_end].tolist() == [EOS]  # the second has lost its end
        assert encoded.is_end[0].any()
        # five tokens of the second stay, whose text has two spaces after the first
        assert rows(encoded.num_target_bytes) == [3, 10]
        batch = encoded.take(np.array([1, 0])).scored_batch(np.array([1, -1]))
        assert rows(batch["num_target_bytes"]) == [3, 0]
        assert rows(batch["is_end"].sum(axis=1)) == [1, 0]


def test_padding_rows_of_a_batch_carry_no_target(opt_like):
    encoded = encode_causal([Example("a", w) for w in "abc"], opt_like, max_length=5)
    batch = encoded.batch(np.array([2, -1]))
    assert batch["labels"].shape == (2, 5)
    assert rows(batch["labels"])[0] == rows(encoded.labels)[2]
    assert np.all(batch["labels"][1] == IGNORE)
    assert batch["attention_mask"][1].any()  # no row without a token to attend to


def test_batches_of_an_encoder_decoder_carry_the_decoder_s_input(t5_like):
    batch = encode_pair(t5_like, Example("a b", "c d")).batch(np.array([0]))
    assert sorted(batch) == ["attention_mask", "decoder_input_ids", "input_ids", "labels"]


def test_taken_examples_are_those_asked_for(opt_like):
    encoded = encode_causal([Example("a", w) for w in "abcd"], opt_like, max_length=5)
    taken = encoded.take(np.array([2, 0]))
    assert len(taken) == 2
    assert np.array_equal(taken.labels, encoded.labels[[2, 0]])
    assert taken.decoder_input_ids is None


@given(records, st.integers(3, 16))
def test_truncated_targets_are_those_with_fewer_scored_tokens_than_they_have(examples, max_length):
    for tokenizer in (OPT_LIKE, PYTHIA_LIKE):
        whole, cut = (
            encode_causal(examples, tokenizer, max_length=length).num_target_tokens
            for length in (64, max_length)
        )
        assert num_truncated(examples, tokenizer, max_length=max_length) == np.sum(cut < whole)


OPT_LIKE = word_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
PYTHIA_LIKE = word_tokenizer(eos_token="</s>")
