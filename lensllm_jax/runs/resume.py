"""Resume: what an earlier, killed run of the same settings finished is read, not measured again.

A cell is the test loss of a candidate on one subset, ``cells/<candidate>/<size>.json``, next
to the checkpoints of an unfinished one.  ``<size>.npy`` (2, n), written before it, holds the nats
of each test record's text and its bytes; of a candidate far behind, pseudo-values
(:mod:`lensllm_jax.finetune.evaluation`).  A kernel is ``ntk.npy`` with ``ntk.json``, which is
written last.

Example:
    >>> cell_path("zoo/gpt2-xs", 200), cell_path("zoo/gpt2-xs", 200, among_seeds=1)
    ('cells/zoo--gpt2-xs/200.json', 'cells/zoo--gpt2-xs/seed-1/200.json')
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.evaluation import loss_covariance
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement.jobs import RECORDS, Cell, Job, Measurer, ProgressUpdate
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig, spectrum_for_law
from lensllm_jax.measurement.rates import expected_examples
from lensllm_jax.measurement.winner import Winner, forget
from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.ntk.loss import kernel_report
from lensllm_jax.ntk.store import TileMap
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.run_folder import RunFolder, file_name_of
from lensllm_jax.selection.loss_table import LossTable


def cell_path(name: str, size: int, *, among_seeds: int | None = None) -> str:
    """Where the run folder keeps a cell.

    Args:
        name: of the candidate.
        size: training examples; 0 is before fine-tuning.
        among_seeds: the seed, where the run has several; no cell of size 0 depends on it.
    """
    seed = "" if among_seeds is None or size == 0 else f"seed-{among_seeds}/"
    return f"cells/{file_name_of(name)}/{seed}{size}.json"


def task_settings(
    pool: Mapping[str, CandidateSummary], task: Task, config: MeasurementConfig
) -> dict[str, Any]:
    """What decides the measurements of a pool on a task, as JSON values."""
    return {
        "candidates": list(pool),
        "candidates_sha256": {name: summary.sha256 for name, summary in pool.items()},
        "task": task.name,
        "task_sha256": task.fingerprint,
        **dataclasses.asdict(config),
    }


def pretrained_settings(
    pool: Mapping[str, CandidateSummary], task: Task, config: MeasurementConfig
) -> dict[str, Any]:
    """Those of ``task_settings`` that decide what is measured at pretrained weights."""
    settings = task_settings(pool, task, config)
    fields = (
        "candidates", "candidates_sha256", "task", "task_sha256", "chat_template", "seed",
    )  # fmt: skip
    return {name: settings[name] for name in fields}


def _records_path(path: str) -> str:
    """Of the losses of a cell's test records, which is at ``path``."""
    return path.removesuffix(".json") + ".npy"


def has_cell(folder: RunFolder, path: str) -> bool:
    """Whether a cell is finished."""
    return folder.has_array(_records_path(path), path)


def test_covariance(folder: RunFolder, paths: Sequence[str]) -> Float[np.ndarray, "c c"]:
    """Of the test losses of finished cells, squared nats per byte; over the same test records."""
    records = [folder.read_array(_records_path(path)) for path in paths]
    return loss_covariance(*np.stack(records, axis=1))


def test_covariances(
    folder: RunFolder, table: LossTable
) -> Float[np.ndarray, "num_sizes num_candidates num_candidates"]:
    """:func:`test_covariance` at each size of a table; NaN where it or the folder has no loss."""
    covariances = np.full((len(table.sizes), *[len(table.names)] * 2), np.nan)
    for covariance, size, losses in zip(
        covariances, table.sizes.tolist(), table.losses.T, strict=True
    ):
        paths = [cell_path(name, size) for name in table.names]
        known = np.flatnonzero(np.isfinite(losses)).tolist()
        here = [i for i in known if has_cell(folder, paths[i])]
        if here:
            covariance[np.ix_(here, here)] = test_covariance(folder, [paths[i] for i in here])
    return covariances


@dataclasses.dataclass(frozen=True)
class Cells:
    """The cells of a run folder, and the progress of the run."""

    folder: RunFolder
    progress: Progress  # in the unit of ``Job.work``
    _best: dict[int, tuple[float, str]] = dataclasses.field(default_factory=dict)  # by size

    def unfinished(self, jobs: Iterable[Job]) -> list[Job]:
        """The jobs that no earlier run finished."""
        return [job for job in jobs if not self._skip_finished(job)]

    def _skip_finished(self, job: Job) -> bool:
        if job.path is None or not has_cell(self.folder, self._piece_of(job)):
            return False
        job.discard()  # a run was killed after the cell was written and before this
        self.progress.skip(job.work)
        return True

    def _piece_of(self, job: Job) -> str:
        assert job.path is not None
        return str(job.path.relative_to(self.folder.path))

    def show(self, job: Job, update: ProgressUpdate) -> None:
        """Shows how far a job is."""
        self.progress.at(job.work * update.share, update.message)

    def keep(self, job: Job, cell: Cell) -> None:
        """Writes a finished cell and removes its checkpoints."""
        piece = self._piece_of(job)
        digest = self.folder.write_array(_records_path(piece), cell[RECORDS])
        numbers = {k: v for k, v in cell.items() if k != RECORDS}
        self.folder.write_piece(piece, {**numbers, "npy_sha256": digest})
        job.discard()
        speed = cell.get("tokens_per_second")
        message = f"{job}, test loss {cell['test_loss']:.4f}"
        self.progress.finish(
            job.work, message if speed is None else f"{message}, {speed:,.0f} tokens/s"
        )

    def measured(self, job: Job, measurer: Measurer) -> Cell:
        """The cell of a job, measured now in this process unless it is finished."""
        if not self._skip_finished(job):
            self.show(job, ProgressUpdate(0.0, str(job)))
            self.keep(job, measurer.measure(job, on_progress=functools.partial(self.show, job)))
        piece = self._piece_of(job)
        cell = self.folder.read_piece(piece)
        self._best[job.size] = min(
            self._best.get(job.size, (math.inf, "")), (cell["test_loss"], piece)
        )
        return cell

    def best_records(self, size: int) -> np.ndarray | None:
        """Of the lowest loss that was ``measured`` at a size, all of them evaluated."""
        if size not in self._best:
            return None
        return self.folder.read_array(_records_path(self._best[size][1]))


class CandidateRun:
    """One candidate of a run: each piece is read from the run folder, or measured and stored.

    Attributes:
        summary: the candidate without its weights, which are loaded once a piece needs them.
        losses: size -> test loss, nats per byte; 0 is before fine-tuning.
        num_tokens: size -> tokens trained on.
        seconds: size -> duration of the fine-tune.
        search_tokens: tokens trained on in the search of a rate.
        num_searched: examples trained on in it.
        spectrum: of its kernel, with the learning rate of fine-tuning; None if not computed.
    """

    def __init__(
        self, summary: CandidateSummary, config: MeasurementConfig, measurer: Measurer,
        cells: Cells, *, checkpoint_seconds: float, winner: Winner | None = None,
        all_test_examples: bool = True,
    ):  # fmt: skip
        self.summary = summary
        self.losses: dict[int, float] = {}
        self.num_tokens: dict[int, int] = {}
        self.seconds: dict[int, float] = {}
        self.search_tokens = self.num_searched = 0
        self.spectrum: NtkSpectrum | None = None
        self._config, self._measurer, self._cells = config, measurer, cells
        self._checkpoint_seconds, self._winner = checkpoint_seconds, winner
        self._all_test_examples = all_test_examples

    def job(self, size: int) -> Job:
        """The job of a fine-tune on ``size`` examples; of size 0, of the loss before any."""
        name, num_params = self.summary.name, self.summary.num_params
        path = self._cells.folder.path / cell_path(name, size)
        is_first = size > 0 and not any(self.losses)  # its rate is searched before it
        is_largest = size > 0 and size >= max(self.losses, default=0)
        return Job(
            name, num_params, size, self._config,
            path=path, checkpoint_seconds=self._checkpoint_seconds,
            keep=self._winner.keep if self._winner and is_largest else None,
            rival=None if self._all_test_examples else self._cells.best_records(size),
            searched=expected_examples(self._config, self._measurer.task) if is_first else 0,
        )  # fmt: skip

    def measure_loss(self, size: int) -> float:
        """The test loss after fine-tuning on ``size`` examples, nats per byte."""
        cell = self._cells.measured(self.job(size), self._measurer)
        self.losses[size] = cell["test_loss"]
        if size > 0:
            self.num_tokens[size] = cell["num_tokens"]
            search = cell.get("rate_search", {})
            self.search_tokens = search.get("num_tokens", 0)
            self.num_searched = search.get("num_examples", 0)
            self.seconds[size] = cell["seconds"]
        if self._winner:
            self.forget_weights(below=max(self.losses))
        return self.losses[size]

    def forget_weights(self, *, below: float = math.inf) -> None:
        """Removes kept weights of fine-tunes on fewer examples: those will not win."""
        for size in self.losses:
            if size < below:
                forget(self.job(size))

    def save_weights(self, winner: Winner) -> int:
        """Puts the weights of the largest fine-tune in the winner's folder; returns its size."""
        job = self.job(max(self.losses))._replace(rival=None)  # the best: all were evaluated
        if job.size == 0:
            raise checks.UserError(
                f"`save_winner` must have a fine-tune to save, got none of {self.summary.name} "
                "that ended: see why each failed"
            )
        save_weights(winner, job, self._measurer)
        return job.size

    def compute_kernel(self) -> None:
        """The spectrum of the kernel at the pretrained weights."""
        name, folder, progress = self.summary.name, self._cells.folder, self._cells.progress
        progress.at(0.0, f"{name}: kernel")
        self.spectrum = remember_kernel(
            folder, f"kernels/{file_name_of(name)}",
            lambda: self._measurer.measurement(name, self._measurer.tuning(self.job(1))),
        )  # fmt: skip

    def finish(self, sizes: Iterable[int]) -> None:
        """Takes those of ``sizes`` that are not measured off the work; no fine-tune follows."""
        self._measurer.forget(self.summary.name)
        for size in set(sizes) - set(self.losses):
            self._cells.progress.drop(self.job(size).work)


def save_weights(winner: Winner, job: Job, measurer: Measurer) -> None:
    """Puts the weights of a finished job in the winner's folder."""
    if winner.moved(job):
        return
    # it was dropped, an earlier run was not to keep them, or another machine measured it
    terminal.warn(f"{job}: fine-tuned again, for its weights were not kept")
    measurer.measure(job)
    winner.moved(job)
    job.discard()


def remember_kernel(
    folder: RunFolder, path: str, load: Callable[[], Measurement], *,
    store: str | Path | None = None, map_tiles: TileMap | None = None,
) -> NtkSpectrum:  # fmt: skip
    """The spectrum of a kernel, computed now unless the folder holds it.

    Args:
        folder: of the run.
        path: of the kernel's folder within it.
        load: called if the kernel is to be computed.
        store: folder of finished tiles, from which a killed run resumes.
        map_tiles: where its tiles are computed.
    """
    if not folder.has_array(f"{path}/ntk.npy", f"{path}/ntk.json"):
        measurement = load()
        kernel = measurement.kernel(store=store, map_tiles=map_tiles)
        digest = folder.write_array(f"{path}/ntk.npy", kernel.theta)
        summary = {**_kernel_summary(measurement, kernel), "npy_sha256": digest}
        folder.write_piece(f"{path}/ntk.json", summary)
    stored = folder.read_piece(f"{path}/ntk.json")["spectrum"]
    return NtkSpectrum(
        np.array(stored["eigenvalues"]), np.array(stored["projections"]), stored["learning_rate"]
    )


def _kernel_summary(measurement: Measurement, kernel: CandidateNtk) -> dict[str, Any]:
    """What ntk.npy is, and all that F needs."""
    spectrum = spectrum_for_law(kernel, learning_rate=measurement.learning_rate)
    return {
        "candidate": measurement.candidate.name,
        "task": measurement.task.name,
        "examples": f"the first {kernel.num_examples} training examples in the nested order",
        "num_examples": kernel.num_examples,
        "length_tokens": measurement.lengths.total,
        "readout": kernel.readout.value,
        "method": kernel.method.value,
        "normalisation": "none: Theta_ij is the inner product of two gradients",
        "outputs": kernel.outputs.tolist(),
        "targets": kernel.targets.tolist(),
        "report": dataclasses.asdict(kernel_report(kernel.theta)),
        "spectrum": {
            "eigenvalues": spectrum.eigenvalues.tolist(),
            "projections": spectrum.squared_projections.tolist(),
            "learning_rate": spectrum.learning_rate,
            "formula": "F(t) = sum_j projections_j exp(-2 learning_rate eigenvalues_j t)",
        },
    }
