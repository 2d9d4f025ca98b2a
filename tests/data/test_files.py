"""Local files become tasks; what is wrong with one is said with the record and the field."""

import csv
import json

import pyarrow
import pyarrow.parquet
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.catalogue import load_task

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


WRITERS = {".jsonl": write_jsonl, ".csv": write_csv, ".parquet": write_parquet}


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


def test_without_a_prompt_column_it_is_language_modelling(tmp_path):
    path = tmp_path / "lines.jsonl"
    write_jsonl(path, [{"target": r["target"]} for r in RECORDS])
    assert {e.prompt for e in load_task(path).train} == {""}


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
        ([*RECORDS, {"target": None}], "field 'target' .* got None in record 61"),
        ([{"target": ""}] * 30, "`test` must hold at least one record .*'empty': 3"),
        ([{"target": "same"}] * 30, "`validation` must hold at least one record"),
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
        ("bad.jsonl", '{"target": "a"}\n{oops\n', "one JSON object a line, got .* in line 2"),
        ("bad.jsonl", '["a"]\n', "one JSON object a line, got list in line 1"),
        ("bad.tsv", "a\tb\n", "`path` must end in .txt, .jsonl, .csv, .parquet"),
        ("bad.txt", "", "at least 20 records"),
        ("bad.jsonl", b"\xff\xfe", "must be UTF-8 text"),
        ("bad.parquet", "no parquet", "must be a Parquet file"),
        ("bad.csv", "prompt,target\na\n" * 12, "field 'target' of every record, got None"),
    ],
)
def test_unreadable_files_are_refused(tmp_path, name, text, message):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError, match=message):
        load_task(path)
