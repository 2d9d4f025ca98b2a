r"""Cell: one number of a grid, a candidate's test loss on one subset, and what it cost.

A cell depends on nothing but its job, so that any process may measure it, in any order.  Where
learning rates or batch sizes are searched, all of them train on the subset first, the lowest
validation loss chooses, and the cell is the fine-tune with that choice.

Example:
    >>> Search((1e-3,), (32, 64)).num_trials, Search((1e-3,), (32,)).num_trials
    (2, 0)
"""

import copyreg
import dataclasses
import json
import math
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.fine_tune import Progress as Step
from lensllm_jax.finetune.loop import Loop
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.finetune.search import SearchGrid, SearchProgress, search_rates
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig

# what ends one cell and not the run; the last is an accelerator without memory left
FAILURES = (FloatingPointError, OSError, checks.UserError, jax.errors.JaxRuntimeError)
# how the names of files end that lie beside a cell until it is finished: a fine-tune under way, a
# search under way, and what a search found
UNFINISHED, SEARCHING, SEARCHED = ".safetensors", ".search.safetensors", ".searched"


def _read_only(content: Mapping) -> types.MappingProxyType:
    return types.MappingProxyType(content)


# a task holds a read-only mapping, which pickle does not know how to send
copyreg.pickle(types.MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


class Search(NamedTuple):
    """The settings that each cell chooses from, by its validation loss."""

    rates: tuple[float, ...] = ()  # per step, after warm-up
    batch_sizes: tuple[int, ...] = ()  # examples

    @property
    def num_trials(self) -> int:
        """Fine-tunes of a search; none where there is nothing to choose from."""
        trials = len(self.rates) * len(self.batch_sizes)
        return trials if trials > 1 else 0


NO_SEARCH = Search()


def fine_tune_work(num_params: float, size: int, config: MeasurementConfig) -> float:
    """Cost of a fine-tune in parameters times examples, if patience never ends it."""
    return num_params * size * config.max_epochs


class Job(NamedTuple):
    """One cell that is to be measured."""

    name: str  # of the candidate
    size: int  # training examples; 0 is before fine-tuning
    config: MeasurementConfig  # the settings, with the cell's seed
    search: Search = NO_SEARCH  # settings that replace those of config
    path: Path | None = None  # of the cell; what is unfinished lies beside it
    every_seconds: float = 60.0  # between two checkpoints

    def checkpoint(self, suffix: str = UNFINISHED) -> Checkpoint | None:
        """What keeps an unfinished fine-tune, or an unfinished search.

        Args:
            suffix: how its name ends.

        Returns:
            The checkpoint, if anything is kept.
        """
        if self.path is None:
            return None
        return Checkpoint(self.path.with_suffix(suffix), every_seconds=self.every_seconds)

    def discard(self) -> None:
        """Removes what was kept of it while it was unfinished."""
        if self.path is not None:
            for suffix in (UNFINISHED, SEARCHING, SEARCHED):
                self.path.with_suffix(suffix).unlink(missing_ok=True)

    def work(self, num_params: float) -> float:
        """Cost in parameters times examples, if patience never ends a fine-tune.

        Args:
            num_params: of the candidate.

        Returns:
            The cost, with that of the search.
        """
        once = fine_tune_work(num_params, self.size, self.config)
        return once * (1 + self.search.num_trials)

    def __str__(self) -> str:
        seed = f", seed {self.config.seed}" if self.config.seed else ""
        return f"{self.name}: {self.size} examples{seed}"


class Done(NamedTuple):
    """What became of a job."""

    job: Job
    cell: dict[str, Any] | None  # None if it failed
    reason: str = ""  # of the failure, one line


class Told(NamedTuple):
    """Where a cell is."""

    share: float  # of its work
    doing: str  # for people


class Measurements:
    """Measurements of one candidate at a time; its steps are compiled once for all seeds.

    Attributes:
        task: the text.
    """

    def __init__(self, task: Task):
        self.task = task
        self._candidate: tuple[str, Candidate] | None = None
        self._loops: dict[tuple, Loop] = {}

    @classmethod
    def holding(cls, measurement: Measurement) -> "Measurements":
        """Those of a candidate that is there already.

        Args:
            measurement: one of them.

        Returns:
            Measurements that share its compiled steps.
        """
        held = cls(measurement.task)
        held._candidate = measurement.candidate.name, measurement.candidate
        held._loops[_compiled_for(measurement.config)] = measurement.loop
        return held

    def of(self, name: str, config: MeasurementConfig) -> Measurement:
        """A candidate with its settings.

        Args:
            name: of the candidate.
            config: the settings.

        Returns:
            The measurement.
        """
        if self._candidate is None or self._candidate[0] != name:
            self._candidate, self._loops = None, {}  # the last one leaves memory first
            self._candidate = name, load_candidate(name)
        measurement = Measurement(self._candidate[1], self.task, config=config)
        key = _compiled_for(config)
        if key in self._loops:
            measurement.loop = self._loops[key]
        self._loops[key] = measurement.loop
        return measurement


def _compiled_for(config: MeasurementConfig) -> tuple:
    return config.optimizer(), config.compute


def measure(
    job: Job, measurements: Measurements, *, on_progress: Callable[[Told], None] | None = None
) -> dict[str, Any]:
    """The content of a cell.

    Args:
        job: which.
        measurements: what measures it.
        on_progress: called after each evaluation of the fine-tune, and as a search goes on.

    Returns:
        JSON values: the test loss, nats per target token, and what it took.

    Raises:
        FloatingPointError: if a loss is not finite.
        UserError: if the job cannot be done.
        OSError: if a disk does not take a checkpoint.
    """
    measurement = measurements.of(job.name, job.config)
    if job.size == 0:
        return {"test_loss": measurement.zero_shot()}
    config, extra, speed = job.config, {}, None
    before = 1 - 1 / (1 + job.search.num_trials)  # share of the search

    def heard_search(now: SearchProgress) -> None:
        if on_progress is not None:
            on_progress(Told(before * now.share, f"{job}, search, {_pace(now)}"))

    def heard(now: Step) -> None:
        nonlocal speed
        speed = round(now.tokens_per_second, 1)
        if on_progress is not None:
            share = before + (1 - before) * now.step / now.max_steps
            on_progress(Told(share, f"{job}, {_pace(now)}"))

    if job.search.num_trials:
        extra["search"] = _searched(job, measurement, heard_search)
        chosen = {name: extra["search"][name] for name in ("learning_rate", "batch_size")}
        config = dataclasses.replace(config, **chosen)
        measurement = measurements.of(job.name, config)
    start, checkpoint = time.monotonic(), job.checkpoint()
    tuned = measurement.fine_tune(job.size, on_progress=heard, checkpoint=checkpoint)
    return {
        **tuned.result._asdict(),
        "seconds": _seconds(start, checkpoint),
        "tokens_per_second": speed,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "seed": config.seed,
        **extra,
    }


def _seconds(start: float, checkpoint: Checkpoint | None) -> float:
    """Since ``start``, and those of the processes whose work was gone on with."""
    earlier = 0.0 if checkpoint is None else checkpoint.earlier_seconds
    return round(earlier + time.monotonic() - start, 3)


def _pace(now: Step | SearchProgress) -> str:
    return f"validation loss {now.validation_loss:.4f}, {now.tokens_per_second:,.0f} tokens/s"


def _searched(
    job: Job, measurement: Measurement, on_progress: Callable[[SearchProgress], None]
) -> dict[str, Any]:
    """The search of a cell; a killed cell goes on with it, or does not search again."""
    kept = job.path and job.path.with_suffix(SEARCHED)
    if kept and kept.exists():
        try:
            return json.loads(kept.read_text())
        except ValueError as error:
            raise checks.UserError(
                f"`search` must be a whole file, got {kept}, damaged ({error}): delete it to "
                "search again"
            ) from error
    start, checkpoint = time.monotonic(), job.checkpoint(SEARCHING)
    found = search_rates(
        measurement.loop, measurement.candidate.params, measurement.splits(job.size),
        SearchGrid(job.search.rates, job.search.batch_sizes),
        config=job.config.fine_tuning(), on_progress=on_progress, checkpoint=checkpoint,
    )  # fmt: skip
    search = {
        "learning_rate": found.learning_rate,
        "batch_size": found.batch_size,
        "learning_rates": list(found.rates),
        "batch_sizes": list(found.batch_sizes),
        # one row a batch size; None where it diverged, JSON has no infinity
        "validation_losses": [
            [float(loss) if math.isfinite(loss) else None for loss in row] for row in found.losses
        ],
        "num_tokens": found.num_tokens,
        "seconds": _seconds(start, checkpoint),
    }
    if kept and checkpoint:
        durable.replace(kept, json.dumps(search, allow_nan=False).encode())
        checkpoint.discard()
    return search


def attempt(
    job: Job, measurements: Measurements, *, on_progress: Callable[[Told], None] | None = None
) -> Done:
    """Measures a cell, or says why not.

    Args:
        job: which.
        measurements: what measures it.
        on_progress: see ``measure``.

    Returns:
        Its result, or the reason why there is none.
    """
    try:
        return Done(job, measure(job, measurements, on_progress=on_progress))
    except FAILURES as error:
        return Done(job, None, one_line(error))


_latest: dict[str, Measurements] = {}  # of this process, by the task's fingerprint


def attempt_here(job: Job, task: Task) -> Done:
    """``attempt`` in a process that others send jobs to.

    Args:
        job: which.
        task: the text.

    Returns:
        See ``attempt``.
    """
    if task.fingerprint not in _latest:
        _latest.clear()
        _latest[task.fingerprint] = Measurements(task)
    return attempt(job, _latest[task.fingerprint])


def one_line(error: BaseException) -> str:
    r"""What an error says, in one line.

    Args:
        error: any.

    Returns:
        Its text.

    Example:
        >>> one_line(OSError("no\nspace"))
        'no space'
    """
    return " ".join(str(error).split())
