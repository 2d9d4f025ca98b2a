"""Runs killed at random moments again and again, and what they end with; `make soak`.

    python -m tests.soak KILLS FOLDER

A grid, selections in every order whose fine-tunes are a formula, and a tile store that three
processes fill are each killed with -9 until a third of KILLS is spent.  What is left must be, byte
for byte, what one unbroken run writes.  FOLDER/soak.json counts the kills of runs that passed; the
same command resumes there.
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

from lensllm_jax import durable
from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.selection.orders import Order
from tests.experiments import killed_grid, killed_selection
from tests.kings import KINGS, write_kings
from tests.ntk import stored_kernel

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
    """What a run ends with, without its folder's name and what holds durations or the command."""
    found = {str(path.relative_to(folder)): path for path in folder.rglob("*") if path.is_file()}
    kept = {
        name: path for name, path in found.items()
        if not name.startswith(("cells/", "run.json", "ledger.csv", "report."))
    }  # fmt: skip
    assert not [name for name in found if name.endswith(durable.PARTIAL)]
    return {
        name: path.read_bytes().replace(folder.name.encode(), b"") for name, path in kept.items()
    }


def grid(kills: int, root: Path, folder: Path, rng: random.Random) -> int:
    """How often a grid died before it ended as an unbroken one."""
    flags, whole = [*GRID, f"--task={root / KINGS}"], root / "grid"
    if not (whole / "losses.csv").exists():
        assert ended(killed_grid.start([*flags, f"--output_dir={whole}"])) == 0
    flags.append(f"--output_dir={folder}")
    deaths = 0
    while deaths < kills and killed_grid.kill_at_random(killed_grid.start(flags), folder, rng):
        deaths += 1
    assert ended(killed_grid.start(flags)) == 0
    assert files(folder) == files(whole)
    return deaths


def selection(kills: int, root: Path, folder: Path, rng: random.Random) -> int:
    """How often a selection died, inside every second fine-tune, whatever its order."""
    del kills  # few
    killed_selection.install()
    order, deaths = rng.choice(list(Order)).value, 0
    whole, killed = f"{folder.name}-whole", folder.name
    assert killed_selection.live(root, whole, order, f"{whole}.log", deadly=False) == 0
    while (code := killed_selection.live(root, killed, order, f"{killed}.log", deadly=True)) < 0:
        deaths += 1
    assert code == 0
    assert files(folder) == files(root / whole), order
    assert files(root / f"{killed}-model") == files(root / f"{whole}-model"), order
    return deaths


def store(kills: int, root: Path, folder: Path, rng: random.Random) -> int:
    """How often three processes that fill one store died together before it was full."""
    deaths = 0
    while deaths < kills and killed_together(started(folder), folder, rng):
        deaths += 1
    processes = started(folder)
    ends = {process.communicate()[0].splitlines()[-1] for process in processes}
    assert [process.returncode for process in processes] == [0] * NUM_PROCESSES
    whole = root / "kernel.txt"
    if not whole.exists():
        whole.write_text(fingerprint(stored_kernel.kernel(None, on_tile=None)))
    assert ends == {whole.read_text()}, "another kernel"
    return deaths


def killed_together(processes: list[subprocess.Popen], folder: Path, rng: random.Random) -> bool:
    """Whether the processes died of one kill, after one to four new tiles, and not of their own."""
    full = len(list(folder.glob("tile_*"))) + rng.randint(1, 4)
    while len(list(folder.glob("tile_*"))) < full:
        if all(process.poll() is not None for process in processes):
            break
        time.sleep(0.001)
    time.sleep(rng.uniform(0.0, 0.2))
    killed = any(process.poll() is None for process in processes)
    for process in processes:
        process.kill()
        process.communicate()
    return killed


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


# the first two fork, which a process that has computed with JAX must not
PARTS = {"grid": grid, "selection": selection, "store": store}


def main() -> None:
    """All three, one after the other; each line is a run that ended as an unbroken one."""
    share, root = -(-int(sys.argv[1]) // len(PARTS)), Path(sys.argv[2])
    root.mkdir(parents=True, exist_ok=True)
    write_kings(root, 3000)
    record = root / "soak.json"
    done = json.loads(record.read_text()) if record.exists() else dict.fromkeys(PARTS, 0)
    for name, part in PARTS.items():
        while done[name] < share:
            begin, folder = time.monotonic(), root / f"{name}-{done[name]}"
            for left in root.glob(f"{folder.name}*"):  # by a soak that was itself interrupted
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            deaths = part(share - done[name], root, folder, random.Random(f"{name}-{done[name]}"))
            assert deaths > 0, "not killed once"
            done[name] += deaths
            durable.replace(record, json.dumps(done).encode())
            seconds = time.monotonic() - begin
            print(f"{name}: {done[name]} of {share} kills, {deaths} in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main()
