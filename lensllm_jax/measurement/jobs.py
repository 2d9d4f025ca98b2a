r"""Job: one point of one learning curve that is to be measured, in whatever process.

A job can be pickled and depends on nothing but its fields, so that jobs may be measured anywhere
and in any order.  Its result is a cell: the test loss in nats per byte of target text with its
standard error, the nats of the end token per record, what each test record cost, and what it took.
Where learning rates or batch sizes are searched, all of them train on the subset first, the lowest
validation loss chooses, and the cell is the fine-tune with that choice.

Example:
    >>> job = Job("zoo/gpt2-xs", 239360, 100, MeasurementConfig(max_epochs=5))
    >>> str(job), job.work  # parameters x examples x passes
    ('zoo/gpt2-xs: 100 examples', 119680000.0)
"""

import copyreg
import dataclasses
import json
import math
import time
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import jax
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax._version import __version__
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import loading, loop_for
from lensllm_jax.finetune.evaluation import Evaluation
from lensllm_jax.finetune.fine_tune import FineTuned, Progress
from lensllm_jax.finetune.loop import Loop
from lensllm_jax.finetune.rates import AUTO
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.finetune.search import SearchGrid, SearchProgress
from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.rates import RateSearch, search_rate

# what ends one job and not the run; the last is an accelerator without memory left
FAILURES = (FloatingPointError, OSError, checks.UserError, jax.errors.JaxRuntimeError)
# suffixes of the files next to a cell until it is finished: the checkpoint of its fine-tune, that
# of its search, and the result of the search
UNFINISHED, SEARCHING, SEARCHED = ".safetensors", ".search.safetensors", ".searched"
RATES = "rates.json"  # next to the cells of a candidate: the trials of its search of a rate

KEPT = ".weights"  # suffix of the folder of the weights that are kept, next to the cell
NOTE = "fine_tuning.json"  # in it: what they come from

# of a cell: the nats of each test record's text, or their pseudo-values, and its bytes; (2, n)
RECORDS = "records"

WHOLE, ADAPTER = "whole", "adapter"

Cell: TypeAlias = dict[str, Any]  # JSON values, and the array of ``RECORDS``


def _read_only(content: Mapping) -> types.MappingProxyType:
    return types.MappingProxyType(content)


# a task holds a read-only mapping, which pickle cannot send
copyreg.pickle(types.MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


class Job(NamedTuple):
    """One cell that is to be measured."""

    name: str  # of the candidate
    num_params: int  # of the candidate
    size: int  # training examples; 0 is before fine-tuning
    config: MeasurementConfig  # the settings, with the cell's seed
    search: SearchGrid | None = None  # settings to choose from, which replace those of config
    path: Path | None = None  # of the cell, next to its checkpoints
    checkpoint_seconds: float = 60.0  # between two checkpoints
    keep: str | None = None  # the best weights next to the cell, WHOLE or as an ADAPTER
    rival: np.ndarray | None = None  # records of the best cell of the size: see ``evaluated``
    searched: int = 0  # examples that the search of the rate before it trains on

    @property
    def num_trials(self) -> int:
        """Fine-tunes of the search."""
        return 0 if self.search is None else math.prod(map(len, self.search))

    @property
    def work(self) -> float:
        """Cost in parameters times examples, if patience never ends a fine-tune."""
        examples = self.size * (1.0 + self.num_trials) + self.searched
        return self.num_params * self.config.max_epochs * examples

    @property
    def search_share(self) -> float:
        """Share of the work that the searches are."""
        examples = self.size * (1.0 + self.num_trials) + self.searched
        return 1 - self.size / examples if examples else 0.0

    def checkpoint(self, suffix: str = UNFINISHED) -> Checkpoint | None:
        """Keeps an unfinished fine-tune or search, if the job has a path."""
        if self.path is None:
            return None
        return Checkpoint(self.path.with_suffix(suffix), every_seconds=self.checkpoint_seconds)

    @property
    def kept(self) -> Path | None:
        """Folder of the weights that are kept, if the job has a path."""
        return None if self.path is None else self.path.with_suffix(KEPT)

    def discard(self) -> None:
        """Removes the checkpoints and the result of a search."""
        if self.path is not None:
            for suffix in (UNFINISHED, SEARCHING, SEARCHED):
                self.path.with_suffix(suffix).unlink(missing_ok=True)

    def __str__(self) -> str:
        if self.size == 0:
            return f"{self.name}: before fine-tuning"
        seed = f", seed {self.config.seed}" if self.config.seed else ""
        return f"{self.name}: {self.size} examples{seed}"


class JobResult(NamedTuple):
    """The cell of a job, or why it failed."""

    job: Job
    cell: Cell | None  # None if it failed
    reason: str = ""  # of the failure, one line


class ProgressUpdate(NamedTuple):
    """How far a job is."""

    share: float  # of its work
    message: str


OnProgress: TypeAlias = Callable[[ProgressUpdate], None]


def ignore_progress(update: ProgressUpdate) -> None:
    """Shows nothing."""


class Measurer:
    """Measures candidates on one task, with the weights of one of them in memory at a time.

    Attributes:
        task: the text.
        revisits: whether candidates are measured again after others: their compiled steps are
            then held until ``forget``, and otherwise dropped with their weights.
    """

    def __init__(self, task: Task, *, revisits: bool = False):
        self.task, self.revisits = task, revisits
        self._candidate: Candidate | None = None
        self._loops: dict[str, dict[tuple, Loop]] = {}  # by candidate, then by settings
        self._rates: dict[tuple[str, MeasurementConfig], RateSearch] = {}

    def measurement(self, name: str, config: MeasurementConfig) -> Measurement:
        """The candidate, loaded now unless it is in memory, with these settings."""
        if self._candidate is None or self._candidate.name != name:
            self._candidate = None  # the last one leaves memory first
            if not self.revisits:
                self._loops.clear()
            with loading(config.compute):
                self._candidate = load_candidate(name)
        # one for all rates, which are an input of the compiled steps
        settings = (config.at(1.0).optimizer(), config.compute)
        loops = self._loops.setdefault(name, {})
        if settings not in loops:
            loops[settings] = loop_for(self._candidate, *settings)
        return Measurement(self._candidate, self.task, config=config, loop=loops[settings])

    def rate_search(
        self, job: Job, *, on_progress: OnProgress = ignore_progress
    ) -> RateSearch | None:
        """The search of a job whose rate is "auto", once per candidate and seed."""
        if job.config.learning_rate != AUTO:
            return None

        def after_evaluation(share: float, message: str) -> None:
            on_progress(ProgressUpdate(share * job.search_share, f"{job.name}: {message}"))

        key = (job.name, job.config)
        if key not in self._rates:
            measurement = self.measurement(job.name, job.config)
            file = job.path and job.path.with_name(RATES)
            self._rates[key] = search_rate(measurement, file, on_progress=after_evaluation)
        return self._rates[key]

    def tuning(self, job: Job, *, on_progress: OnProgress = ignore_progress) -> MeasurementConfig:
        """The settings of a job, its rate found if it is "auto"."""
        found = self.rate_search(job, on_progress=on_progress)
        return job.config if found is None else job.config.at(found.learning_rate)

    def forget(self, name: str) -> None:
        """Drops a candidate's compiled steps: no job of it follows."""
        self._loops.pop(name, None)

    def measure(self, job: Job, *, on_progress: OnProgress = ignore_progress) -> Cell:
        """The cell of a job; a killed one resumes from its checkpoints.

        Args:
            job: which.
            on_progress: called after each evaluation.

        Raises:
            FloatingPointError: if a loss is not finite.
            UserError: if the job cannot be done.
            OSError: if a checkpoint cannot be written.
        """
        if job.size == 0:
            measurement = self.measurement(job.name, job.config)
            return _measured(measurement.zero_shot(rival=job.rival))
        config = self.tuning(job, on_progress=on_progress)
        measurement = self.measurement(job.name, config)
        if job.search is None:
            cell = _fine_tuned(job, measurement, on_progress)
            found = self.rate_search(job)
            return cell if found is None else {**cell, "rate_search": found.as_dict()}
        search = _searched(job, job.search, measurement, on_progress)
        config = dataclasses.replace(
            job.config, learning_rate=search["learning_rate"], batch_size=search["batch_size"]
        )
        measurement = self.measurement(job.name, config)
        return {**_fine_tuned(job, measurement, on_progress), "search": search}

    def attempt(self, job: Job, *, on_progress: OnProgress = ignore_progress) -> JobResult:
        """As :meth:`measure`, with any of ``FAILURES`` as a reason."""
        try:
            return JobResult(job, self.measure(job, on_progress=on_progress))
        except FAILURES as error:
            return JobResult(job, None, one_line(error))


def _fine_tuned(job: Job, measurement: Measurement, on_progress: OnProgress) -> Cell:
    """The cell of a fine-tune with the settings of ``measurement``."""
    start, checkpoint, speed = time.monotonic(), job.checkpoint(), None

    def after_evaluation(now: Progress) -> None:
        nonlocal speed
        speed = round(now.tokens_per_second, 1)
        share = job.search_share + (1 - job.search_share) * now.step / now.max_steps
        on_progress(ProgressUpdate(share, f"{job}, {_pace(now)}"))

    tuned = measurement.fine_tune(
        job.size, on_progress=after_evaluation, checkpoint=checkpoint, rival=job.rival
    )
    config = measurement.config
    if job.keep is not None and job.kept is not None:
        _keep(job, job.kept, measurement, tuned)
    return {
        **_measured(tuned.test),
        **tuned.result._asdict(),
        "seconds": _seconds(start, checkpoint),
        "tokens_per_second": speed,
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }


def _keep(job: Job, folder: Path, measurement: Measurement, tuned: FineTuned) -> None:
    """Writes the weights of a fine-tune at its best step, and what they come from."""
    config = measurement.config
    note = {
        "candidate": job.name,
        "examples": job.size,
        "settings": dataclasses.asdict(job.config),
        "learning_rate": config.learning_rate,
        "batch_size": config.batch_size,
        "result": tuned.result._asdict(),
        "unit": LOSS_UNIT,
        "task": measurement.task.name,
        "task_sha256": measurement.task.fingerprint,
        "lensllm_jax": __version__,
    }
    with durable.writing_folder(folder) as aside:
        measurement.save(tuned.params, aside, adapter=job.keep == ADAPTER)
        (aside / NOTE).write_bytes(durable.json_bytes(note))


def _measured(test: Evaluation) -> Cell:
    """What a cell says of the test losses."""
    return {
        "test_loss": test.loss,
        # None where one record, or none with an end token, is no sample; JSON has no NaN
        "loss_se": None if math.isnan(test.loss_se) else test.loss_se,
        "end_loss": None if math.isnan(test.end_loss) else test.end_loss,
        "num_test_examples": test.num_evaluated or len(test.nats),
        RECORDS: np.stack([test.nats, test.num_bytes]),
    }


def _searched(
    job: Job, grid: SearchGrid, measurement: Measurement, on_progress: OnProgress
) -> Cell:
    """The search of a job; a killed job resumes it, or reads its result."""
    finished = job.path and job.path.with_suffix(SEARCHED)
    if finished and finished.exists():
        return _stored_search(finished, grid)
    start, checkpoint = time.monotonic(), job.checkpoint(SEARCHING)

    def after_evaluation(now: SearchProgress) -> None:
        share = job.search_share * now.share
        on_progress(ProgressUpdate(share, f"{job}, search, {_pace(now)}"))

    result = measurement.search(
        job.size, grid, on_progress=after_evaluation, checkpoint=checkpoint
    )  # fmt: skip
    search = {
        "learning_rate": result.learning_rate,
        "batch_size": result.batch_size,
        "learning_rates": list(result.rates),
        "batch_sizes": list(result.batch_sizes),
        # one row per batch size; None where it diverged, JSON has no infinity
        "validation_losses": [
            [float(loss) if math.isfinite(loss) else None for loss in row] for row in result.losses
        ],
        "num_tokens": result.num_tokens,
        "seconds": _seconds(start, checkpoint),
    }
    if finished and checkpoint:
        durable.replace(finished, json.dumps(search, allow_nan=False).encode())
        checkpoint.discard()
    return search


def _stored_search(file: Path, grid: SearchGrid) -> Cell:
    """The result of a finished search."""
    try:
        search = json.loads(file.read_bytes())
        if search["learning_rate"] in grid.rates and search["batch_size"] in grid.batch_sizes:
            return search
        reason = "its choice is none of the grid"
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {error}"
    raise checks.UserError(
        f"`search` must be a whole file, got {file}, damaged ({reason}): delete it to search again"
    )


def _seconds(start: float, checkpoint: Checkpoint | None) -> float:
    """Since ``start``, and those of earlier processes up to the checkpoint that was resumed."""
    earlier = 0.0 if checkpoint is None else checkpoint.earlier_seconds
    return round(earlier + time.monotonic() - start, 3)


def _pace(now: Progress | SearchProgress) -> str:
    return f"validation loss {now.validation_loss:.4f}, {now.tokens_per_second:,.0f} tokens/s"


_latest: dict[str, Measurer] = {}  # of this process, by the task's fingerprint


def attempt_here(job: Job, task: Task) -> JobResult:
    """``Measurer.attempt`` in a worker process, which gets jobs of any candidate."""
    if task.fingerprint not in _latest:
        _latest.clear()
        _latest[task.fingerprint] = Measurer(task)
    return _latest[task.fingerprint].attempt(job)


def one_line(error: BaseException) -> str:
    """The message of an error without line breaks."""
    return " ".join(str(error).split())
