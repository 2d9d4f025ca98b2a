r"""A report as data: sections of text, tables and figures, which a renderer turns into a document.

:mod:`lensllm_jax.report.markdown` and :mod:`lensllm_jax.report.html` render it.  In text,
```code``` and ``**bold**`` are marked as in Markdown; all else is literal.

Example:
    >>> marked("`D` of **a\\*b**")
    [('code', 'D'), ('', ' of '), ('bold', 'a*b')]
    >>> marked(literal("`a` **b**"))
    [('', '`a` **b**')]
"""

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from lensllm_jax.printable import printable

_MARKED = re.compile(
    r"`([^`\\]+)`|[*]{2}((?:[^*\\]|\\.)+)[*]{2}|\\([`*\\])|([^`*\\]+|.)", re.DOTALL
)


def literal(text: str) -> str:
    """A name or other text of a user as a part of a :class:`Text`, in which it marks nothing."""
    return re.sub(r"([`*\\])", r"\\\1", printable(text))


def marked(text: str) -> list[tuple[str, str]]:
    """The parts of a text, each with "code", "bold" or "" for how it is marked."""
    parts: list[tuple[str, str]] = []
    for match in _MARKED.finditer(text):
        code, bold, escaped, plain = match.groups()
        if code is not None:
            parts.append(("code", code))
        elif bold is not None:
            parts.append(("bold", re.sub(r"\\([`*\\])", r"\1", bold)))
        elif parts and parts[-1][0] == "":
            parts[-1] = ("", parts[-1][1] + (escaped or plain))
        else:
            parts.append(("", escaped or plain))
    return parts


def known_columns(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The rows without the columns in which nothing is known: None, NaN or empty text.

    Example:
        >>> known_columns([{"a": 1, "b": None}, {"a": 2, "b": ""}])
        [{'a': 1}, {'a': 2}]
    """

    def is_known(value: Any) -> bool:
        return value is not None and value != "" and value == value

    columns = [c for c in rows[0] if any(is_known(row[c]) for row in rows)] if rows else []
    return [{column: row[column] for column in columns} for row in rows]


@dataclasses.dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclasses.dataclass(frozen=True)
class Command:
    """A command line, copied as it is."""

    text: str


@dataclasses.dataclass(frozen=True)
class Definitions:
    """Names and values, such as settings."""

    entries: Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """Rows of the same keys; None and NaN are shown as a dash."""

    rows: Sequence[Mapping[str, Any]]
    caption: str  # what the table holds, with units
    forms: Mapping[str, str] = dataclasses.field(default_factory=dict)  # column -> of its floats
    page_only: Collection[str] = ()  # columns that Markdown has no room for


@dataclasses.dataclass(frozen=True)
class Drawing:
    """A figure: drawn into a page, or referred to by its file."""

    title: str
    file: str  # beside a Markdown document
    svg: str  # of :func:`lensllm_jax.report.figures.svg`
    caption: str
    alternative: str  # what the figure shows, in words


Block = Text | Command | Definitions | Table | Drawing


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what follows it; only a page shows the details."""

    heading: str
    blocks: Sequence[Block]
    details: Sequence[Block] = ()


@dataclasses.dataclass(frozen=True)
class Report:
    """A title, what the report says in a sentence or two, and its sections."""

    title: str
    sections: Sequence[Section]
    lead: str = ""
    card: str = ""  # what the reader came for, literal, in a frame at the top
