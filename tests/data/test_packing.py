"""Packing cuts at sentences, keeps every word, and never exceeds its bound."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.data.packing import pack, sentences

WORDS = st.sampled_from(["a", "senate", "appropriation,", "Union.", "why?", "so;", "x" * 90])


@given(st.lists(WORDS, max_size=200), st.integers(100, 300))
def test_no_word_is_lost_and_no_chunk_is_too_long(words, longest):
    chunks = pack(" ".join(words), shortest=longest // 2, longest=longest)
    assert " ".join(chunks).split() == words
    assert all(len(chunk) <= longest for chunk in chunks)


def test_chunks_of_short_sentences_end_where_sentences_end():
    text = "A short sentence stands here. " * 40
    chunks = pack(text)
    assert all(chunk.endswith(".") for chunk in chunks)
    assert all(110 <= len(chunk) <= 160 for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("Mr. Taft spoke. Dr. Low heard.", 2),
        ("We met in the U.S. Senate.", 1),
        ('"Is it so?" he asked. "It is."', 2),
        ("First paragraph\n\nSecond one", 2),
        ("A line\nbroken in two.", 1),
        (" \n\n ", 0),
    ],
)
def test_sentences_of(text, count):
    assert len(sentences(text)) == count
