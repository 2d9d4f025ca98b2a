"""A text without a prompt is divided into a prompt and a target."""

import dataclasses

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.prefixes import split_prefix, with_prompts
from lensllm_jax.data.task import Example, Task
from lensllm_jax.data.tokens import joined


@given(st.text("ab \n\t\u00a0", min_size=3), st.floats(0, 1))
def test_a_divided_record_keeps_every_character(text, share):
    words = text.split()
    assume(len(words) > 1)
    divided = split_prefix(Example("", text), share=share)
    assert joined(divided) == (text, len(divided.prompt))
    assert divided.prompt.split() + divided.target.split() == words  # no word is divided
    assert divided.prompt.strip()
    assert divided.target.strip()


def test_lines_stay_lines():
    assert split_prefix(Example("", "a\n\n  b c")) == Example("a", "\n\n  b c")


@pytest.mark.parametrize("example", [Example("", "a"), Example("a", "b c")])
def test_a_record_that_cannot_be_divided_is_refused(example):
    with pytest.raises(UserError, match="no prompt and a target of two words or more"):
        split_prefix(example)


def test_records_of_one_word_are_left_out_of_a_divided_task_and_counted():
    two, one = Example("", "a b"), Example("", "a")
    divided = with_prompts(Task("t", "", (two, one, one), (two,), (two, one), {"empty": 1}, ""))
    assert divided.train == divided.validation == divided.test == (Example("a", "b"),)
    assert divided.removed == {"empty": 1, "train_one_word": 2, "test_one_word": 1}
    assert divided.num_divided == 3
    assert "3 records have no prompt" in divided.notes()[-1]
    assert with_prompts(divided) is divided


def test_a_split_of_single_words_cannot_be_divided():
    two, one = Example("", "a b"), Example("", "a")
    task = Task("t", "", (two,), (one,), (two,), {}, "")
    with pytest.raises(UserError, match="`validation` of task 't' must hold a record"):
        with_prompts(task)
    with pytest.raises(UserError, match=r"got 1 of one word in 12 bytes \(`max_bytes`\)"):
        with_prompts(dataclasses.replace(task, max_bytes=12))
