"""Binaries in forks of a process that has imported everything and computed nothing yet.

A fork imports nothing, so that a test can afford to kill many of them.
"""

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from transformers import AutoTokenizer  # noqa: F401  what every fork would import anew

from experiments.common import cli

STDOUT, STDERR = 1, 2


def start(
    name: str, main: Callable, flags: Sequence[str], *, output: str | Path = os.devnull,
    streams: Sequence[int] = (STDOUT,), before: Callable[[], object] = lambda: None,
) -> int:  # fmt: skip
    """Starts the binary ``name`` in a fork; returns its process id.

    ``before`` is called in the fork first; ``streams`` go to the file ``output``.
    """
    process = os.fork()
    if process == 0:
        before()
        sys.argv = [name, *flags]
        with open(output, "w") as file:
            for stream in streams:
                os.dup2(file.fileno(), stream)
        cli.run(main)  # exits
    return process
