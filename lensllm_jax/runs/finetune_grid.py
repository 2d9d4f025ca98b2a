"""Grid: the test loss of each candidate after fine-tuning on each of several subset sizes.

``python -m experiments.finetune_grid --help`` says what ``output_dir`` receives.
"""

import dataclasses
import itertools
import types
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import ParameterCounts, parameter_counts
from lensllm_jax.finetune.rates import AUTO
from lensllm_jax.finetune.search import SearchGrid
from lensllm_jax.measurement.jobs import Cell, Job, JobResult, Measurer, one_line
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool, loss_table
from lensllm_jax.measurement.rates import expected_examples
from lensllm_jax.measurement.winner import Winner, forget
from lensllm_jax.runs import executors, terminal
from lensllm_jax.runs.executors import ExecutorConfig, ExecutorSettings
from lensllm_jax.runs.results import FinetuneGrid, Losses
from lensllm_jax.runs.resume import (
    Cells,
    cell_path,
    has_cell,
    save_weights,
    task_settings,
    test_covariance,
)
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.runs.settings import RunSettings, WinnerSettings, read_settings
from lensllm_jax.selection.flops import training_flops
from lensllm_jax.selection.loss_table import LossTable, write_loss_table

# settings that may gain entries in a folder: each cell is of one candidate and one size
_GROWING = ("candidates", "candidates_sha256", "sizes")

Number = TypeVar("Number", int, float)


@dataclasses.dataclass(frozen=True)
class GridSettings(WinnerSettings, ExecutorSettings):
    """What a grid takes beside the settings of every run."""

    sizes: tuple[int, ...] = (
        0,
        200,
        400,
        800,
        1600,
        3200,
        6400,
    )  # examples; 0: zero-shot
    seeds: tuple[int, ...] = ()  # in place of ``seed``
    learning_rates: tuple[float, ...] = ()  # in place of ``learning_rate``; each cell chooses
    batch_sizes: tuple[int, ...] = ()  # in place of ``batch_size``; each cell chooses

    def __post_init__(self):
        super().__post_init__()
        for name in ("seeds", "learning_rates", "batch_sizes"):
            _distinct(name, getattr(self, name))
        if len(self.learning_rates) == 1:
            raise checks.UserError(
                f"`learning_rates` must be several to choose from, got {self.learning_rates}: give "
                "one as `learning_rate`"
            )
        for name in ("learning_rates", "batch_sizes"):
            for value in getattr(self, name):
                checks.positive(name, value)

    def grid(self, run: RunSettings) -> "Grid":
        """What these settings mean for a pool on a task.

        Raises:
            UserError: naming the setting at fault.
        """
        config = run.measurement
        for batch_size in self.batch_sizes:  # each must suit the micro-batches
            dataclasses.replace(config, batch_size=batch_size)
        seeds, rates = (*self.seeds,) or (config.seed,), (*self.learning_rates,)
        if not rates:  # of several batch sizes each cell searches with all rates
            several = len(self.batch_sizes) > 1 and config.learning_rate == AUTO
            rates = config.rates if several else (cast(float, config.learning_rate),)
        search = SearchGrid(rates, (*self.batch_sizes,) or (config.batch_size,))
        first = dataclasses.replace(
            config, seed=seeds[0], learning_rate=search.rates[0], batch_size=search.batch_sizes[0]
        )
        pool = describe_pool(run.names)
        task = run.load_task(pool)
        sizes = _sizes_within(self.sizes, task)
        return Grid(pool, sizes, seeds, search, first, task, run.checkpoint_seconds)


def finetune_grid(
    candidates: str | Sequence[str],
    task: str | Path | Task = "pydoc",
    *,
    output_dir: str | Path,
    on_progress: Callable[[float, str], object] | None = None,
    **settings: Any,
) -> FinetuneGrid:
    """Measures candidates after fine-tuning on nested subsets of several sizes.

    Args:
        candidates: as ``load_candidate`` takes them; "zoo": all bundled.
        task: as ``load_task`` takes it, or one that is loaded.
        output_dir: folder of the run; the same call resumes a run that was stopped, one with more
            candidates or sizes measures what is new.
        on_progress: called with the share of the work that is done and a message, in place of the
            bar.
        **settings: those of ``python -m experiments.finetune_grid --help``, as Python values:
            ``sizes=(0, 200, 400)``, ``seeds=(0, 1)``, ``learning_rate=1e-4``.

    Returns:
        The losses, what each took, and what failed; a notebook shows them as a table.

    Raises:
        UserError: naming the setting at fault, before anything is measured.

    Example:
        >>> grid = finetune_grid("zoo/gpt2-xs", sizes=(0, 200), output_dir="out")  # doctest: +SKIP
        >>> grid.losses.column(200)  # doctest: +SKIP
    """
    given: dict[str, Any] = {"candidates": candidates, "task": task, "output_dir": output_dir}
    given |= {"on_progress": on_progress, **settings}
    run, wanted = read_settings(GridSettings, given, call="lensllm_jax.finetune_grid")
    executor, grid = wanted.executor_config(), wanted.grid(run)
    decided = grid.settings(executor)
    winner = wanted.winner(decided, grid.pool, run)
    grid = grid._replace(keep=winner.keep if winner else None)
    folder = run.open_folder(decided, grid.task, grid.pool, growing=_GROWING)
    if any(grid.sizes):  # at 0 alone no step is made
        configs = run.fitted(
            grid.task, grid.pool, folder, batch_sizes=grid.search.batch_sizes,
            at_a_time=executor.at_a_time,
        )  # fmt: skip
        grid = grid._replace(configs=configs)
    failures = _measure(grid, folder, executor, run)
    for failure in failures:  # before anything is written: the disk may be full
        line = "failed: {candidate}, {size} examples, seed {seed}: {reason}"
        terminal.warn(line.format(**failure))
    folder.write_rows("failures.csv", failures)
    by_seed = _losses_of(grid, folder)
    if winner is not None:
        _save_best(grid, folder, by_seed, winner)
    tables, ledger = _tables(grid, by_seed), []
    for name, table in tables.items():
        write_loss_table(table, folder.path / name)
    if tables:
        ledger = _ledger_rows(grid, folder)
        folder.write_rows("ledger.csv", ledger)
    return FinetuneGrid(
        grid.task.name, (*grid.pool,), grid.sizes, by_seed, tables.get("losses.csv"),
        tuple(ledger), tuple(failures), folder.path,
    )  # fmt: skip


class Grid(NamedTuple):
    """What is to be measured."""

    pool: dict[str, CandidateSummary]
    sizes: tuple[int, ...]  # training examples, ascending
    seeds: tuple[int, ...]
    search: SearchGrid  # one rate and one batch size where there is nothing to choose from
    config: MeasurementConfig  # with the first seed, rate and batch size
    task: Task
    checkpoint_seconds: float
    configs: Mapping[str, MeasurementConfig] = types.MappingProxyType({})  # in passes that fit
    keep: str | None = None  # how the weights of the largest size and first seed are kept

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
        first = next((size for size in self.sizes if size > 0), 0)
        return [
            Job(
                name, summary.num_params, size, self.config_of(name, seed),
                self.search if searched else None,
                folder.path / self.path(name, size, seed), self.checkpoint_seconds,
                keep=self.keep if size == self.sizes[-1] > 0 and seed == self.seeds[0] else None,
                searched=expected_examples(self.config, self.task) if size == first > 0 else 0,
            )
            for name, summary in self.pool.items()
            for seed in self.seeds
            for size in self.sizes
            if size > 0 or seed == self.seeds[0]
        ]  # fmt: skip

    def config_of(self, name: str, seed: int) -> MeasurementConfig:
        """The settings of a candidate's cells."""
        return dataclasses.replace(self.configs.get(name, self.config), seed=seed)

    def path(self, name: str, size: int, seed: int) -> str:
        """Of a cell, in the run folder."""
        return cell_path(name, size, among_seeds=seed if len(self.seeds) > 1 else None)


def _distinct(name: str, values: tuple[Number, ...]) -> tuple[Number, ...]:
    """The values, refused if one is there twice."""
    if len(set(values)) < len(values):
        raise checks.UserError(f"`{name}` must be distinct, got {values}")
    return values


def _sizes_within(sizes: Sequence[int], task: Task) -> tuple[int, ...]:
    """The sizes, ascending; refuses those that the task does not hold."""
    ascending = tuple(sorted(set(sizes)))
    if not ascending:
        raise checks.UserError("`sizes` must be one or more whole numbers, got none")
    checks.not_negative("sizes", ascending[0])
    if ascending[-1] > len(task.train):
        raise checks.UserError(
            f"`sizes` must be at most {len(task.train)} (the training examples of {task.name}), "
            f"got {ascending[-1]}"
        )
    return ascending


def _measure(
    grid: Grid, folder: RunFolder, executor: ExecutorConfig, run: RunSettings
) -> list[dict[str, Any]]:
    """Fills the folder with the cells that it lacks.

    Returns:
        What failed, and why.
    """
    jobs, failures = grid.jobs(folder), []
    with run.progress(total=sum(job.work for job in jobs)) as progress:
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


def _save_best(grid: Grid, folder: RunFolder, losses: Losses, winner: Winner) -> None:
    """Puts the best weights of the largest size in their folder; those of the others go."""
    by_name = {job.name: job for job in grid.jobs(folder) if job.keep}
    found = losses[grid.seeds[0]]
    measured = [name for name in by_name if grid.sizes[-1] in found[name]]
    if not measured:
        terminal.warn(f"{winner.folder}: no fine-tune on the most examples ended, none is saved")
        return
    best = min(measured, key=lambda name: found[name][grid.sizes[-1]])
    save_weights(winner, by_name[best], Measurer(grid.task))
    for job in grid.jobs(folder):  # a run of fewer sizes kept those of its own largest
        forget(job)


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


def _tables(grid: Grid, losses: Losses) -> dict[str, LossTable]:
    """losses.csv, and one table per seed where there are several, of what was measured."""
    tables: dict[str, Mapping[str, Mapping[int, float]]] = {"losses.csv": _means(grid, losses)}
    if len(grid.seeds) > 1:
        tables |= {f"losses-seed-{seed}.csv": losses[seed] for seed in grid.seeds}
    return {
        name: loss_table(grid.pool, rows, grid.task)
        for name, rows in tables.items()
        if any(rows.values())
    }


def _ledger_rows(grid: Grid, folder: RunFolder) -> list[dict[str, Any]]:
    """One row per measured loss: its errors and its cost."""
    errors = _difference_errors(grid, folder)
    counts = {
        name: parameter_counts(one.config, one.num_params, grid.config.compute)
        for name, one in grid.pool.items()
    }
    first_size = next((size for size in grid.sizes if size > 0), 0)
    return [
        _ledger_row(
            job, counts[job.name], folder.read_piece(path), errors[path], first_size=first_size
        )
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


def _ledger_row(
    job: Job,
    counts: ParameterCounts,
    cell: Cell,
    difference_se: float | None,
    *,
    first_size: int,
) -> dict[str, Any]:
    """The row of one measured loss; before fine-tuning nothing was spent."""
    num_tokens = cell.get("num_tokens", 0)
    search_tokens = cell.get("search", {}).get("num_tokens", 0)
    if job.size == first_size:  # once, of a search that all sizes share
        search_tokens += cell.get("rate_search", {}).get("num_tokens", 0)

    def flops(num_tokens: int) -> int:
        return int(training_flops(counts.trained, float(num_tokens), num_frozen=counts.frozen))

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
        "flops": flops(num_tokens),
        "search_tokens": search_tokens,
        "search_flops": flops(search_tokens),
        **columns("data_order_sha256"),
    }
