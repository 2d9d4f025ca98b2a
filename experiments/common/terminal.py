"""Terminal: tables of results, drawn on a screen and in plain characters down a pipe.

Example:
    >>> shown = table("Losses")
    >>> shown.add_column("candidate")
    >>> shown.add_row("gpt2")
    >>> show(shown)  # doctest: +SKIP
"""

from rich.box import ASCII, SIMPLE_HEAD
from rich.console import Console, RenderableType
from rich.table import Table

# a pipe has no width of its own: rows must not be folded there
PIPE_WIDTH = 200


def table(title: str | None = None) -> Table:
    """An empty table.

    Args:
        title: over it.

    Returns:
        The table, to be filled with columns and rows.
    """
    if Console().is_terminal:
        return Table(title=title, box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    return Table(title=title, box=ASCII)


def show(*parts: RenderableType) -> None:
    """Prints to stdout.

    Args:
        *parts: tables and lines, one below the other.
    """
    console = Console(width=None if Console().is_terminal else PIPE_WIDTH)
    if console.is_terminal:
        for part in parts:
            if isinstance(part, Table):
                _narrow(part)
    console.print(*parts, sep="\n")


def _narrow(shown: Table) -> None:
    """Headings of numbers one word a line, names folded: a number that is cut would be wrong."""
    for column in shown.columns:
        if column.justify == "right":
            column.no_wrap = True
            column.header = str(column.header).replace(" ", "\n")
        else:
            column.overflow = "fold"
