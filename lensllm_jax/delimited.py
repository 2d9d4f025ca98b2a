"""Delimited text (CSV, TSV) with a header, read strictly.

A byte order mark is dropped, as is Excel's first line ``sep=;``; headings lose the white space
around them, and a cell may be of any length.  A quote that is not closed, or that closes before
the end of its cell, is refused with the line on which its row begins: a lenient reader joins all
rows up to the next quote into one.

Example:
    >>> read_delimited(["prompt; target", 'a;"b;c"'], headings=("target",))
    (['prompt', 'target'], [['a', 'b;c']])
"""

import codecs
import csv
import itertools
import os
import re
from collections.abc import Collection, Iterable

from lensllm_jax.checks import UserError

_DELIMITERS = (",", ";", "\t")
_LONGEST_CELL = 2**31 - 1  # characters; what fits into a C long everywhere
_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?|[+-](inf|nan)")
_BYTE_ORDER_MARK = "\ufeff"
_DECLARED = re.compile(r'"?sep=([,;\t])"?\s*')  # what Excel reads the delimiter from


def encoding_of(path: str | os.PathLike[str]) -> str:
    """UTF-16 if a file begins with its byte order mark, as Excel's "Unicode text"; else UTF-8."""
    with open(path, "rb") as file:
        begins = file.read(4)
    is_16 = begins.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) and len(begins) == 4
    return "utf-16" if is_16 and begins != codecs.BOM_UTF32_LE else "utf-8-sig"


def plain(heading: str) -> str:
    """A heading as it is compared with others: without white space around it, in lower case."""
    return heading.strip().removeprefix(_BYTE_ORDER_MARK).strip().casefold()


def neutral(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: an apostrophe before =, +, - or @.

    Example:
        >>> neutral("=1+1"), neutral("-0.5"), neutral("zoo/gpt2-xs")
        ("'=1+1", '-0.5', 'zoo/gpt2-xs')
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


def as_written(cell: str) -> str:
    """The text of a cell that :func:`neutral` may have changed."""
    return cell[1:] if cell.startswith("'") and neutral(cell[1:]) == cell else cell


def read_delimited(
    lines: Iterable[str], *, headings: Collection[str]
) -> tuple[list[str], list[list[str]]]:
    """Headings, and the cells of each row that is not blank.

    Args:
        lines: of the text, as a file opened with ``newline=""`` yields them.
        headings: the delimiter is the first of comma, semicolon and tab with which the first line
            has one of these; a comma if none has.

    Raises:
        UserError: if a quote is stray, there is no header, or a row has not a cell per heading.
    """
    lines = iter(lines)
    first = next(lines, "").removeprefix(_BYTE_ORDER_MARK)
    begins = 1  # line
    if declared := _DECLARED.fullmatch(first):
        first, begins = next(lines, ""), 2
    known = {plain(heading) for heading in headings}
    delimiter = next((d for d in _DELIMITERS if known & set(map(plain, _cells(first, d)))), ",")
    delimiter = declared[1] if declared else delimiter
    # behind a delimiter and a space a quote would be text
    others = _cells(first, delimiter)[1:]
    spaced = bool(others) and all(cell.startswith(" ") for cell in others)
    rows = _rows(itertools.chain([first], lines), delimiter, spaced, begins)
    if not rows:
        raise UserError("the file must hold a header, got no line with text")
    header, *body = rows
    for number, row in enumerate(body, start=2):
        if not any(cell.strip() for cell in row[len(header) :]):
            del row[len(header) :]  # a spreadsheet pads its rows with empty cells
        if len(row) != len(header):
            raise UserError(
                f"row {number} must have {len(header)} cells like the header, got {len(row)}, "
                f"put quotes around a cell that holds {delimiter!r}"
            )
    return [heading.strip() for heading in header], body


def _cells(line: str, delimiter: str) -> list[str]:
    try:
        return next(csv.reader([line], delimiter=delimiter), [])
    except csv.Error:  # a heading above the limit of the csv module
        return []


def _rows(lines: Iterable[str], delimiter: str, spaced: bool, begins: int) -> list[list[str]]:
    """Rows with text, by a strict reader; the first begins on line ``begins``."""
    before = csv.field_size_limit(_LONGEST_CELL)
    rows: list[list[str]] = []
    before_first = begins - 1
    try:
        reader = csv.reader(lines, delimiter=delimiter, skipinitialspace=spaced, strict=True)
        for row in reader:
            begins = before_first + reader.line_num + 1
            if any(cell.strip() for cell in row):
                rows.append(row)
    except csv.Error as error:
        raise UserError(
            f"the file must be CSV, got a broken row that begins on line {begins}: {error}, "
            "close its quotes, and write a quote inside a cell twice"
        ) from None
    finally:
        csv.field_size_limit(before)
    return rows
