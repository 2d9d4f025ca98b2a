"""Kills a grid again and again at random moments until it survives; prints what it saw as JSON.

    python -m tests.experiments.killed_grid NUM_KILLS OUTPUT_DIR --candidates=... (the grid's flags)

Each life is a fork of this process, which has imported everything but computed nothing yet, so
that a life costs no import.  It is killed once it has written one to three more files (a cell, or
the checkpoint of an unfinished fine-tune or search), after a random pause in which it writes or
computes.
"""

import contextlib
import json
import os
import random
import signal
import sys
import time
from pathlib import Path

import experiments.finetune_grid as grid
from lensllm_jax import durable
from lensllm_jax.measurement.jobs import SEARCHED, SEARCHING
from tests import forked


def start(arguments: list[str]) -> int:
    """Starts the grid; returns its process."""
    return forked.start("finetune_grid", grid.main, arguments)


def writes(folder: Path) -> dict[str, int]:
    """When each file was last written."""
    found = {}
    for path in folder.rglob("*.*"):  # files: no folder of a run has a dot
        with contextlib.suppress(FileNotFoundError):  # it may go between the two calls
            found[str(path.relative_to(folder))] = path.stat().st_mtime_ns
    return {name: when for name, when in found.items() if not name.endswith(durable.PARTIAL)}


def finished(now: dict[str, int]) -> dict[str, int]:
    """When each cell was written, and each search of an unfinished cell."""
    return {name: when for name, when in now.items()
            if name.startswith("cells/") and name.endswith((".json", SEARCHED))}  # fmt: skip


def rewritten(before: dict[str, int], now: dict[str, int]) -> set[str]:
    """What was finished and is not as it was; a search goes when its cell is finished."""
    return {name for name, when in finished(before).items()
            if now.get(name, when if name.endswith(SEARCHED) else None) != when}  # fmt: skip


def kill_at_random(process: int, folder: Path, rng: random.Random) -> bool:
    """Whether the process died of the kill and not of its own."""
    before, wanted, changes = writes(folder), rng.randint(1, 3), 0
    while changes < wanted:
        if os.waitpid(process, os.WNOHANG)[0]:
            return False
        now = writes(folder)
        changes += sum(before.get(name) != when for name, when in now.items())
        before = now
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.02))
    os.kill(process, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == -signal.SIGKILL


def main() -> None:
    """Kills the grid several times, then lets it finish."""
    num_kills, folder, arguments = int(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    arguments = [*arguments, f"--output_dir={folder}"]
    rng = random.Random(0)
    kills = inside = searching = 0
    before: dict[str, int] = {}
    again = set()
    while kills < num_kills and kill_at_random(start(arguments), folder, rng):
        kills += 1
        now = writes(folder)
        inside += any(name.endswith(".safetensors") for name in now)
        searching += any(name.endswith(SEARCHING) for name in now)
        again |= rewritten(before, now)
        before = now
    code = os.waitstatus_to_exitcode(os.waitpid(start(arguments), 0)[1])
    now = writes(folder)
    again |= rewritten(before, now)
    left = [name for name in now if name.endswith((".safetensors", SEARCHED))]
    print(json.dumps({"kills": kills, "inside": inside, "searching": searching,
                      "rewritten": sorted(again), "code": code, "left": left}))  # fmt: skip


if __name__ == "__main__":
    main()
