"""A task from one local file: JSON lines, a JSON array, CSV, TSV, Parquet, or plain text.

All but the last hold one record per row: a prompt and a target, or a conversation
(:mod:`lensllm_jax.data.records`).  A text file is language modelling on its paragraphs (blank
lines between them; else on its lines), packed into chunks of whole sentences
(:mod:`lensllm_jax.data.packing`).  The records are split at random
(:func:`lensllm_jax.data.task.split_task`).
"""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from lensllm_jax.checks import UserError
from lensllm_jax.data.packing import pack
from lensllm_jax.data.records import text_pairs
from lensllm_jax.data.task import Task, split_task
from lensllm_jax.delimited import encoding_of, read_delimited


def read_task_file(
    path: Path, *, prompt_field: str | None = "prompt", target_field: str = "target"
) -> Task:
    """The task in a .jsonl, .ndjson, .json, .csv, .tsv, .parquet or .txt file, named after it.

    Args:
        path: of the file.
        prompt_field: column of the prompts; "" or None for language modelling on the targets.
        target_field: column of the targets.

    Raises:
        UserError: if the kind of file is unknown, a row is unreadable or lacks a field, or
            there are fewer than 20 records.
    """
    suffix = path.suffix.lower()
    if suffix not in (".txt", *_ROWS):
        raise UserError(
            f"`path` must end in .txt, {', '.join(_ROWS)}, got {str(path)!r}, convert the file"
        )
    description = f"the records of {path.name}, split at random"
    try:
        if suffix == ".txt":
            return split_task(path.stem, description, [("", t) for t in _paragraph_chunks(path)])
        pairs = text_pairs(
            _ROWS[suffix](path, (prompt_field or target_field, target_field, "messages")),
            source=path.name,
            prompt_field=prompt_field,
            target_field=target_field,
        )
        return split_task(path.stem, description, pairs)
    except UnicodeDecodeError as error:
        raise UserError(f"`{path.name}` must be UTF-8 text, got {error}, convert it") from error
    except OSError as error:
        raise UserError(f"`{path.name}` must be readable, got {error}") from error


def _paragraph_chunks(path: Path) -> list[str]:
    text = path.read_text(encoding=encoding_of(path))
    if "\0" in text:
        raise UserError(
            f"`{path.name}` must be text, got a NUL character: save it as UTF-8, or as UTF-16 "
            "with a byte order mark"
        )
    paragraphs = text.split("\n\n") if "\n\n" in text.strip() else text.splitlines()
    return [chunk for paragraph in paragraphs for chunk in pack(paragraph)]


def _json_line_rows(path: Path, _: Iterable[str]) -> Iterator[Any]:
    with path.open(encoding=encoding_of(path)) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # not JSON, 5,000 digits, too deep
                raise UserError(
                    f"`{path.name}` must hold one JSON object a line, got {error} in line {number}"
                ) from error
            if not isinstance(row, dict):
                raise UserError(
                    f"`{path.name}` must hold one JSON object a line, "
                    f"got {type(row).__name__} in line {number}"
                )
            yield row


def _json_rows(path: Path, fields: Iterable[str]) -> Iterator[Any]:
    """Of a JSON array, or of JSON lines under the same suffix."""
    with path.open(encoding=encoding_of(path)) as file:
        text = file.read()
    if not text.lstrip().startswith("["):
        yield from _json_line_rows(path, fields)
        return
    try:
        yield from json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(
            f"`{path.name}` must be a JSON array of objects, or hold one a line, got {error}"
        ) from error


def _delimited_rows(path: Path, fields: Iterable[str]) -> Iterator[Any]:
    with path.open(encoding=encoding_of(path), newline="") as lines:
        try:
            header, rows = read_delimited(lines, headings=[*fields])
        except UserError as error:
            raise UserError(f"{path.name}: {error}") from None
    repeated = [name for name in header if name and header.count(name) > 1]
    if repeated:
        raise UserError(f"`{path.name}` must name each column once, got {repeated[0]!r} twice")
    for row in rows:
        yield dict(zip(header, row, strict=True))


def _parquet_rows(path: Path, _: Iterable[str]) -> Iterator[Any]:
    import pyarrow
    import pyarrow.parquet  # slow to import, and only this kind of file needs it

    damaged = (pyarrow.ArrowException, OSError, ValueError, KeyError, MemoryError, OverflowError)
    try:
        rows = pyarrow.parquet.read_table(path, memory_map=False).to_pylist()
    except damaged as error:  # pyarrow names each kind of damage differently
        found = " ".join(str(error).split())
        raise UserError(f"`{path.name}` must be a Parquet file, got {found}") from error
    yield from rows


_ROWS = {
    ".jsonl": _json_line_rows,
    ".ndjson": _json_line_rows,
    ".json": _json_rows,
    ".csv": _delimited_rows,
    ".tsv": _delimited_rows,
    ".parquet": _parquet_rows,
}
