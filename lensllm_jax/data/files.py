"""A task from one local file: JSON lines, CSV, Parquet, or plain text.

The first three hold one record per row, with a column for the prompt and one for the target;
without a prompt column the task is language modelling on the targets.  A text file is language
modelling on its paragraphs (blank lines between them; else on its lines), packed into chunks
of whole sentences (:mod:`lensllm_jax.data.packing`).

The records are shuffled with a fixed seed; a tenth (at most 1,000) become test, a twentieth (at
most 500) validation, the rest train.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from lensllm_jax.checks import UserError
from lensllm_jax.data.packing import pack
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task, build_task

_TEST_SHARE, _VALIDATION_SHARE = 0.1, 0.05
_MOST_TEST, _MOST_VALIDATION = 1000, 500
_FEWEST = 20  # records: below it a test loss says nothing
_SPLIT_SEED = 0


def read_task_file(
    path: Path, *, prompt_field: str = "prompt", target_field: str = "target"
) -> Task:
    """The task in a .jsonl, .csv, .parquet or .txt file, named after the file.

    Args:
        path: of the file.
        prompt_field: column of the prompts; must be there unless it is the default.
        target_field: column of the targets.

    Raises:
        UserError: if the kind of file is unknown, a row is unreadable or lacks a field, or
            there are fewer than 20 records.
    """
    if path.suffix not in (".txt", *_ROWS):
        raise UserError(
            f"`path` must end in .txt, {', '.join(_ROWS)}, got {str(path)!r}, convert the file"
        )
    try:
        if path.suffix == ".txt":
            return _split(path, [Example("", chunk) for chunk in _paragraph_chunks(path)])
        rows = _ROWS[path.suffix](path)
        return _split(path, list(_examples(path, rows, prompt_field, target_field)))
    except UnicodeDecodeError as error:
        raise UserError(f"`{path.name}` must be UTF-8 text, got {error}, convert it") from error


def _split(path: Path, examples: list[Example]) -> Task:
    if len(examples) < _FEWEST:
        raise UserError(
            f"`path` must hold at least {_FEWEST} records to be split, "
            f"got {len(examples)} in {str(path)!r}"
        )
    shuffled = [examples[i] for i in subset_order(len(examples), seed=_SPLIT_SEED)]
    num_test = min(round(_TEST_SHARE * len(examples)), _MOST_TEST)
    held_out = num_test + min(round(_VALIDATION_SHARE * len(examples)), _MOST_VALIDATION)
    return build_task(
        path.stem,
        f"the records of {path.name}, split at random",
        test=shuffled[:num_test],
        validation=shuffled[num_test:held_out],
        train=shuffled[held_out:],
    )


def _paragraph_chunks(path: Path) -> list[str]:
    text = path.read_text(encoding="utf-8")
    paragraphs = text.split("\n\n") if "\n\n" in text.strip() else text.splitlines()
    return [chunk for paragraph in paragraphs for chunk in pack(paragraph)]


def _examples(
    path: Path, rows: Iterable[Mapping[str, Any]], prompt_field: str, target_field: str
) -> Iterator[Example]:
    for number, row in enumerate(rows, start=1):
        prompt = row.get(prompt_field, "" if prompt_field == "prompt" else None)
        for field, value in ((prompt_field, prompt), (target_field, row.get(target_field))):
            if not isinstance(value, str):
                raise UserError(
                    f"`{path.name}` must have text in field {field!r} of every record, "
                    f"got {value!r} in record {number} (its fields: {', '.join(map(str, row))}), "
                    f"name the columns with prompt_field and target_field"
                )
        yield Example(prompt or "", row[target_field])


def _json_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(
                    f"`{path.name}` must hold one JSON object a line, got {error} in line {number}"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"`{path.name}` must hold one JSON object a line, "
                    f"got {type(row).__name__} in line {number}"
                )
            yield row


def _csv_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    with path.open(encoding="utf-8", newline="") as lines:
        yield from csv.DictReader(lines)


def _parquet_rows(path: Path) -> Iterator[Mapping[str, Any]]:
    import pyarrow
    import pyarrow.parquet  # slow to import, and only this kind of file needs it

    try:
        file = pyarrow.parquet.ParquetFile(path)
    except pyarrow.ArrowInvalid as error:
        raise UserError(f"`{path.name}` must be a Parquet file, got {error}") from error
    with file:
        for batch in file.iter_batches():
            yield from batch.to_pylist()


_ROWS = {".jsonl": _json_rows, ".csv": _csv_rows, ".parquet": _parquet_rows}
