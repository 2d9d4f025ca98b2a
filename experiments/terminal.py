"""Terminal: tables of results, drawn on a screen and in plain characters down a pipe.

Example:
    >>> shown = table("Losses")
    >>> shown.add_column("candidate")
    >>> shown.add_row("gpt2")
    >>> show(shown)  # doctest: +SKIP
"""

from rich.box import ASCII, HEAVY_HEAD
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
    return Table(title=title, box=HEAVY_HEAD if Console().is_terminal else ASCII)


def show(*parts: RenderableType) -> None:
    """Prints to stdout.

    Args:
        *parts: tables and lines, one below the other.
    """
    console = Console(width=None if Console().is_terminal else PIPE_WIDTH)
    console.print(*parts, sep="\n")
