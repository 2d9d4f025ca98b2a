r"""Measures the test loss of candidates after fine-tuning on each of several subset sizes.

    python -m experiments.finetune_grid --candidates=zoo --task=sotu \
        --sizes=0,200,400,800,1600,3200,6400 --output_dir=out/grid-sotu

--output_dir receives losses.csv in the public table format (which rank_curves and
lensllm_jax.read_loss_table read) and ledger.csv: for every fine-tune its seed, learning rate and
batch size, steps and the best of them, tokens, seconds, FLOPs, and a digest of the examples in the
order that the optimiser saw; run.json says how many records of the task were left out and why.
Subsets are nested prefixes of one order.  The same command goes on where a killed run was cut off,
also inside a fine-tune or a search; one that was finished is not made again.  A fine-tune that
fails (a loss that is not finite, a damaged checkpoint, a full disk) leaves its cell empty and its
reason in failures.csv; the rest goes on, and the exit code is 1.

--seeds=0,1,2 measures every cell once a seed: losses.csv then holds the means (the public format
has no place for a seed), losses-seed-N.csv each seed.  --learning_rates=3e-5,1e-4,3e-4,1e-3 and
--batch_sizes=64,128,256 are searched for each cell, on its validation loss; the ledger holds what
was chosen, and what the search took.  --mean_length=18 keeps inputs of that average length
(Appendix C.2 of the paper: 18, 20, 22 tokens).

--executor=local measures cells in --processes pinned processes of this machine, ray on a cluster
that is there already.  XLA splits its sums by threads: losses are equal bit for bit between
executors whose cells have equally many cores, and differ by about 1e-7 otherwise, so that a folder
belongs to one number of threads.

On seven bundled candidates (GPT-2 and OPT) and 2 cores: 28 minutes for sizes 0 and 6400 of pydoc
(measured beside other work); expect about twice that for all of these sizes.
"""

import dataclasses
import sys
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from absl import flags

from experiments.common import cli, executors, measuring, terminal
from experiments.common.measurement_flags import measurement_flags
from experiments.common.progress import Progress, remaining
from experiments.common.run_folder import RunFolder
from lensllm_jax import checks
from lensllm_jax.data.task import Task
from lensllm_jax.measurement import jobs as cells
from lensllm_jax.measurement.jobs import Done, Job, Search
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.selection.flops import training_flops
from lensllm_jax.selection.loss_table import write_loss_table

FLAGS = measurement_flags()
SIZES = flags.DEFINE_string(
    "sizes", "0,200,400,800,1600,3200,6400", "Subset sizes, comma-separated; 0 is zero-shot."
)
SEEDS = flags.DEFINE_string("seeds", "", "One or more in place of --seed, comma-separated.")
LEARNING_RATES = flags.DEFINE_string(
    "learning_rates", "", "In place of --learning_rate; of several each cell chooses one."
)
BATCH_SIZES = flags.DEFINE_string(
    "batch_sizes", "", "In place of --batch_size; of several each cell chooses one."
)
flags.adopt_module_key_flags(executors)  # --help shows theirs too
Number = TypeVar("Number", int, float)
Losses = Mapping[int, Mapping[str, Mapping[int, float]]]  # seed -> candidate -> size -> loss


class Grid(NamedTuple):
    """What is to be measured."""

    names: tuple[str, ...]  # of the candidates
    sizes: tuple[int, ...]  # training examples, ascending
    seeds: tuple[int, ...]
    search: Search
    config: MeasurementConfig  # with the first seed, and the first of what is searched
    task: Task

    @property
    def settings(self) -> dict:
        """All that decides the results, as JSON values."""
        recorded = measuring.task_settings(self.names, self.task, self.config)
        recorded["sizes"] = list(self.sizes)
        if len(self.seeds) > 1:
            recorded["seed"] = list(self.seeds)
        if self.search.num_trials:
            recorded["learning_rate"] = list(self.search.rates)
            recorded["batch_size"] = list(self.search.batch_sizes)
        return {**recorded, **executors.settings()}

    def jobs(self, folder: RunFolder) -> list[Job]:
        """Every cell; that before fine-tuning is the same for all seeds."""
        return [
            Job(
                name, size, dataclasses.replace(self.config, seed=seed), self.search,
                folder.path / self.path(name, size, seed), FLAGS.checkpoint_seconds,
            )
            for name in self.names
            for seed in self.seeds
            for size in self.sizes
            if size > 0 or seed == self.seeds[0]
        ]  # fmt: skip

    def path(self, name: str, size: int, seed: int) -> str:
        """Of a cell, in the run folder."""
        among_seeds = seed if len(self.seeds) > 1 else None
        return measuring.cell_path(name, size, among_seeds=among_seeds)


def main(argv: Sequence[str]) -> int:
    """Measures the grid; the exit code says whether all of it."""
    del argv
    start = time.monotonic()
    grid = grid_of_flags()
    executors.check_flags()
    num_params, families = measuring.check_pool(grid.names, grid.config)
    notes = measuring.task_notes(grid.task)
    folder = RunFolder.open(FLAGS.output_dir, grid.settings, **notes)
    failures = measure(grid, folder, num_params)
    for failure in failures:  # said before anything is written: the disk may be full
        print("failed: {candidate}, {size} examples, seed {seed}: {reason}".format(**failure),
              file=sys.stderr)  # fmt: skip
    folder.write_rows("failures.csv", failures)
    losses = losses_of(grid, folder)
    if any(row for rows in losses.values() for row in rows.values()):
        write_tables(grid, folder, losses, num_params, families)
        rows = ledger_rows(grid, folder, num_params)
        folder.write_rows("ledger.csv", rows)
        if not FLAGS.quiet:
            show(grid, losses, rows)
    if not FLAGS.quiet:
        failed = f", {len(failures)} failed" if failures else ""
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}{failed}")
    return 1 if failures else 0


def grid_of_flags() -> Grid:
    """The grid that the flags describe.

    Returns:
        The grid.

    Raises:
        UserError: naming the flag that no grid can have.
    """
    names, config = FLAGS.candidates(), FLAGS.config()
    seeds = distinct("seeds", cli.whole_numbers("seeds", SEEDS.value)) or (config.seed,)
    batch_sizes = distinct("batch_sizes", cli.whole_numbers("batch_sizes", BATCH_SIZES.value))
    search = Search(
        distinct("learning_rates", cli.numbers("learning_rates", LEARNING_RATES.value))
        or (config.learning_rate,),
        batch_sizes or (config.batch_size,),
    )
    for rate in search.rates:
        checks.positive("learning_rates", rate)
    for batch_size in search.batch_sizes:  # each must suit the micro-batches
        dataclasses.replace(config, batch_size=checks.positive("batch_sizes", batch_size))
    first = dataclasses.replace(
        config, seed=seeds[0], learning_rate=search.rates[0], batch_size=search.batch_sizes[0]
    )
    task = FLAGS.load_task(names)
    return Grid(names, sizes_of(SIZES.value, task), seeds, search, first, task)


def distinct(name: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """The values, if none is there twice."""
    if len(set(values)) < len(values):
        raise checks.UserError(f"`{name}` must be distinct, got {values}")
    return values


def sizes_of(text: str, task: Task) -> tuple[int, ...]:
    """The sizes that a flag names, ascending; refuses those that the task does not hold."""
    sizes = tuple(sorted(set(cli.whole_numbers("sizes", text))))
    if not sizes:
        raise checks.UserError(f"`sizes` must be one or more whole numbers, got {text!r}")
    if sizes[-1] > len(task.train):
        raise checks.UserError(
            f"`sizes` must be at most {len(task.train)} (the training examples of {task.name}), "
            f"got {sizes[-1]}"
        )
    return sizes


def measure(grid: Grid, folder: RunFolder, num_params: Mapping[str, int]) -> list[dict]:
    """Fills the folder with the cells that it lacks.

    Args:
        grid: what is to be measured.
        folder: of the run.
        num_params: of each candidate.

    Returns:
        What failed, and why.
    """
    jobs, failures = grid.jobs(folder), []
    work = {job.path: job.work(num_params[job.name]) for job in jobs}
    with Progress(total=sum(work.values()), quiet=FLAGS.quiet) as progress:
        missing = [job for job in jobs if not measuring.is_kept(job, progress, work[job.path])]

        def on_progress(job, now):
            measuring.tells(progress, work[job.path])(now)

        for done in executors.run(missing, grid.task, folder, on_progress=on_progress):
            reason = kept(done, folder, progress, work[done.job.path])
            if reason:
                failures.append({"candidate": done.job.name, "size": done.job.size,
                                 "seed": done.job.config.seed, "reason": reason})  # fmt: skip
    return failures


def kept(done: Done, folder: RunFolder, progress: Progress, work: float) -> str:
    """Writes what was measured; returns why there is none."""
    reason = done.reason
    if done.cell is not None:
        try:
            measuring.keep(done.job, done.cell, folder, progress, work)
            return ""
        except OSError as error:  # a full disk
            reason = cells.one_line(error)
    progress.drop(work)
    return reason


def losses_of(grid: Grid, folder: RunFolder) -> Losses:
    """The losses that the folder holds."""
    return {
        seed: {
            name: {
                size: folder.read_json(path)["test_loss"]
                for size in grid.sizes
                if folder.has(path := grid.path(name, size, seed))
            }
            for name in grid.names
        }
        for seed in grid.seeds
    }


def means(grid: Grid, losses: Losses) -> dict[str, dict[int, float]]:
    """Over the seeds, where none is missing."""
    return {
        name: {
            size: float(np.mean([losses[seed][name][size] for seed in grid.seeds]))
            for size in grid.sizes
            if all(size in losses[seed][name] for seed in grid.seeds)
        }
        for name in grid.names
    }


def write_tables(
    grid: Grid, folder: RunFolder, losses: Losses, num_params: Mapping[str, int],
    families: Mapping[str, str],
) -> None:  # fmt: skip
    """losses.csv, and a table a seed where there are several."""
    tables: dict[str, Mapping[str, Mapping[int, float]]] = {"losses.csv": means(grid, losses)}
    if len(grid.seeds) > 1:
        tables |= {f"losses-seed-{seed}.csv": losses[seed] for seed in grid.seeds}
    for name, rows in tables.items():
        if any(rows.values()):
            table = measuring.loss_table(grid.names, rows, num_params, families, grid.task)
            write_loss_table(table, folder.path / name)


def ledger_rows(grid: Grid, folder: RunFolder, num_params: Mapping[str, int]) -> list[dict]:
    """One row a fine-tune: what it gave and what it took."""
    return [
        ledger_row(job, folder.read_json(grid.path(job.name, job.size, job.config.seed)),
                   num_params[job.name])
        for job in grid.jobs(folder)
        if job.size > 0 and job.path is not None and job.path.exists()
    ]  # fmt: skip


def ledger_row(job: Job, cell: Mapping, num_params: int) -> dict:
    """Of one fine-tune; a folder of an earlier version lacks some."""
    search_tokens = cell.get("search", {}).get("num_tokens", 0)
    return {
        "candidate": job.name,
        "size": job.size,
        "seed": job.config.seed,
        "learning_rate": cell.get("learning_rate", job.config.learning_rate),
        "batch_size": cell.get("batch_size", job.config.batch_size),
        **{name: cell[name] for name in ("test_loss", "validation_loss", "best_step", "num_steps",
                                         "stopped_early", "num_tokens", "seconds")},
        "tokens_per_second": cell.get("tokens_per_second"),
        "flops": int(training_flops(float(num_params), float(cell["num_tokens"]))),
        "search_tokens": search_tokens,
        "search_flops": int(training_flops(float(num_params), float(search_tokens))),
        "data_order_sha256": cell.get("data_order_sha256"),
    }  # fmt: skip


def show(grid: Grid, losses: Losses, ledger: Sequence[Mapping]) -> None:
    """The losses on the terminal, and what each candidate took."""
    title = f"{grid.task.name}: test loss (nats per token) by training examples"
    if len(grid.seeds) > 1:
        title += f", mean ± half the range of {len(grid.seeds)} seeds"
    table = terminal.table()
    for column in ("candidate", *map(str, grid.sizes), "tokens", "tokens/s", "time"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name in grid.names:
        found = [[losses[s][name][size] for s in grid.seeds if size in losses[s][name]]
                 for size in grid.sizes]  # fmt: skip
        spent = [row for row in ledger if row["candidate"] == name]
        tokens, seconds = (sum(row[key] for row in spent) for key in ("num_tokens", "seconds"))
        speeds = [row["tokens_per_second"] for row in spent if row["tokens_per_second"]]
        table.add_row(
            name, *(entry(values) for values in found), f"{tokens:,}",
            f"{np.median(speeds):,.0f}" if speeds else "-", remaining(seconds),
        )  # fmt: skip
    terminal.show(title, table)


def entry(values: Sequence[float]) -> str:
    """A loss, or the mean of several and half their range."""
    if not values:
        return "-"
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.4f}" + (f" ± {half:.4f}" if half else "")


if __name__ == "__main__":
    cli.run(main)
