r"""Measures the test loss of candidates after fine-tuning on each of several subset sizes.

    python -m experiments.finetune_grid --candidates=zoo --task=sotu \
        --sizes=0,200,400,800,1600,3200,6400 --output_dir=out/grid-sotu

--output_dir receives losses.csv (nats per byte of target text) in the public table format, which
rank_curves and lensllm_jax.read_loss_table read, and ledger.csv, a row per measured loss: test_loss
and loss_se, its standard error over the test records; difference_se, that of its difference from
the lowest loss at this size and seed over the same records; end_loss, nats per record of the end
token, which no other loss holds; and of a fine-tune its seed, learning rate and batch size, its
steps and the best of them, tokens, seconds, FLOPs, and a digest of the examples in the order of
training.  run.json holds how many records of the task were left out and why.  Subsets
are nested prefixes of one order.  The same command resumes a killed run, also inside a fine-tune
or a search, and makes none of them twice; with more --candidates or --sizes it measures what is
new.  A fine-tune that fails (a loss that is not finite, a
damaged checkpoint, a full disk) leaves its cell empty and its reason in failures.csv; the rest is
measured, and the exit code is 1.

--seeds=0,1,2 measures every cell once per seed: losses.csv then holds the means (the public format
has no place for a seed), losses-seed-N.csv each seed.  --learning_rates=3e-5,1e-4,3e-4,1e-3 and
--batch_sizes=64,128,256 are searched for each cell, on its validation loss; the ledger holds the
choice and the cost of the search.  --mean_length=18 keeps inputs of that average length
(Appendix C.2 of the paper: 18, 20, 22 tokens).

--executor=local measures cells in --processes pinned processes of this machine, ray on an existing
cluster.  XLA splits its sums by threads: losses are equal bit for bit between executors whose cells
have equally many cores, and differ by about 1e-7 otherwise, so that a folder belongs to one number
of threads.

On seven bundled candidates (GPT-2 and OPT) and 2 cores: 28 minutes for sizes 0 and 6400 of pydoc
(measured next to other work); expect about twice that for all of these sizes.
"""

import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.flags import define_executor, define_save_adapter, define_save_winner
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax.language_modelling import BITS_PER_NAT, LOSS_UNIT
from lensllm_jax.runs import terminal
from lensllm_jax.runs.executors import KINDS
from lensllm_jax.runs.finetune_grid import GridSettings, finetune_grid
from lensllm_jax.runs.progress import remaining
from lensllm_jax.runs.results import FinetuneGrid

FLAGS = measurement_flags()
SIZES = flags.DEFINE_string(
    "sizes",
    ",".join(map(str, GridSettings.sizes)),
    "Examples of the subsets, comma-separated; 0: before fine-tuning.",
)
SEEDS = flags.DEFINE_string(
    "seeds", "", "Seeds in place of --seed, comma-separated: every cell is measured with each."
)
LEARNING_RATES = flags.DEFINE_string(
    "learning_rates",
    "",
    "Rates in place of --learning_rate, comma-separated: each cell chooses by validation loss.",
)
BATCH_SIZES = flags.DEFINE_string(
    "batch_sizes",
    "",
    "Sizes in place of --batch_size, comma-separated: each cell chooses by validation loss.",
)
EXECUTOR = define_executor(KINDS)
SAVE_WINNER = define_save_winner()
SAVE_ADAPTER = define_save_adapter()


def main(argv: Sequence[str]) -> int:
    """Measures the grid; the exit code says whether all of it."""
    del argv
    start, given = time.monotonic(), FLAGS.values()
    result = finetune_grid(
        **given, sizes=cli.whole_numbers("sizes", SIZES.value),
        seeds=cli.whole_numbers("seeds", SEEDS.value),
        learning_rates=cli.numbers("learning_rates", LEARNING_RATES.value),
        batch_sizes=cli.whole_numbers("batch_sizes", BATCH_SIZES.value),
        **EXECUTOR.values(), save_winner=SAVE_WINNER.value, save_adapter=SAVE_ADAPTER.value,
    )  # fmt: skip
    if not given["quiet"]:
        if result.ledger:
            _show(result)
        failed = f", {len(result.failures)} failed" if result.failures else ""
        print(f"\n{result.folder}: done in {remaining(time.monotonic() - start)}{failed}")
    return 1 if result.failures else 0


def _show(grid: FinetuneGrid) -> None:
    """The losses on the terminal, and what each candidate took."""
    bits = f"1 nat = {BITS_PER_NAT:.3f} bits"
    title = f"{grid.task}: test loss ({LOSS_UNIT}; {bits}) by training examples"
    if len(grid.by_seed) > 1:
        title += f", mean ± half the range of {len(grid.by_seed)} seeds"
    table = terminal.table()
    for column in ("candidate", *map(str, grid.sizes), "tokens", "tokens/s", "time"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name in grid.names:
        by_size = [[rows[name][size] for rows in grid.by_seed.values() if size in rows[name]]
                 for size in grid.sizes]  # fmt: skip
        spent = [row for row in grid.ledger if row["candidate"] == name]
        tokens, seconds = (sum(row[key] for row in spent) for key in ("num_tokens", "seconds"))
        speeds = [row["tokens_per_second"] for row in spent if row["tokens_per_second"]]
        table.add_row(
            name, *(_entry(values) for values in by_size), f"{tokens:,}",
            f"{np.median(speeds):,.0f}" if speeds else "-", remaining(seconds),
        )  # fmt: skip
    terminal.show(title, table)


def _entry(values: Sequence[float]) -> str:
    """A loss, or the mean of several and half their range."""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.4f}" + (f" ± {half:.4f}" if half else "")


if __name__ == "__main__":
    cli.run(main)
