"""Rows of any kind become pairs of prompt and target, or are refused by number and field."""

import contextlib

import datasets
import pandas
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.records import rows_of, text_pairs
from lensllm_jax.data.task import Task

RECORDS = [{"prompt": f"question {i}", "target": f"answer {i}"} for i in range(60)]
PAIRS = [(r["prompt"], r["target"]) for r in RECORDS]


@pytest.mark.parametrize(
    "table",
    [
        RECORDS,
        tuple(RECORDS),
        pandas.DataFrame(RECORDS),
        datasets.Dataset.from_list(RECORDS),
        datasets.Dataset.from_list(RECORDS).data.table,
    ],
    ids=lambda table: type(table).__name__,
)
def test_rows_of_every_kind_of_table(table):
    assert list(text_pairs(rows_of(table), source="a")) == PAIRS


def test_a_gap_in_a_frame_is_refused_with_its_record():
    frame = pandas.DataFrame([*RECORDS, {"prompt": "a", "target": None}])
    with pytest.raises(UserError, match=r"field 'target' of every record, got .* in record 61"):
        list(text_pairs(rows_of(frame), source="a"))


def test_an_exact_name_is_preferred_to_one_like_it():
    row = {"prompt": "a", "Prompt": "b", "Target": "c"}
    assert list(text_pairs([row], source="a")) == [("a", "c")]
    assert list(text_pairs([row], source="a", prompt_field="Prompt")) == [("b", "c")]
    assert list(text_pairs([row], source="a", prompt_field=None)) == [("", "c")]


CHAT = [("system", "Be kind."), ("user", "Hello."), ("assistant", "Hi!"), ("user", "Sum up.")]


@pytest.mark.parametrize(
    "keys", [("messages", "role", "content"), ("conversations", "from", "value")]
)
def test_a_conversation_is_scored_on_its_last_message(keys):
    name, role, content = keys

    def chat(turns):
        return [{role: r, content: c} for r, c in [*turns, ("assistant", "Done.")]]

    one, several = [*text_pairs([{name: chat(CHAT[:2])}, {name: chat(CHAT)}], source="chats")]
    assert one == ("Be kind.\n\nHello.", "Done.")
    labelled = "System: Be kind.\n\nUser: Hello.\n\nAssistant: Hi!\n\nUser: Sum up.\n\nAssistant:"
    assert several == (labelled, "Done.")
    parts = [{"type": "text", "text": "Do"}, {"type": "text", "text": "ne."}]
    split = [{role: "user", content: "Hello."}, {role: "assistant", content: parts}]
    assert [*text_pairs([{name: split}], source="chats")] == [("Hello.", "Done.")]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=9), inner),
    max_leaves=9,
)
ROW = st.dictionaries(
    st.sampled_from(["prompt", "target", "messages", "role", "content", " Target"]), JSON
)


@settings(deadline=None, max_examples=300)
@given(st.lists(ROW | JSON, max_size=30) | JSON)
def test_any_value_is_a_task_or_a_user_error(records):
    with contextlib.suppress(UserError):
        Task.from_records(records)


def test_a_conversation_loses_its_prompt_where_that_is_asked_for():
    turns = [{"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]
    pairs = [[*text_pairs([{"messages": turns}], source="a", prompt_field=field)]
             for field in ("prompt", "")]  # fmt: skip
    assert pairs == [[("b", "c")], [("", "c")]]
