"""Terminal: tables of results, drawn on a screen and in plain characters down a pipe.

Example:
    >>> shown = table("Losses", left=["candidate"], right=["loss"])
    >>> shown.add_row("gpt2", "3.1")
    >>> show(shown)  # doctest: +SKIP
"""

import sys
from collections.abc import Sequence
from typing import Any

from rich.box import ASCII, SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from lensllm_jax.printable import printable

# a pipe has no width of its own: rows must not be folded there
PIPE_WIDTH = 200
NAME_WIDTH = 8  # characters that a column of names has at least


class _Table(Table):
    """A table in which no part of a cell acts, whatever a user's name holds."""

    def add_column(self, header: RenderableType = "", *others: Any, **settings: Any) -> None:
        """As rich's, with text as it is."""
        text = printable(header) if isinstance(header, str) else header
        super().add_column(text, *others, **settings)

    def add_row(self, *cells: RenderableType | None, **settings: Any) -> None:
        """As rich's, with text as it is."""
        super().add_row(*map(_as_written, cells), **settings)


def table(
    title: str | None = None, *, left: Sequence[str] = (), right: Sequence[str] = ()
) -> Table:
    """A table without rows; its columns of text stand ``left``, those of numbers ``right``."""
    if Console().is_terminal:
        shown = _Table(title=_title(title), box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    else:
        shown = _Table(title=_title(title), box=ASCII)
    for column in left:
        shown.add_column(column)
    for column in right:
        shown.add_column(column, justify="right")
    return shown


def _as_written(part: RenderableType | None) -> RenderableType | None:
    return Text(printable(part)) if isinstance(part, str) else part


def _title(text: str | None) -> Text | None:
    return None if text is None else Text(printable(text), style="table.title")


def warn(text: str) -> None:
    """Prints a line to stderr."""
    print(printable(text), file=sys.stderr, flush=True)


def show(*parts: RenderableType) -> None:
    """Prints tables and lines to stdout, one below the other; lines are shown as they are."""
    width = None if Console().is_terminal else PIPE_WIDTH
    console = Console(width=width, markup=False, emoji=False, highlight=False)
    for part in parts:
        if console.is_terminal and isinstance(part, Table):
            _narrow(part)
            if _least_width(part) > console.width:
                part = _stacked(part)
        console.print(_as_written(part), soft_wrap=not console.is_terminal)


def _least_width(shown: Table) -> int:
    """Characters that a table needs once its names are folded."""
    width = 0
    for column in shown.columns:
        words = [*str(column.header).split("\n"), *map(str, column.cells)]
        longest = max(map(cell_len, words), default=0)
        width += longest if column.justify == "right" else min(longest, NAME_WIDTH)
    return width + 2 * (len(shown.columns) - 1)


def _stacked(shown: Table) -> Text:
    """A table that is wider than the screen: a line per cell, rows below each other."""
    lines = [] if shown.title is None else [str(shown.title), ""]
    headings = [" ".join(str(column.header).split()) for column in shown.columns]
    for cells in zip(*(column.cells for column in shown.columns), strict=True):
        first, *others = (str(cell) for cell in cells)
        lines += [first, *(f"  {h}: {c}" for h, c in zip(headings[1:], others, strict=True)), ""]
    return Text("\n".join(lines))


def show_box(text: str) -> None:
    """Prints a sentence to stdout: in a box on a screen, on one line down a pipe."""
    console = Console()
    if console.is_terminal:
        console.print(Panel(Text(printable(text)), expand=False))
    else:
        print(printable(text))


def _narrow(shown: Table) -> None:
    """Headings of numbers one word per line, names folded: a number that is cut would be wrong."""
    for column in shown.columns:
        if column.justify == "right":
            column.no_wrap = True
            column.header = str(column.header).replace(" ", "\n")
        else:
            column.overflow, column.min_width = "fold", NAME_WIDTH
