"""Prompt and target are one text to a tokenizer, and every candidate is scored on all of a target.

The zoo's tokenizers, and small ones spelled as the published families spell theirs.
"""

import pytest
import tokenizers
import transformers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers

import lensllm_jax as lens
from lensllm_jax.checkpoints.summary import describe_candidate
from lensllm_jax.data.encoding import encode_causal, encode_seq2seq
from lensllm_jax.data.task import Example
from lensllm_jax.data.tokens import (
    causal_tokens,
    decoder_tokens,
    encoder_tokens,
    joined,
    num_altered,
)
from lensllm_jax.typing import IGNORE

TEXTS = ["the 42 kings of the land", "def f(x):\n    return x ** 2\n", "naïve café, señor 東京 🎉"]
characters = st.characters(codec="utf-8", exclude_characters="\u2581")  # sentencepiece's space
text = st.text(characters, max_size=30) | st.sampled_from(TEXTS)
record = st.builds(Example, text, text.filter(str.strip))


def fast(model, *, prepended="", around=(), post_processor=None, **parts):
    """A tokenizer of transformers from its parts, trained on ``TEXTS``."""
    tokenizer = tokenizers.Tokenizer(model)
    for name, part in parts.items():
        setattr(tokenizer, name, part)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<unk>", "<s>", "</s>", "<pad>", *(f"<0x{i:02X}>" for i in range(256))]
    trainer = (trainers.UnigramTrainer if isinstance(model, models.Unigram) else
               trainers.BpeTrainer)  # fmt: skip
    more = {"unk_token": "<unk>"} if isinstance(model, models.Unigram) else {}
    tokenizer.train_from_iterator(
        TEXTS, trainer(vocab_size=700, special_tokens=special, initial_alphabet=alphabet,
                       show_progress=False, **more)
    )  # fmt: skip
    if around:
        marks = [(mark, tokenizer.token_to_id(mark)) for mark in around if mark != "$A"]
        post_processor = processors.TemplateProcessing(single=list(around), special_tokens=marks)
    if post_processor is not None:
        tokenizer.post_processor = post_processor
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>",
        unk_token="<unk>", clean_up_tokenization_spaces=False,
    )  # fmt: skip


def llama_2(*, legacy):
    """Sentencepiece BPE with bytes: by a normalizer as Llama 2 was converted, or by Metaspace."""
    space = "\u2581"
    bpe = models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True)
    if legacy:
        parts = {"normalizer": normalizers.Sequence(
            [normalizers.Prepend(space), normalizers.Replace(" ", space)])}  # fmt: skip
    else:
        parts = {"pre_tokenizer": pre_tokenizers.Metaspace(prepend_scheme="first", split=False)}
    decoder = decoders.Sequence([decoders.Replace(space, " "), decoders.ByteFallback(),
                                 decoders.Fuse(), decoders.Strip(" ", 1, 0)])  # fmt: skip
    return fast(bpe, around=("<s>", "$A"), decoder=decoder, **parts)


def byte_level(*, trim, digits=False):
    """GPT-2's, with SmolLM2's single digits if asked; RoBERTa and BART trim their offsets."""
    level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    split = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), level])
    return fast(
        models.BPE(), pre_tokenizer=split if digits else level, decoder=decoders.ByteLevel(),
        post_processor=processors.ByteLevel(trim_offsets=trim),
    )  # fmt: skip


def gemma():
    """A space is a piece of its own spelling; nothing is prepended."""
    return fast(
        models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True),
        normalizer=normalizers.Replace(" ", "\u2581"), around=("<s>", "$A"),
        pre_tokenizer=pre_tokenizers.Split(" ", "merged_with_previous"),
        decoder=decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(),
                                   decoders.Fuse()]),
    )  # fmt: skip


SPELLED = {
    "llama-2": llama_2(legacy=True),
    "llama-2 by metaspace": llama_2(legacy=False),
    "gpt-2": byte_level(trim=False),
    "bart": byte_level(trim=True),
    "smollm2": byte_level(trim=True, digits=True),
    "gemma": gemma(),
}
ZOO = {name: describe_candidate(name) for name in lens.list_zoo()}
DECODERS = {
    **SPELLED,
    **{n: s.tokenizer for n, s in ZOO.items() if not s.config.is_encoder_decoder},
}


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=25, deadline=None)
@given(record)
@example(Example("the kings", "42 kings"))
@example(Example("the kings ", "of the land"))
@example(Example("the kings\n", "  of the land"))
@example(Example("", "🎉 the kings"))
@example(Example("caf", "é"))
@example(Example(" ", "0"))
def test_the_pieces_are_the_text_and_the_scored_ones_hold_the_target(name, record):
    tokenizer = DECODERS[name]
    (row,) = causal_tokens([record], tokenizer)
    head, _ = around(tokenizer)
    # without one of its own, a tokenizer's begin token stands before a first piece that is scored
    context = row.ids[: len(head) or int(row.start == 1 and row.ids[0] == tokenizer.bos_token_id)]
    assert list(context) == head or context == [tokenizer.bos_token_id]
    decode = tokenizer.backend_tokenizer.decode
    whole, border = joined(record)
    pieces = row.ids[len(context) : -1]
    assert row.ids[-1] == tokenizer.eos_token_id
    # Metaspace marks the beginning by a space, unless the text has one there: decoding loses it
    mark = " " if name == "llama-2 by metaspace" else ""
    assert decode(pieces, skip_special_tokens=False) == whole.removeprefix(mark)
    # as one text: no piece is there that the tokenizer does not make of the whole
    assert pieces == tokenizer(whole, add_special_tokens=False).input_ids
    # the scored pieces hold the target and at most what a straddling piece brings along
    lost = decode(row.ids[len(context) : row.start], skip_special_tokens=False)
    assert lost.rstrip("\ufffd") in whole[:border]  # a character may be cut between its bytes
    assert row.start >= 1


def around(tokenizer):
    """The special tokens that a tokenizer itself puts around a text, by its own encoding."""
    encoding = tokenizer.backend_tokenizer.encode("the")
    inside = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    return encoding.ids[: inside[0]], encoding.ids[inside[-1] + 1 :]


@pytest.mark.parametrize("name", DECODERS)
@settings(max_examples=25, deadline=None)
@given(st.builds(Example, text.filter(str.strip), text.filter(str.strip)))
def test_the_border_is_that_of_the_characters(name, record):
    """The oracle is the first token whose characters, by untrimmed offsets, end behind it."""
    tokenizer = DECODERS[name]
    whole, border = joined(record)
    bare = tokenizers.Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    bare.post_processor = processors.TemplateProcessing(single=["$A"], special_tokens=[])
    expected = next(i for i, (_, end) in enumerate(bare.encode(whole).offsets) if end > border)
    (row,) = causal_tokens([record], tokenizer)
    head, _ = around(tokenizer)
    assert row.start == (len(head) + expected or 1)


def test_no_mark_of_a_word_stands_between_prompt_and_target():
    for name in ("llama-2", "llama-2 by metaspace"):
        (row,) = causal_tokens([Example("def f(x):\n", "return x")], DECODERS[name])
        tokens = DECODERS[name].convert_ids_to_tokens(row.ids)
        assert not tokens[row.start].startswith("\u2581"), tokens
        apart = DECODERS[name]("return x", add_special_tokens=False)  # control: tokenised apart
        assert DECODERS[name].convert_ids_to_tokens(apart.input_ids)[0].startswith("\u2581")


def test_white_space_that_a_tokenizer_trims_is_scored_with_the_target():
    """BART's offsets leave out white space; by them the space before "42" would be no target."""
    record = Example("the kings", "42")
    trimmed, whole = (byte_level(trim=trim, digits=True) for trim in (True, False))
    rows = [causal_tokens([record], tokenizer)[0] for tokenizer in (trimmed, whole)]
    assert rows[0] == rows[1]
    assert trimmed.convert_ids_to_tokens(rows[0].ids)[rows[0].start] == "Ġ"
    assert trimmed.backend_tokenizer.post_processor is not None  # as it was


@pytest.mark.parametrize("name", [n for n, s in ZOO.items() if s.config.is_encoder_decoder])
def test_encoder_and_decoder_read_the_whole_text_with_the_tokens_of_their_tokenizer(name):
    tokenizer = ZOO[name].tokenizer
    for prompt, target in zip(TEXTS, TEXTS[1:] + TEXTS[:1], strict=True):
        (source,) = encoder_tokens([Example(prompt, target)], tokenizer)
        (row,) = decoder_tokens([Example(prompt, target)], tokenizer)
        assert source == tokenizer(prompt).input_ids
        assert tokenizer.decode(source, skip_special_tokens=True) == prompt
        assert tokenizer.decode(row.ids[row.start : -1]) == target
        assert row.ids[-1] == tokenizer.eos_token_id
        assert row.ids[: row.start] == around(tokenizer)[0]


def test_targets_that_a_tokenizer_does_not_give_back_are_counted(t5_like):
    lost = [Example("", "a  b"), Example("", "a b"), Example("", "a {")]  # a space, none, a brace
    assert num_altered(lost, t5_like) == 2
    records = [Example("", one) for one in TEXTS]
    assert not any(num_altered(records, tokenizer) for tokenizer in DECODERS.values())


def test_every_candidate_is_scored_on_the_same_bytes():
    """The three published kinds are checked by ``make published``."""
    records = [Example(p, t) for p in ("", *TEXTS) for t in TEXTS]
    asked = [e for e in records if e.prompt]
    expected = {e: len(e.target.encode()) for e in records}
    encoded = [(records, encode_causal(records, tokenizer)) for tokenizer in DECODERS.values()]
    encoded += [
        (asked, encode_seq2seq(asked, one.tokenizer, decoder_start_token_id=0))
        for one in ZOO.values()
        if one.config.is_encoder_decoder
    ]
    for texts, arrays in encoded:
        assert arrays.num_target_bytes.tolist() == [expected[e] for e in texts]
        assert ((arrays.labels != IGNORE) & ~arrays.is_end).any(axis=1).all()
        assert arrays.is_end.sum(axis=1).tolist() == [1] * len(texts)
