"""Tokenizers built from a file's metadata divide texts as the tokenizers that they came from."""

import json
from pathlib import Path

import pytest

import lensllm_jax as lens
from lensllm_jax.checkpoints.gguf.header import Header
from lensllm_jax.checkpoints.gguf.tokenizer import read_gguf_tokenizer
from lensllm_jax.checkpoints.zoo import FOLDER


def tokenizer(**metadata):
    named = {f"tokenizer.ggml.{key}": value for key, value in metadata.items()}
    return read_gguf_tokenizer(Header(Path("a.gguf"), named, {}))


def ids(built, text):
    return built(text, add_special_tokens=False)["input_ids"]


def tokens(built, text):
    return built.convert_ids_to_tokens(ids(built, text))


def texts():
    examples = lens.load_task("pydoc").test[:40]
    return [f"{e.prompt} {e.target}" for e in examples] + ["", "  a\n\n\tb", "naïve 數 🎉 x1234"]


def test_byte_level_merges_give_the_same_tokens():
    stored = json.loads((FOLDER / "gpt2-xs" / "tokenizer.json").read_text())
    vocabulary = sorted(stored["model"]["vocab"], key=stored["model"]["vocab"].get)
    merges = [m if isinstance(m, str) else " ".join(m) for m in stored["model"]["merges"]]
    built = tokenizer(model="gpt2", pre="gpt-2", tokens=vocabulary, merges=merges)
    theirs = lens.load_candidate("zoo/gpt2-xs").tokenizer
    for text in texts():
        assert ids(built, text) == ids(theirs, text)
    reversed_merges = tokenizer(model="gpt2", tokens=vocabulary, merges=merges[::-1])  # control
    assert any(ids(reversed_merges, text) != ids(theirs, text) for text in texts())


@pytest.mark.parametrize(("pre", "expected"), [("smollm", ["1", "2", "3"]), ("gpt-2", ["12", "3"])])
def test_the_pre_tokenizer_is_the_one_that_is_named(pre, expected):
    built = tokenizer(model="gpt2", pre=pre, tokens=["1", "2", "3", "12"], merges=["1 2"])
    assert tokens(built, "123") == expected


def test_words_that_are_tokens_stay_whole_in_llama3():
    vocabulary = ["a", "b", "c", "ab", "abc"]
    for pre, expected in (("llama-bpe", ["abc"]), ("gpt-2", ["ab", "c"])):
        built = tokenizer(model="gpt2", pre=pre, tokens=vocabulary, merges=["a b"])
        assert tokens(built, "abc") == expected


SPACE = "\u2581"
SENTENCEPIECE = {
    "model": "llama",
    "tokens": [
        "<unk>", "<s>", "</s>", "<0x0A>", SPACE, "a", "b", "c", "ab", "bc", f"{SPACE}a", "<turn>",
    ],
    "scores": [0.0, 0.0, 0.0, 0.0, -9.0, -9.0, -9.0, -9.0, -2.0, -1.0, -3.0, 0.0],
    "token_type": [2, 3, 3, 6, 1, 1, 1, 1, 1, 1, 1, 4],
    "eos_token_id": 2,
}  # fmt: skip


def test_sentencepiece_joins_the_pair_of_the_best_score_first():
    built = tokenizer(**SENTENCEPIECE)
    assert tokens(built, "abc") == [f"{SPACE}a", "bc"]
    scores = [-score if score in (-1.0, -2.0) else score for score in SENTENCEPIECE["scores"]]
    scores[8], scores[9] = -1.0, -2.0  # control
    other = tokenizer(**{**SENTENCEPIECE, "scores": scores})
    assert tokens(other, "abc") == [SPACE, "ab", "c"]


def test_bytes_control_tokens_and_the_space_before_a_text():
    built = tokenizer(**SENTENCEPIECE)
    assert tokens(built, "a\n") == [f"{SPACE}a", "<0x0A>"]
    assert "</s>" in tokens(built, "a</s>")
    assert "<turn>" in tokens(built, "a<turn>")
    assert built.eos_token == "</s>"
    assert tokens(tokenizer(**SENTENCEPIECE, add_space_prefix=False), "a") == ["a"]


def test_a_beginning_and_an_end_stand_where_llama_cpp_puts_them():
    begins = {**SENTENCEPIECE, "bos_token_id": 1}
    around = [f"{SPACE}a"]
    for settings, expected in (
        ({}, ["<s>", *around]),  # the default of a sentencepiece model
        ({"add_bos_token": False}, around),
        ({"add_bos_token": False, "add_eos_token": True}, [*around, "</s>"]),
        ({"add_eos_token": True}, ["<s>", *around, "</s>"]),
    ):
        built = tokenizer(**begins, **settings)
        assert built.convert_ids_to_tokens(built("a")["input_ids"]) == expected
    without = tokenizer(**SENTENCEPIECE)  # no token that begins a text
    assert without.convert_ids_to_tokens(without("a")["input_ids"]) == around


def test_unigram_takes_the_likeliest_division_and_names_sentinels():
    built = tokenizer(
        model="t5", tokens=["<pad>", "</s>", "<unk>", SPACE, "a", "b", f"{SPACE}ab", "[PAD7]"],
        scores=[0.0, 0.0, 0.0, -2.0, -3.0, -3.0, -4.0, 0.0], eos_token_id=1,
        token_type=[3, 3, 2, 1, 1, 1, 1, 5], unknown_token_id=2,
    )  # fmt: skip
    assert tokens(built, "ab  ba") == [f"{SPACE}ab", SPACE, "b", "a"]
    assert tokens(built, "ab<extra_id_99>") == [f"{SPACE}ab", "<extra_id_99>"]
