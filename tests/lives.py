"""Lives of a binary: forks of a process that has imported everything and computed nothing yet.

A life costs no import, so that a test can afford to end many of them.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer  # noqa: F401  what every life would import anew

from experiments.common import cli

STDOUT, STDERR = 1, 2


def live(
    name: str, main: Callable, flags: Sequence[str], *, said: str | Path = os.devnull,
    streams: Sequence[int] = (STDOUT,), before: Callable[[], object] = lambda: None,
) -> int:  # fmt: skip
    """Starts a life of the binary ``name``; returns its process.

    ``before`` is called in it first; ``streams`` go to the file ``said``.
    """
    process = os.fork()
    if process == 0:
        before()
        sys.argv = [name, *flags]
        with open(said, "w") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream)
        cli.run(main)  # exits
    return process
