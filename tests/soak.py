"""Runs killed at random moments again and again, and what they end with; `make soak`.

    python -m tests.soak KILLS FOLDER

A grid, a selection in every order whose fine-tunes are a formula, and a tile store that three
processes fill are each killed with -9 until a third of KILLS is spent.  What is left must be, byte
for byte, what one unbroken run writes.
"""

import json
import os
import random
import socket
import subprocess
import sys
import time
from pathlib import Path

from lensllm_jax import durable
from lensllm_jax.selection.orders import Order
from tests.experiments import killed_grid, killed_selection

ROOT = Path(__file__).parents[1]
GRID = [
    "--candidates=zoo/gpt2-xs", "--sizes=0,32,64", "--batch_size=4", "--max_epochs=8",
    "--patience=1000", "--checkpoint_seconds=0", "--learning_rates=3e-4,1e-3", "--quiet",
]  # fmt: skip
NUM_PROCESSES = 3  # of a tile store


def ended(process: int) -> int:
    """The exit code of a fork."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def files(folder: Path) -> dict[str, bytes]:
    """What a run ends with, without what holds durations or the command."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {
        name: path for name, path in found.items()
        if not name.startswith(("cells/", "run.json", "ledger.csv", "report."))
    }  # fmt: skip
    assert not [name for name in found if name.endswith(durable.PARTIAL)]
    return {name: path.read_bytes() for name, path in kept.items()}


def grid(kills: int, root: Path) -> int:
    """How often a grid died before it ended as an unbroken one."""
    flags = [*GRID, f"--task={root / 'kings.txt'}"]
    whole, killed, rng, deaths = root / "grid", root / "grid-killed", random.Random(0), 0
    assert ended(killed_grid.start([*flags, f"--output_dir={whole}"])) == 0
    flags.append(f"--output_dir={killed}")
    while deaths < kills and killed_grid.kill_at_random(killed_grid.start(flags), killed, rng):
        deaths += 1
    assert ended(killed_grid.start(flags)) == 0
    assert files(killed) == files(whole)
    return deaths


def selection(kills: int, root: Path) -> int:
    """How often selections died, each inside every second fine-tune, over new folders."""
    killed_selection.install()
    deaths, turn, orders = 0, 0, [order.value for order in Order]
    while deaths < kills:
        order, turn = orders[turn % len(orders)], turn + 1
        whole, killed = f"{order}-{turn}", f"{order}-{turn}-killed"
        assert killed_selection.live(root, whole, order, f"{whole}.log", deadly=False) == 0
        while (
            code := killed_selection.live(root, killed, order, f"{killed}.log", deadly=True)
        ) < 0:
            deaths += 1
        assert code == 0
        assert files(root / killed) == files(root / whole), order
    return deaths


def store(kills: int, root: Path) -> int:
    """How often three processes that fill one store died together before it was full."""
    rng, deaths, full = random.Random(1), 0, []
    while not full or deaths < kills:
        folder = root / f"tiles-{len(full)}"
        processes = started(folder)
        time.sleep(rng.uniform(3.0, 9.0))
        if deaths < kills and any(process.poll() is None for process in processes):
            for process in processes:
                process.kill()
                process.communicate()
            deaths += 1
            continue
        ends = {process.communicate()[0].splitlines()[-1] for process in processes}
        assert [process.returncode for process in processes] == [0] * NUM_PROCESSES
        full += ends
        assert len(set(full)) == 1, "another kernel"
    return deaths


def started(folder: Path) -> list[subprocess.Popen]:
    """Three processes that fill a store, a tenth of a second a tile."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.ntk.stored_kernel", str(folder), "0.1", address]
    return [
        subprocess.Popen(
            [*command, str(NUM_PROCESSES), str(process)], cwd=ROOT, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )
        for process in range(NUM_PROCESSES)
    ]  # fmt: skip


def main() -> None:
    """All three, one after the other."""
    kills, root = int(sys.argv[1]), Path(sys.argv[2])
    root.mkdir(parents=True)
    (root / "kings.txt").write_text(killed_selection.TEXT)
    share = -(-kills // 3)
    for name, soak in (("grid", grid), ("store", store), ("selection", selection)):
        print(json.dumps({"soak": name, "kills": soak(share, root)}), flush=True)


if __name__ == "__main__":
    main()
