"""Measuring: the pieces of a run folder that every measuring binary shares.

Example:
    >>> from experiments.common.measuring import slug_of
    >>> slug_of("zoo/gpt2-xs")
    'zoo--gpt2-xs'
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common.progress import Progress
from experiments.common.run_folder import RunFolder
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement import jobs as cells
from lensllm_jax.measurement.jobs import Job, Measurements, Told
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig, spectrum_for_law
from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.ntk.loss import kernel_report
from lensllm_jax.selection.loss_table import LossTable

DEFAULTS = MeasurementConfig()
# fields that run folders from before them lack: recorded only where they are not the default
LATER = ("warmup_steps", "decay_steps", "clip_norm", "buckets", "compute")


def check_kernel_examples(task: Task, config: MeasurementConfig) -> None:
    """Refuses a kernel of more examples than the task has."""
    if config.num_kernel_examples > len(task.train):
        raise checks.UserError(
            f"`num_kernel_examples` must be at most {len(task.train)} (the training examples of "
            f"{task.name}), got {config.num_kernel_examples}"
        )


def load_checked(name: str, config: MeasurementConfig) -> Candidate:
    """A candidate that can read texts of the configured length.

    Args:
        name: what ``load_candidate`` takes.
        config: the settings of the run.

    Returns:
        The candidate.

    Raises:
        UserError: if it does not load, has no tokenizer, or too few positions.
    """
    candidate = load_candidate(name)
    positions = candidate.config.max_positions
    if positions is not None and config.max_length > positions:
        raise checks.UserError(
            f"`max_length` must be at most {positions} (the positions of {name}), got "
            f"{config.max_length}"
        )
    smallest = 3 if candidate.is_encoder_decoder else 2  # one token of context and one target
    if config.max_length < smallest:
        raise checks.UserError(
            f"`max_length` must be at least {smallest} (tokens that {name} needs for a target), "
            f"got {config.max_length}"
        )
    assert len(candidate.tokenizer)  # a missing tokenizer must stop the run here
    return candidate


def check_candidates(names: Sequence[str], config: MeasurementConfig) -> dict[str, int]:
    """Number of parameters of every candidate; loads each once, so that none fails later."""
    return check_pool(names, config)[0]


def check_pool(
    names: Sequence[str], config: MeasurementConfig
) -> tuple[dict[str, int], dict[str, str]]:
    """Number of parameters and family of every candidate; loads one after the other."""
    num_params, families = {}, {}
    for name in names:
        candidate = load_checked(name, config)
        num_params[name], families[name] = candidate.num_params, candidate.family.name
    return num_params, families


def task_settings(names: Sequence[str], task: Task, config: MeasurementConfig) -> dict:
    """What decides the measurements of a pool on a task, as JSON values."""
    recorded, default = dataclasses.asdict(config), dataclasses.asdict(DEFAULTS)
    for name in LATER:
        if recorded[name] == default[name]:
            del recorded[name]
    return {
        "candidates": list(names),
        "task": task.name,
        "task_sha256": task.fingerprint,
        **recorded,
    }


def task_notes(task: Task) -> dict[str, Any]:
    """What a reader wants to know of a task, for run.json."""
    return {
        "examples": {name: len(getattr(task, name)) for name in ("train", "validation", "test")},
        "left_out": dict(task.removed),  # by reason: empty, repeated between splits, ...
    }


def total_work(
    num_params: Mapping[str, int], sizes: Sequence[int], config: MeasurementConfig
) -> float:
    """Cost of fine-tuning a pool on every size, if patience never ends a fine-tune."""
    pairs = itertools.product(num_params.values(), sizes)
    return sum(cells.fine_tune_work(n, size, config) for n, size in pairs)


def cell_path(name: str, size: int, *, among_seeds: int | None = None) -> str:
    """Where the run folder keeps the loss of a candidate on a subset; 0 is zero-shot.

    Args:
        name: of the candidate.
        size: training examples.
        among_seeds: the seed, where the run has several and the loss depends on it.

    Returns:
        The name of the piece.
    """
    seed = "" if among_seeds is None or size == 0 else f"seed-{among_seeds}/"
    return f"cells/{slug_of(name)}/{seed}{size}.json"


def remember_zero_shot(measurement: Measurement, folder: RunFolder, progress: Progress) -> float:
    """The loss before fine-tuning, measured now if the folder does not hold it."""
    name = measurement.candidate.name
    progress.at(0.0, f"{name}: loss before fine-tuning")
    cell = folder.remember(cell_path(name, 0), lambda: {"test_loss": measurement.zero_shot()})
    return cell["test_loss"]


def remember_cell(
    measurement: Measurement, size: int, folder: RunFolder, progress: Progress,
    *, checkpoint_seconds: float = 60.0,
) -> dict:  # fmt: skip
    """One fine-tune, made now if the folder does not hold it; goes on where a killed run was.

    Its ``seconds`` are those of all processes that worked on it, each up to its last checkpoint.
    """
    name, num_params = measurement.candidate.name, measurement.candidate.num_params
    job = Job(
        name, size, measurement.config, path=folder.path / cell_path(name, size),
        every_seconds=checkpoint_seconds,
    )  # fmt: skip
    work = job.work(num_params)
    if not is_kept(job, progress, work):
        cell = cells.measure(
            job, Measurements.holding(measurement), on_progress=tells(progress, work)
        )
        keep(job, cell, folder, progress, work)
    return folder.read_json(cell_path(name, size))


def is_kept(job: Job, progress: Progress, work: float) -> bool:
    """Whether an earlier run finished the cell."""
    if job.path is None or not job.path.exists():
        return False
    job.discard()  # a run was killed between the result and this
    progress.skip(work)
    return True


def tells(progress: Progress, work: float) -> Callable[[Told], None]:
    """What hears of a cell under way."""
    return lambda now: progress.at(work * now.share, now.doing)


def keep(job: Job, cell: Mapping, folder: RunFolder, progress: Progress, work: float) -> None:
    """Writes a cell, removes what lay beside it while it was unfinished, and says so."""
    assert job.path is not None
    folder.write_json(str(job.path.relative_to(folder.path)), cell)
    job.discard()
    speed = cell.get("tokens_per_second")
    said = f"{job}, test loss {cell['test_loss']:.4f}"
    progress.finish(work, said if speed is None else f"{said}, {speed:,.0f} tokens/s")


def loss_table(
    names: Sequence[str], losses: Mapping[str, Mapping[int, float]], num_params: Mapping[str, int],
    families: Mapping[str, str], task: Task,
) -> LossTable:  # fmt: skip
    """Measured losses as a table; what was not measured is NaN."""
    sizes = sorted({size for row in losses.values() for size in row})
    return LossTable(
        names=tuple(names),
        sizes=np.array(sizes),
        losses=np.array([[losses[n].get(s, np.nan) for s in sizes] for n in names]),
        num_params=np.array([float(num_params[n]) for n in names]),
        family=tuple(families[n] for n in names),
        task=task.name,
    )


def remember_kernel(
    measurement: Measurement, folder: RunFolder, path: str, progress: Progress,
    *, store: str | None = None,
) -> NtkSpectrum:  # fmt: skip
    """The kernel's spectrum; ntk.json is written last and says that ntk.npy is whole."""
    progress.at(0.0, f"{measurement.candidate.name}: kernel")
    if not folder.has(f"{path}/ntk.json"):
        kernel = measurement.kernel(store=store)
        folder.write_array(f"{path}/ntk.npy", kernel.theta)
        folder.write_json(f"{path}/ntk.json", kernel_summary(measurement, kernel))
    stored = folder.read_json(f"{path}/ntk.json")["spectrum"]
    return NtkSpectrum(
        np.array(stored["eigenvalues"]), np.array(stored["projections"]), stored["learning_rate"]
    )


def kernel_summary(measurement: Measurement, kernel: CandidateNtk) -> dict:
    """What ntk.npy is, and all that F needs."""
    spectrum = spectrum_for_law(kernel, learning_rate=measurement.config.learning_rate)
    return {
        "candidate": measurement.candidate.name,
        "task": measurement.task.name,
        "examples": f"the first {kernel.num_examples} training examples in the nested order",
        "num_examples": kernel.num_examples,
        "max_length_tokens": measurement.config.max_length,
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


def slug_of(name: str) -> str:
    """A candidate's name as a file name."""
    return name.strip("/").replace("/", "--")
