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
or a search, and makes none of them twice.  A fine-tune that fails (a loss that is not finite, a
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

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TypeVar

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.search import SearchGrid
from lensllm_jax.language_modelling import BITS_PER_NAT, LOSS_UNIT
from lensllm_jax.measurement.jobs import Cell, Job, JobResult, one_line
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool, loss_table
from lensllm_jax.runs import executors, terminal
from lensllm_jax.runs.executors import ExecutorConfig
from lensllm_jax.runs.progress import Progress, remaining
from lensllm_jax.runs.resume import (
    Cells,
    cell_path,
    has_cell,
    task_settings,
    test_covariance,
)
from lensllm_jax.runs.run_folder import RunFolder
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
EXECUTOR = flags.DEFINE_enum(
    "executor", "serial", executors.KINDS,
    "Where cells are measured: in this process, in processes of this machine, on a Ray cluster.",
)  # fmt: skip
PROCESSES = flags.DEFINE_integer("processes", 1, "Of --executor=local; they share the cores.")
RAY_ADDRESS = flags.DEFINE_string("ray_address", "127.0.0.1:6379", "host:port of the Ray head.")
RAY_THREADS = flags.DEFINE_integer("ray_threads", 1, "Cores of a cell under --executor=ray.")

Number = TypeVar("Number", int, float)
Losses = Mapping[int, Mapping[str, Mapping[int, float]]]  # seed -> candidate -> size -> loss


class Grid(NamedTuple):
    """What is to be measured."""

    pool: dict[str, CandidateSummary]
    sizes: tuple[int, ...]  # training examples, ascending
    seeds: tuple[int, ...]
    search: SearchGrid  # one rate and one batch size where there is nothing to choose from
    config: MeasurementConfig  # with the first seed, rate and batch size
    task: Task

    def settings(self, executor: ExecutorConfig) -> dict[str, Any]:
        """All that decides the results, as JSON values."""
        return {
            **task_settings(self.pool, self.task, self.config),
            "sizes": list(self.sizes),
            "seed": list(self.seeds),
            "learning_rate": list(self.search.rates),
            "batch_size": list(self.search.batch_sizes),
            "threads": executor.threads,
        }

    def jobs(self, folder: RunFolder) -> list[Job]:
        """Every cell; that before fine-tuning is the same for all seeds."""
        searched = len(self.search.rates) * len(self.search.batch_sizes) > 1
        return [
            Job(
                name, summary.num_params, size, dataclasses.replace(self.config, seed=seed),
                self.search if searched else None,
                folder.path / self.path(name, size, seed), FLAGS.checkpoint_seconds,
            )
            for name, summary in self.pool.items()
            for seed in self.seeds
            for size in self.sizes
            if size > 0 or seed == self.seeds[0]
        ]  # fmt: skip

    def path(self, name: str, size: int, seed: int) -> str:
        """Of a cell, in the run folder."""
        return cell_path(name, size, among_seeds=seed if len(self.seeds) > 1 else None)


def main(argv: Sequence[str]) -> int:
    """Measures the grid; the exit code says whether all of it."""
    del argv
    start = time.monotonic()
    executor = executor_of_flags()
    grid = grid_of_flags()
    folder = FLAGS.open_folder(grid.settings(executor), grid.task, grid.pool)
    failures = _measure(grid, folder, executor)
    for failure in failures:  # before anything is written: the disk may be full
        line = "failed: {candidate}, {size} examples, seed {seed}: {reason}"
        terminal.warn(line.format(**failure))
    folder.write_rows("failures.csv", failures)
    losses = _losses_of(grid, folder)
    if any(row for rows in losses.values() for row in rows.values()):
        _write_tables(grid, folder, losses)
        rows = _ledger_rows(grid, folder)
        folder.write_rows("ledger.csv", rows)
        if not FLAGS.quiet:
            _show(grid, losses, rows)
    if not FLAGS.quiet:
        failed = f", {len(failures)} failed" if failures else ""
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}{failed}")
    return 1 if failures else 0


def executor_of_flags() -> ExecutorConfig:
    """Where cells are measured.

    Raises:
        UserError: naming the flag at fault.
    """
    executor = ExecutorConfig(EXECUTOR.value, PROCESSES.value, RAY_ADDRESS.value, RAY_THREADS.value)
    executor.check()
    return executor


def grid_of_flags() -> Grid:
    """The grid that the flags describe.

    Raises:
        UserError: naming the flag at fault.
    """
    names, config = FLAGS.candidates(), FLAGS.config()
    seeds = _distinct("seeds", cli.whole_numbers("seeds", SEEDS.value))
    rates = _distinct("learning_rates", cli.numbers("learning_rates", LEARNING_RATES.value))
    batch_sizes = _distinct("batch_sizes", cli.whole_numbers("batch_sizes", BATCH_SIZES.value))
    for rate in rates:
        checks.positive("learning_rates", rate)
    for batch_size in batch_sizes:  # each must suit the micro-batches
        dataclasses.replace(config, batch_size=checks.positive("batch_sizes", batch_size))
    seeds = seeds or (config.seed,)
    search = SearchGrid(rates or (config.learning_rate,), batch_sizes or (config.batch_size,))
    first = dataclasses.replace(
        config, seed=seeds[0], learning_rate=search.rates[0], batch_size=search.batch_sizes[0]
    )
    pool = describe_pool(names)
    task = FLAGS.load_task(pool)
    return Grid(pool, sizes_of(SIZES.value, task), seeds, search, first, task)


def _distinct(name: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """The values, refused if one is there twice."""
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


def _measure(grid: Grid, folder: RunFolder, executor: ExecutorConfig) -> list[dict[str, Any]]:
    """Fills the folder with the cells that it lacks.

    Returns:
        What failed, and why.
    """
    jobs, failures = grid.jobs(folder), []
    with Progress(total=sum(job.work for job in jobs), quiet=FLAGS.quiet) as progress:
        cells = Cells(folder, progress)
        unfinished = cells.unfinished(jobs)
        for result in executors.run(
            executor, unfinished, grid.task, folder, on_progress=cells.show
        ):
            if reason := _failure_of(result, cells):
                job = result.job
                failures.append({"candidate": job.name, "size": job.size,
                                 "seed": job.config.seed, "reason": reason})  # fmt: skip
                progress.drop(job.work)
    return failures


def _failure_of(result: JobResult, cells: Cells) -> str:
    """Writes the cell of a job; returns why there is none, or nothing."""
    if result.cell is None:
        return result.reason
    try:
        cells.keep(result.job, result.cell)
    except OSError as error:  # a full disk
        return one_line(error)
    return ""


def _losses_of(grid: Grid, folder: RunFolder) -> Losses:
    """The losses that the folder holds."""
    return {
        seed: {
            name: {
                size: folder.read_piece(path)["test_loss"]
                for size in grid.sizes
                if has_cell(folder, path := grid.path(name, size, seed))
            }
            for name in grid.pool
        }
        for seed in grid.seeds
    }


def _means(grid: Grid, losses: Losses) -> dict[str, dict[int, float]]:
    """Over the seeds, where none is missing."""
    return {
        name: {
            size: float(np.mean([losses[seed][name][size] for seed in grid.seeds]))
            for size in grid.sizes
            if all(size in losses[seed][name] for seed in grid.seeds)
        }
        for name in grid.pool
    }


def _write_tables(grid: Grid, folder: RunFolder, losses: Losses) -> None:
    """losses.csv, and one table per seed where there are several."""
    tables: dict[str, Mapping[str, Mapping[int, float]]] = {"losses.csv": _means(grid, losses)}
    if len(grid.seeds) > 1:
        tables |= {f"losses-seed-{seed}.csv": losses[seed] for seed in grid.seeds}
    for name, rows in tables.items():
        if any(rows.values()):
            write_loss_table(loss_table(grid.pool, rows, grid.task), folder.path / name)


def _ledger_rows(grid: Grid, folder: RunFolder) -> list[dict[str, Any]]:
    """One row per measured loss: its errors and its cost."""
    errors = _difference_errors(grid, folder)
    return [
        _ledger_row(job, folder.read_piece(path), errors[path])
        for job in grid.jobs(folder)
        if (path := grid.path(job.name, job.size, job.config.seed)) in errors
    ]


def _difference_errors(grid: Grid, folder: RunFolder) -> dict[str, float | None]:
    """Of each finished cell: of its difference from the best at its size and seed."""
    errors: dict[str, float | None] = {}
    for seed, size in itertools.product(grid.seeds, grid.sizes):
        paths = [p for name in grid.pool if has_cell(folder, p := grid.path(name, size, seed))]
        if paths:
            covariance = test_covariance(folder, paths)
            best = int(np.argmin([folder.read_piece(path)["test_loss"] for path in paths]))
            variances = np.diag(covariance) + covariance[best, best] - 2 * covariance[best]
            errors |= zip(paths, _finite_roots(variances), strict=True)
    return errors


def _finite_roots(variances: np.ndarray) -> list[float | None]:
    """Standard errors; rounding leaves tiny variances below zero, one record has none."""
    roots = np.sqrt(np.maximum(variances, 0.0))
    return [float(root) if np.isfinite(root) else None for root in roots]


def _ledger_row(job: Job, cell: Cell, difference_se: float | None) -> dict[str, Any]:
    """The row of one measured loss; before fine-tuning nothing was spent."""
    num_params, num_tokens = float(job.num_params), cell.get("num_tokens", 0)
    search_tokens = cell.get("search", {}).get("num_tokens", 0)

    def columns(*names: str) -> dict[str, Any]:
        return {name: cell.get(name) for name in names}

    return {
        "candidate": job.name,
        "size": job.size,
        "seed": job.config.seed,
        **columns("learning_rate", "batch_size", "test_loss", "loss_se"),
        "difference_se": difference_se,
        **columns("end_loss", "validation_loss", "best_step", "num_steps", "stopped_early"),
        "num_tokens": num_tokens,
        "seconds": cell.get("seconds", 0.0),
        **columns("tokens_per_second"),
        "flops": int(training_flops(num_params, float(num_tokens))),
        "search_tokens": search_tokens,
        "search_flops": int(training_flops(num_params, float(search_tokens))),
        **columns("data_order_sha256"),
    }


def _show(grid: Grid, losses: Losses, ledger: Sequence[Mapping]) -> None:
    """The losses on the terminal, and what each candidate took."""
    bits = f"1 nat = {BITS_PER_NAT:.3f} bits"
    title = f"{grid.task.name}: test loss ({LOSS_UNIT}; {bits}) by training examples"
    if len(grid.seeds) > 1:
        title += f", mean ± half the range of {len(grid.seeds)} seeds"
    table = terminal.table()
    for column in ("candidate", *map(str, grid.sizes), "tokens", "tokens/s", "time"):
        table.add_column(column, justify="left" if column == "candidate" else "right")
    for name in grid.pool:
        by_size = [[losses[s][name][size] for s in grid.seeds if size in losses[s][name]]
                 for size in grid.sizes]  # fmt: skip
        spent = [row for row in ledger if row["candidate"] == name]
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
