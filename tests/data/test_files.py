"""Local files become tasks; what is wrong with one is said with the record and the field."""

import csv
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.data.catalogue import load_task

SUFFIXES = (".jsonl", ".json", ".csv", ".tsv", ".parquet", ".txt")
# text out of the pieces that readers care about
TABLES = st.lists(
    st.sampled_from(
        ["prompt", "target", ",", "\t", ";", '"', "\n", "\r", "{", "}", "[", "]", ":", "a", " ",
         "\ufeff", "\x00", '{"prompt": "a", "target": "b"}\n', "x,y\n", '\\ud83d']
    ),
    max_size=60,
).map(lambda parts: "".join(parts).encode())  # fmt: skip

RECORDS = [{"prompt": f"question {i}", "target": f"answer {i}"} for i in range(60)]


def write_jsonl(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def write_csv(path, records):
    with path.open("w", newline="") as lines:
        writer = csv.DictWriter(lines, list(records[0]))
        writer.writeheader()
        writer.writerows(records)


def write_parquet(path, records):
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(records), path)


def write_tsv(path, records):
    lines = ["prompt\ttarget", *(f"{r['prompt']}\t{r['target']}" for r in records)]
    path.write_text("\n".join(lines))


def write_chats(path, records):
    turns = [[("user", r["prompt"]), ("assistant", r["target"])] for r in records]
    chats = [{"messages": [{"role": k, "content": t} for k, t in chat]} for chat in turns]
    path.write_text(json.dumps(chats))


def write_array(path, records):
    path.write_text(json.dumps(records, indent=1))


WRITERS = {
    ".jsonl": write_jsonl,
    ".ndjson": write_jsonl,
    ".JSONL": write_jsonl,
    ".json": write_array,
    ".Json": write_jsonl,
    ".JSON": write_chats,
    ".csv": write_csv,
    ".CSV": write_csv,
    ".tsv": write_tsv,
    ".parquet": write_parquet,
}


@pytest.mark.parametrize("suffix", WRITERS)
def test_every_kind_of_file_gives_the_same_task(tmp_path, suffix):
    path = tmp_path / f"questions{suffix}"
    WRITERS[suffix](path, RECORDS)
    task = load_task(path)
    assert (len(task.train), len(task.validation), len(task.test)) == (51, 3, 6)
    found = {(e.prompt, e.target) for e in task.train + task.validation + task.test}
    assert found == {(r["prompt"], r["target"]) for r in RECORDS}
    write_jsonl(tmp_path / "other.jsonl", RECORDS)
    assert task.fingerprint == load_task(tmp_path / "other.jsonl").fingerprint
    write_jsonl(tmp_path / "other.jsonl", [*RECORDS[:-1], {"prompt": "question", "target": "no"}])
    assert task.fingerprint != load_task(tmp_path / "other.jsonl").fingerprint


def test_fields_are_named_by_arguments(tmp_path):
    path = tmp_path / "q.jsonl"
    write_jsonl(path, [{"q": r["prompt"], "a": r["target"]} for r in RECORDS])
    task = load_task(str(path), prompt_field="q", target_field="a")
    assert task.name == "q"
    assert task.test[0].prompt.startswith("question")


def test_without_a_prompt_column_it_is_language_modelling_if_that_is_said(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_jsonl(path, [{"target": r["target"]} for r in RECORDS])
    with pytest.raises(UserError, match=r'got None in record 1 .* pass prompt_field=""'):
        load_task(path)
    assert {e.prompt for e in load_task(path, prompt_field="").train} == {""}


def test_paragraphs_of_a_text_are_packed(tmp_path):
    path = tmp_path / "book.txt"
    path.write_text("\n\n".join(f"Paragraph number {i} is\nhere." for i in range(40)))
    task = load_task(path)
    assert len(task.train) + len(task.validation) + len(task.test) == 40
    assert "\n" not in task.train[0].target
    path.write_text("\n".join(f"Line number {i}." for i in range(40)))
    assert load_task(path).train[0].target.startswith("Line number")


@pytest.mark.parametrize(
    ("records", "message"),
    [
        (RECORDS[:19], "at least 20 records to be split, got 19"),
        (
            [{"prompt": "a", "text": "b"}] * 30,
            "field 'target' of every record, got None in record 1",
        ),
        ([*RECORDS, {"prompt": 3, "target": "b"}], "field 'prompt' .* got 3 in record 61"),
        ([*RECORDS, {"prompt": "", "target": None}], "field 'target' .* got None in record 61"),
        ([*RECORDS, {"target": "b"}], "field 'prompt' .* got None in record 61"),
        ([*RECORDS, {"prompt": "a", "target": "b\ud83d"}], "half of a surrogate .* record 61"),
        ([{"PROMPT": "a", "Prompt": "b", "target": "c"}] * 30, "'prompt' must name one column"),
        ([{"prompt": "", "target": ""}] * 30, "`test` must hold at least one .*'empty': 3"),
        ([{"prompt": "", "target": "same"}] * 30, "`validation` must hold at least one record"),
        ([{"messages": []}] * 30, "end every conversation .* got no message in record 1"),
        ([{"messages": [{"role": "user", "content": "a"}]}] * 30, "got 'user' in record 1"),
        ([{"messages": "hello"}] * 30, "messages with 'role' and 'content' .* got 'hello'"),
        ([{"messages": [{"role": "assistant", "content": None}]}] * 30, "'target' .* got None"),
    ],
)
def test_bad_records_are_named(tmp_path, records, message):
    path = tmp_path / "bad.jsonl"
    write_jsonl(path, records)
    with pytest.raises(UserError, match=message):
        load_task(path)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        (
            "bad.jsonl",
            '{"prompt": "", "target": "a"}\n{oops\n',
            "one JSON object a line, got .* in line 2",
        ),
        ("bad.jsonl", '["a"]\n', "one JSON object a line, got list in line 1"),
        ("bad.jsonl", f'{{"prompt": {"9" * 5000}}}', "one JSON object a line, got Exceeds"),
        ("bad.jsonl", "[" * 100_000, "one JSON object a line, got maximum recursion"),
        ("bad.json", "[" * 100_000, "JSON array of objects"),
        ("bad.json", "[1, 2]", "must hold dicts, got int in record 1"),
        ("bad.xlsx", "PK", "`path` must end in .txt, .jsonl, .ndjson, .json, .csv, .tsv, .parq"),
        ("bad.txt", "", "at least 20 records"),
        ("bad.jsonl", b"\xff\xfe", "must be UTF-8 text"),
        ("bad.parquet", "no parquet", "must be a Parquet file"),
        ("bad.csv", "prompt,target\na\n" * 12, "row 2 must have 2 cells like the header, got 1"),
        ("bad.csv", "prompt,target\na,b,c\n", "row 2 must have 2 cells like the header, got 3"),
        ("bad.csv", "prompt,prompt,target\na,b,c\n", "name each column once, got 'prompt'"),
        ("bad.csv", "", "must hold a header"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_task(path)


@pytest.mark.parametrize(
    "header", ["\ufeffprompt,target", " prompt, target", "Prompt,TARGET", '"prompt","target"']
)
def test_headings_as_spreadsheets_write_them(tmp_path, header):
    path = tmp_path / "sheet.csv"
    gap = " " if ", " in header else ""
    rows = [f'"{r["prompt"]}, please",{gap}"{r["target"]}"' for r in RECORDS]
    path.write_text("\r\n".join([header, *rows, ",", ""]))  # Excel leaves such a row behind
    texts = {(e.prompt, e.target) for e in load_task(path).train}
    assert texts < {(f"{r['prompt']}, please", r["target"]) for r in RECORDS}
    assert len(texts) == 51


@pytest.mark.parametrize("suffix", [".jsonl", ".csv"])
def test_a_file_in_utf_16_gives_the_same_task(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    WRITERS[suffix](path, RECORDS)
    task = load_task(path)
    path.write_bytes(path.read_bytes().decode().encode("utf-16"))
    assert load_task(path).fingerprint == task.fingerprint


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_may_have_the_delimiter_of_another_country(tmp_path, delimiter):
    path = tmp_path / "sheet.csv"
    path.write_text("\n".join(delimiter.join(pair) for pair in [("prompt", "target"), *TEXTS]))
    assert {(e.prompt, e.target) for e in load_task(path).train} < set(TEXTS)


TEXTS = [(r["prompt"], r["target"]) for r in RECORDS]


@pytest.mark.parametrize("place", ["at the start of a cell", "after a quoted one"])
def test_a_stray_quote_is_refused_with_the_line(tmp_path, place):
    lines = [f"{prompt},{target}" for prompt, target in TEXTS]
    path = tmp_path / "sheet.csv"
    path.write_text("\n".join(["prompt,target", *lines]))
    assert len(load_task(path).train) == 51  # negative control
    lines[40] = '"' + lines[40]
    if place == "after a quoted one":
        lines[50] = '"' + lines[50]  # what a lenient reader takes for the end of the first
    path.write_text("\n".join(["prompt,target", *lines]))
    with pytest.raises(UserError, match="broken row that begins on line 42"):
        load_task(path)


def test_cells_may_be_long_and_hold_lines(tmp_path):
    before = csv.field_size_limit()
    long = [{"prompt": f"{i}\nlines", "target": "word " * 40_000 + str(i)} for i in range(20)]
    write_csv(tmp_path / "long.csv", long)
    task = load_task(tmp_path / "long.csv")
    assert max(len(e.target) for e in task.train) > 200_000 > before
    assert csv.field_size_limit() == before


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.binary(max_size=300), TABLES), st.sampled_from(SUFFIXES), st.booleans())
def test_any_file_is_a_task_or_a_user_error(tmp_path_factory, content, suffix, has_prompts):
    path = tmp_path_factory.mktemp("any") / f"a{suffix}"
    path.write_bytes(content)
    try:
        task = load_task(path, prompt_field="prompt" if has_prompts else "")
    except UserError:
        return
    assert all(e.target.strip() for e in (*task.train, *task.validation, *task.test))


def test_a_damaged_parquet_file_is_a_task_or_a_user_error(tmp_path):
    path = tmp_path / "a.parquet"
    write_parquet(path, RECORDS)
    whole, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    for _ in range(300):
        damaged = bytearray(whole)
        damaged[rng.integers(len(whole))] = rng.integers(256)
        path.write_bytes(damaged)
        try:
            load_task(path)
        except UserError:
            refused += 1
    assert refused > 30


@pytest.mark.parametrize("name", ["~nosuchuser/x.jsonl", "one paragraph\n" * 100])
def test_what_can_be_no_path_is_refused_as_an_unknown_name(name):
    with pytest.raises(UserError, match="`name` must be one of") as refused:
        load_task(name)
    assert len(str(refused.value)) < 600


def test_text_of_two_bytes_a_character_that_does_not_say_so_is_refused(tmp_path):
    path = tmp_path / "wide.txt"
    path.write_bytes("\n".join(f"the {i} kings" for i in range(60)).encode("utf-16-le"))
    with pytest.raises(UserError, match=r"`wide.txt` must be text, got a NUL character"):
        load_task(path)
    path.write_bytes("\n".join(f"the {i} kings" for i in range(60)).encode("utf-16"))
    assert load_task(path).train[0].target.startswith("the ")
