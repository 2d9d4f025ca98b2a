"""Runs that are interrupted in a fine-tune, each twice; prints what became of them as JSON.

    python -m tests.messages.interrupted ROOT

Each run is a fork of this process, which has imported everything and computed nothing yet; its
fine-tunes are a formula.  Ctrl-C goes to its whole process group, as from a terminal: in the second
fine-tune of the first process, and in the first fine-tune when the same command runs again.  Where
other processes measure, a result of the first may not have arrived: there is no second.
"""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from experiments import finetune_grid, select_model
from lensllm_jax import durable
from lensllm_jax.finetune.fine_tune import FineTuned, FineTuneResult
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.runs import resume
from tests import forked
from tests.finetune import tiny
from tests.kings import KINGS, write_kings

SHARED = [
    "--candidates=zoo/gpt2-xs,zoo/opt-xs", "--num_kernel_examples=2", "--learning_rate=1e-3",
    "--quiet",
]  # fmt: skip
GRID = ["--sizes=4,8"]
RUNS = {
    "select_model": (
        select_model,
        ["--paper", "--budget_size=8", "--smallest_size=4", "--target_size=16"],
    ),
    "finetune_grid": (finetune_grid, GRID),
    "finetune_grid_local": (finetune_grid, [*GRID, "--executor=local"]),
}
PATIENCE_SECONDS = 120.0


def fine_tune(measurement, size, **_):
    """A loss by formula; the last fine-tune that is waited for never ends."""
    started = Path(os.environ["STARTED"])
    with started.open("a") as file:
        file.write(f"{measurement.candidate.name} {size}\n")
    while len(started.read_text().splitlines()) == int(os.environ["LAST"]):
        time.sleep(0.01)
    result = FineTuneResult(9.0 / size, 9.0 / size, 1, 1, 10 * size, True, "")
    return FineTuned(result, None, tiny.evaluation(9.0 / size))


def kernel(folder, path, load):
    """A spectrum of nothing."""
    return NtkSpectrum(np.ones(2), np.ones(2), learning_rate=0.01)


# in the program and the processes that its executor starts, not where this module is imported
if __name__ in ("__main__", "__mp_main__"):
    Measurement.fine_tune, Measurement.zero_shot = fine_tune, lambda _, **__: tiny.evaluation(9.0)
    resume.remember_kernel = kernel


def start(root: Path, name: str, started: Path, output: Path, last: int) -> int:
    """Starts a run; returns its process."""
    binary, flags = RUNS[name]

    def before():
        os.setpgrp()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in a background job
        os.environ.update(STARTED=str(started), LAST=str(last))

    files = [f"--task={root / KINGS}", f"--output_dir={root / name}"]
    return forked.start(
        name, binary.main, [*SHARED, *flags, *files],
        output=output, streams=(forked.STDOUT, forked.STDERR), before=before,
    )  # fmt: skip


def interrupted(root: Path, name: str, last: int) -> dict:
    """One process of a run, and what it left."""
    started, output = root / f"{name}-{last}.started", root / f"{name}-{last}.output"
    started.touch()
    process = start(root, name, started, output, last)
    wait_until(lambda: len(started.read_text().splitlines()) >= last)
    os.killpg(process, signal.SIGINT)
    ended = wait_until(lambda: os.waitid(os.P_PID, process, os.WEXITED | os.WNOHANG | os.WNOWAIT))
    if not ended:
        os.killpg(process, signal.SIGKILL)
    code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
    files = [path.name for path in (root / name).rglob("*") if path.is_file()]
    return {
        "code": code,
        "output": output.read_text(),
        "started": started.read_text().splitlines(),
        "half_written": [file for file in files if file.endswith(durable.PARTIAL)],
        "alive": not wait_until(lambda: not is_alive(process)),
    }


def wait_until(happened: Callable[[], Any]) -> bool:
    """Whether it happened within our patience."""
    start = time.monotonic()
    while not (so := happened()) and time.monotonic() - start < PATIENCE_SECONDS:
        time.sleep(0.01)
    return bool(so)


def is_alive(group: int) -> bool:
    """Whether a process of the group is still there."""
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def main() -> None:
    """Every run, twice."""
    root = Path(sys.argv[1])
    write_kings(root, 60)
    processes = {name: (2,) if "local" in name else (2, 1) for name in RUNS}
    print(json.dumps({n: [interrupted(root, n, last) for last in processes[n]] for n in RUNS}))


if __name__ == "__main__":
    main()
