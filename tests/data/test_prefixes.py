"""A text without a prompt is divided into a prompt and a target."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.prefixes import split_prefix, with_prompts
from lensllm_jax.data.task import Example, Task


@given(st.lists(st.sampled_from("abc"), min_size=2, max_size=9), st.floats(0, 1))
def test_a_divided_record_keeps_every_word_on_one_side(words, share):
    divided = split_prefix(Example("", " ".join(words)), share=share)
    assert divided.prompt.split() + divided.target.split() == words
    assert divided.prompt
    assert divided.target


@pytest.mark.parametrize("example", [Example("", "a"), Example("a", "b c")])
def test_a_record_that_cannot_be_divided_is_refused(example):
    with pytest.raises(UserError, match="no prompt and a target of two words or more"):
        split_prefix(example)


def test_records_of_one_word_are_left_out_of_a_divided_task_and_counted():
    two, one = Example("", "a b"), Example("", "a")
    divided = with_prompts(Task("t", "", (two, one, one), (two,), (two, one), {"empty": 1}, ""))
    assert divided.train == divided.validation == divided.test == (Example("a", "b"),)
    assert divided.removed == {"empty": 1, "train_one_word": 2, "test_one_word": 1}


def test_a_split_of_single_words_cannot_be_divided():
    two, one = Example("", "a b"), Example("", "a")
    with pytest.raises(UserError, match="`validation` of task 't' must hold a record"):
        with_prompts(Task("t", "", (two,), (one,), (two,), {}, ""))
