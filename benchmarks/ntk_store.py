"""A kernel whose Jacobian fits no memory, tile by tile on disk, killed in the middle and resumed.

    python -m benchmarks.ntk_store --num_examples=256 --block_size=128 --store_dir=out/gpt2-tiles

The model has the published configuration of GPT-2 (124 M parameters) and random weights, the
examples are 32 random tokens.  One process starts the kernel and is killed (SIGKILL) as soon as
--kill_after tiles are in the folder; a second one resumes to the end.  It prints the seconds of
both, whether the tiles of the first are unchanged, and the largest resident memory of the second
above that of the bare process.  One Jacobian of 256 examples would be 127 GB.
"""

import json
import pathlib
import signal
import subprocess
import sys
import time

import jax
from absl import flags

from benchmarks.ntk import GPT2, problem, resident_bytes
from experiments.common import cli
from lensllm_jax import checks
from lensllm_jax.ntk.candidate import peak_bytes
from lensllm_jax.ntk.gram import empirical_ntk, tiles

NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 256, "n.")
BLOCK_SIZE = flags.DEFINE_integer("block_size", 128, "Examples of a tile's side.")
KILL_AFTER = flags.DEFINE_integer("kill_after", 1, "Tiles of the first process.")
STORE_DIR = flags.DEFINE_string("store_dir", None, "A new folder for the tiles.")
LIFE = flags.DEFINE_bool(
    "life", False, "Internal: one process, which prints its measurements as JSON."
)
POLL_SECONDS = 0.2


def compute() -> None:
    """Computes what is missing of the kernel."""
    f, params, batch = problem(GPT2._replace(n=NUM_EXAMPLES.value))
    jax.block_until_ready(params)
    before, start = resident_bytes(), time.perf_counter()
    theta = empirical_ntk(f, params, batch, block_size=BLOCK_SIZE.value, store=STORE_DIR.value)
    measured = {
        "seconds": time.perf_counter() - start, "peak_bytes": peak_bytes() - before,
        "bare_bytes": before, "trace": float(theta.trace()),
    }  # fmt: skip
    print(json.dumps(measured))


def stored() -> dict[str, int]:
    """The tiles in the folder, with the times at which they were written."""
    return {p.name: p.stat().st_mtime_ns for p in pathlib.Path(STORE_DIR.value).glob("tile_*.npy")}


def main(_) -> None:
    if LIFE.value:
        compute()
        return
    n = NUM_EXAMPLES.value
    total = len(list(tiles(n, n, block_size=BLOCK_SIZE.value, symmetric=True)))
    checks.positive("kill_after", KILL_AFTER.value)
    if KILL_AFTER.value >= total:
        raise checks.UserError(f"`kill_after` must be below the {total} tiles of this kernel, got "
                               f"{KILL_AFTER.value}")  # fmt: skip
    if STORE_DIR.value is None or pathlib.Path(STORE_DIR.value).exists():
        raise checks.UserError(f"`store_dir` must be a new folder, got {STORE_DIR.value}")
    command = [
        sys.executable, "-m", "benchmarks.ntk_store", "--life", f"--store_dir={STORE_DIR.value}",
        f"--num_examples={n}", f"--block_size={BLOCK_SIZE.value}",
    ]  # fmt: skip
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as first:
        while len(stored()) < KILL_AFTER.value and first.poll() is None:
            time.sleep(POLL_SECONDS)
        first.kill()
    if first.returncode != -signal.SIGKILL:
        sys.exit(f"error: the first process ended by itself, with exit code {first.returncode}")
    before = stored()
    print(f"killed after {time.perf_counter() - start:.0f} s: {len(before)} of {total} tiles")
    second = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    measured = json.loads(second.stdout.splitlines()[-1])
    unchanged = before.items() <= stored().items()
    print(f"resumed for {measured['seconds']:.0f} s: {len(stored())} of {total} tiles, the first "
          f"{'unchanged' if unchanged else 'computed again'}")  # fmt: skip
    print(f"peak memory {measured['peak_bytes'] / 1e9:.2f} GB above "
          f"{measured['bare_bytes'] / 1e9:.2f} GB; "
          f"trace of the kernel {measured['trace']:.6g}")  # fmt: skip


if __name__ == "__main__":
    cli.run(main)
