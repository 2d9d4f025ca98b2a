"""Progress: a bar with the remaining time on a terminal or in a notebook, plain lines when piped.

Work has any unit that is proportional to time, such as parameters times examples; the remaining
time is what the work done so far took, scaled.

Example:
    >>> with Progress(total=10.0, quiet=True) as progress:
    ...     progress.finish(5.0, "half way")
"""

import html
import math
import sys
import time
from collections.abc import Callable
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from lensllm_jax.printable import printable

SECONDS_BETWEEN_LINES = 10.0


def remaining(seconds: float) -> str:
    """A duration for people, such as "3 min 20 s"."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Progress:
    """A context that shows how far a run is.

    Attributes:
        total: all the work.
        done: work of finished pieces.
        quiet: show nothing.
        on_progress: called with the share that is done and a message, in place of all that is
            shown.
    """

    def __init__(
        self, *, total: float, quiet: bool = False,
        on_progress: Callable[[float, str], object] | None = None,
    ):  # fmt: skip
        self.total, self.quiet, self.on_progress = total, quiet, on_progress
        self._start, self._last_line = time.monotonic(), -math.inf
        self.done = self._skipped = 0.0
        self._bar: Bar | None = None
        self._cell: _NotebookBar | None = None
        if quiet or on_progress is not None:
            return
        if _in_notebook():
            self._cell = _NotebookBar()
        elif sys.stderr.isatty():
            self._bar = Bar(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                TaskProgressColumn(),
                TimeElapsedColumn(),
                TextColumn("left {task.fields[left]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("", total=total, left="?")

    def __enter__(self) -> "Progress":
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar:
            self._bar.stop()

    def skip(self, work: float) -> None:
        """Counts work of an earlier run, which says nothing about the speed of this one."""
        self._skipped += work
        self.done += work

    def drop(self, work: float) -> None:
        """Takes work that is not needed off the total."""
        self.total -= work

    def finish(self, work: float, message: str) -> None:
        """Counts a finished piece and shows it, whenever the last line was."""
        self.done += work
        self._last_line = -math.inf
        self.at(0.0, message)

    def at(self, within: float, message: str) -> None:
        """Shows how far the run is, with ``within`` work done of the unfinished piece."""
        message, now = printable(message), time.monotonic()
        done = self.done + within
        share = min(done / self.total, 1.0) if self.total > 0 else 1.0
        if self.on_progress is not None:
            self.on_progress(share, message)
            return
        if self.quiet:
            return
        made = done - self._skipped
        left = "?"
        if made > 0:
            left = remaining((now - self._start) * max(self.total - done, 0.0) / made)
        if self._bar:
            self._bar.update(
                self._task, completed=done, total=self.total, description=message, left=left
            )
        elif self._cell:
            self._cell.show(share, left, message)
        elif now - self._last_line > SECONDS_BETWEEN_LINES:
            self._last_line = now
            print(f"{share:4.0%}  left {left:>12}  {message}", file=sys.stderr, flush=True)


def _in_notebook() -> bool:
    return Console().is_jupyter


class _NotebookBar:
    """A bar below a notebook's cell, drawn by the browser."""

    def __init__(self) -> None:
        from IPython.display import HTML, display  # where a notebook runs

        self._html = HTML
        self._handle = display(HTML("<progress></progress>"), display_id=True)

    def show(self, share: float, left: str, message: str) -> None:
        """Draws it again."""
        text = html.escape(f"{share:.0%}, {left} left: {message}")
        self._handle.update(self._html(f'<progress value="{share:.4f}"></progress> {text}'))
