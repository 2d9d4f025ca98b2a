"""Terminal: tables of results, drawn on a screen and in plain characters down a pipe.

Example:
    >>> shown = table("Losses", left=["candidate"], right=["loss"])
    >>> shown.add_row("gpt2", "3.1")
    >>> show(shown)  # doctest: +SKIP
"""

from collections.abc import Sequence

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

# a pipe has no width of its own: rows must not be folded there
PIPE_WIDTH = 200


def table(
    title: str | None = None, *, left: Sequence[str] = (), right: Sequence[str] = ()
) -> Table:
    """A table without rows; its columns of text stand ``left``, those of numbers ``right``."""
    if Console().is_terminal:
        shown = Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    else:
        shown = Table(title=title, box=ASCII)
    for column in left:
        shown.add_column(column)
    for column in right:
        shown.add_column(column, justify="right")
    return shown


def show(*parts: RenderableType) -> None:
    """Prints tables and lines to stdout, one below the other."""
    console = Console(width=None if Console().is_terminal else PIPE_WIDTH)
    if console.is_terminal:
        for part in parts:
            if isinstance(part, Table):
                _narrow(part)
    console.print(*parts, sep="\n")


def _narrow(shown: Table) -> None:
    """Headings of numbers one word per line, names folded: a number that is cut would be wrong."""
    for column in shown.columns:
        if column.justify == "right":
            column.no_wrap = True
            column.header = str(column.header).replace(" ", "\n")
        else:
            column.overflow = "fold"
