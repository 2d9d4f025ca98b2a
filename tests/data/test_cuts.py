"""Texts are cut once, as text: the beginning of prompts first, whole characters, and counted."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.cuts import cut_example, cut_task, default_max_bytes
from lensllm_jax.data.task import Example, Task, fingerprint

text = st.text(st.characters(codec="utf-8"), max_size=40)


def size(example):
    return len(example.prompt.encode()) + len(example.target.encode())


def task_of(*examples):
    return Task("t", "", examples, examples, examples, {}, fingerprint(*[examples] * 3))


@given(st.builds(Example, text, text), st.integers(8, 60))
def test_a_cut_record_is_as_long_as_it_may_be(example, max_bytes):
    cut = cut_example(example, max_bytes=max_bytes)
    assert size(cut) <= max_bytes
    assert example.prompt.endswith(cut.prompt)
    assert example.target.startswith(cut.target)
    if len(example.target.encode()) <= max_bytes:
        assert cut.target == example.target  # never for the sake of a prompt
    else:
        assert cut.prompt == ""
    if cut != example:  # one more character would not have fitted
        lost = example.target[len(cut.target) :] or example.prompt[: -len(cut.prompt) or None]
        nearest = lost[0] if cut.target != example.target else lost[-1]
        assert size(cut) + len(nearest.encode()) > max_bytes


def test_cut_and_left_out_records_are_counted_and_the_text_has_a_new_fingerprint():
    long, short = Example("a" * 9 + "b", "c" * 8), Example("p", "t")
    blank = Example("", " " * 10 + "x")
    one = (Example("p", "t"),)
    train = (long, short, blank, Example("p", "é" * 9))
    task = cut_task(Task("t", "", train, one, one, {"empty": 3}, ""), max_bytes=10)
    assert task.train == (Example("ab", "c" * 8), short, Example("", "é" * 5))
    assert task.max_bytes == 10
    assert task.cut == {"train_prompts": 2, "train_targets": 1}
    assert task.removed == {"empty": 3, "train_cut_blank": 1}
    assert task.fingerprint == fingerprint(task.train, task.validation, task.test)


def test_records_that_only_what_was_cut_told_apart_are_left_out_where_they_train():
    """Else a model would be tested on what it was trained on; repeats of the task itself stay."""
    first, second, third = (Example(f"{word} and the rest", "yes") for word in "abc")
    same = (Example("p", "t"), Example("p", "t"))
    task = Task("t", "", (first, *same, third), (second,), same, {}, "")
    cut = cut_task(task, max_bytes=16)
    rest = Example(" and the rest", "yes")
    assert (cut.test, cut.validation, cut.train) == (same, (rest,), same)
    assert cut.removed == {"train_cut_repeats_validation": 2}


def test_a_task_that_fits_keeps_its_text_and_its_fingerprint():
    task = task_of(Example("p", "t"))
    cut = cut_task(task, max_bytes=8)
    assert cut == dataclasses.replace(task, max_bytes=8)
    assert not cut.cut


def test_bytes_that_leave_no_text_are_refused():
    with pytest.raises(UserError, match="`max_bytes` must be at least 8, got 7"):
        cut_task(task_of(Example("p", "t")), max_bytes=7)
    with pytest.raises(UserError, match="`max_bytes` must leave text in the test split of t"):
        cut_task(task_of(Example("", " " * 8 + "x")), max_bytes=8)


def test_by_default_nearly_all_records_stay_whole_where_positions_allow():
    task = task_of(*[Example("p" * n, "t") for n in range(1, 100)], Example("p" * 900, "t"))
    assert default_max_bytes(task) == 100
    assert default_max_bytes(task, fewest_positions=1024) == 100
    assert default_max_bytes(task, fewest_positions=38) == 40
    assert default_max_bytes(task, fewest_positions=4) == 8


def test_a_task_is_loaded_with_the_bytes_that_are_asked_for(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text("".join(f'{{"prompt": "record {i}", "target": "ab"}}\n' for i in range(40)))
    assert {size(e) for e in load_task(path, max_bytes=8).train} == {8}
