"""Measuring: the flags, and the pieces of a run folder, that every measuring binary shares.

Example:
    >>> from experiments.common.measuring import slug_of
    >>> slug_of("zoo/gpt2-xs")
    'zoo--gpt2-xs'
"""

import dataclasses
import itertools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.progress import Progress
from experiments.common.run_folder import RunFolder
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.config import read_config
from lensllm_jax.checkpoints.zoo import folder_of, list_zoo, load_candidate
from lensllm_jax.data.batches import with_prompts
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.lengths import with_mean_length
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import ComputeConfig, keep_compiled
from lensllm_jax.finetune.loop import ALL_STEPS
from lensllm_jax.measurement import jobs as cells
from lensllm_jax.measurement.jobs import Job, Measurements, Told
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig, spectrum_for_law
from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.ntk.gram import NtkMethod
from lensllm_jax.ntk.loss import kernel_report
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.scaling.laws import NtkSpectrum
from lensllm_jax.selection.loss_table import LossTable

DEFAULTS = MeasurementConfig()
# fields that run folders from before them lack: recorded only where they are not the default
LATER = ("warmup_steps", "decay_steps", "clip_norm", "buckets", "compute")
ONE_EACH = (Readout.LOSS, Readout.TARGET_LOGPROB)  # read-outs with one output an example

CANDIDATES = flags.DEFINE_string(
    "candidates", "zoo", "zoo (all bundled), or names, folders and hub ids, comma-separated."
)
TASK = flags.DEFINE_string("task", "pydoc", "A built-in task, or a .jsonl, .csv, .parquet or .txt.")
PROMPT_FIELD = flags.DEFINE_string("prompt_field", "prompt", "Column of a task file's prompts.")
TARGET_FIELD = flags.DEFINE_string("target_field", "target", "Column of a task file's targets.")
TASK_FOLDER = flags.DEFINE_string(
    "task_folder", None, "Copy of the hub's repository of --task=flan, wikitext or gigaword."
)
MEAN_LENGTH = flags.DEFINE_float(
    "mean_length", None,
    "Average input, in tokens of the first candidate: the longest (or shortest) records go.",
)  # fmt: skip
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
LEARNING_RATE = flags.DEFINE_float(
    "learning_rate", DEFAULTS.learning_rate, "Of AdamW; searched, benchmarks/LOG.md."
)
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", DEFAULTS.weight_decay, "Of AdamW.")
BATCH_SIZE = flags.DEFINE_integer(
    "batch_size", DEFAULTS.batch_size, "Examples a step; searched likewise."
)
WARMUP_STEPS = flags.DEFINE_integer(
    "warmup_steps", DEFAULTS.warmup_steps, "Over which the learning rate rises."
)
DECAY_STEPS = flags.DEFINE_string(
    "decay_steps", None, "Where its cosine decay ends: a step, or all. Default: no decay."
)
CLIP_NORM = flags.DEFINE_float("clip_norm", DEFAULTS.clip_norm, "Largest norm of a gradient.")
COMPUTE_DTYPE = flags.DEFINE_enum(
    "compute_dtype", None, ["bfloat16", "float32"], "Of products and logits; weights stay float32."
)
MICRO_BATCHES = flags.DEFINE_integer("micro_batches", 1, "Passes of one step: less memory.")
REMAT = flags.DEFINE_bool("remat", False, "Compute blocks again backwards: less memory.")
BUCKETS = flags.DEFINE_string(
    "buckets", "", "Ascending lengths, tokens: training batches of short examples are cut to them."
)
MAX_LENGTH = flags.DEFINE_integer("max_length", DEFAULTS.max_length, "Tokens of an example.")
MAX_EPOCHS = flags.DEFINE_integer("max_epochs", DEFAULTS.max_epochs, "Passes at most.")
PATIENCE = flags.DEFINE_integer("patience", DEFAULTS.patience, "Evaluations without a new best.")
NUM_KERNEL_EXAMPLES = flags.DEFINE_integer(
    "num_kernel_examples", DEFAULTS.num_kernel_examples, "Examples of the kernel."
)
READOUT = flags.DEFINE_enum(
    "readout", DEFAULTS.readout, [r.value for r in ONE_EACH], "Output that the kernel is of."
)
METHOD = flags.DEFINE_enum(
    "method", DEFAULTS.method, [m.value for m in NtkMethod], "How the kernel is computed."
)
CHECKPOINT_SECONDS = flags.DEFINE_float(
    "checkpoint_seconds", 60.0, "Between writings of an unfinished fine-tune; 0: each call."
)
COMPILED_DIR = flags.DEFINE_string(
    "compiled_dir", None, "Keeps compiled steps here: later processes and runs need not compile."
)
SEED = flags.DEFINE_integer("seed", 0, "Of subsets and orders.")
QUIET = flags.DEFINE_bool("quiet", False, "No progress, and no table of a grid.")


def candidate_names() -> tuple[str, ...]:
    """The pool that --candidates names.

    Returns:
        One or more distinct names.

    Raises:
        UserError: if there is none, or one twice.
    """
    names = list_zoo() if CANDIDATES.value == "zoo" else cli.names(CANDIDATES.value)
    if not names or len(set(names)) < len(names):
        raise checks.UserError(
            f"`candidates` must be one or more distinct names, got {CANDIDATES.value!r}"
        )
    return names


def measurement_config() -> MeasurementConfig:
    """The settings of every measurement, from the flags; from here on JAX keeps what it compiles.

    Raises:
        UserError: naming the flag at fault.
    """
    if COMPILED_DIR.value:
        if Path(COMPILED_DIR.value).is_file():
            raise checks.UserError(
                f"`compiled_dir` must be a folder, got the file {COMPILED_DIR.value}"
            )
        keep_compiled(COMPILED_DIR.value)
    checks.not_negative("checkpoint_seconds", CHECKPOINT_SECONDS.value)
    return MeasurementConfig(
        learning_rate=LEARNING_RATE.value,
        weight_decay=WEIGHT_DECAY.value,
        batch_size=BATCH_SIZE.value,
        max_length=MAX_LENGTH.value,
        max_epochs=MAX_EPOCHS.value,
        patience=PATIENCE.value,
        num_kernel_examples=NUM_KERNEL_EXAMPLES.value,
        readout=READOUT.value,
        method=METHOD.value,
        seed=SEED.value,
        warmup_steps=WARMUP_STEPS.value,
        decay_steps=decay_steps(),
        clip_norm=CLIP_NORM.value,
        buckets=cli.whole_numbers("buckets", BUCKETS.value),
        compute=ComputeConfig(
            dtype=COMPUTE_DTYPE.value, remat=REMAT.value, num_micro_batches=MICRO_BATCHES.value
        ),
    )


def decay_steps() -> int | str | None:
    """Where --decay_steps says that the decay ends."""
    text = DECAY_STEPS.value
    if text in (None, ALL_STEPS):
        return text
    if not (text.isascii() and text.isdigit()):
        raise checks.UserError(f"`decay_steps` must be a step or {ALL_STEPS}, got {text!r}")
    return int(text)


def load_task_for(names: Sequence[str]) -> Task:
    """The task that --task names, as the whole pool can be compared on it.

    Args:
        names: the pool.

    Returns:
        With prompts everywhere if one of the pool is an encoder-decoder.

    Raises:
        UserError: if there is no such task, field or candidate.
    """
    task = load_task(
        TASK.value, prompt_field=PROMPT_FIELD.value, target_field=TARGET_FIELD.value,
        folder=Path(TASK_FOLDER.value) if TASK_FOLDER.value else None,
    )  # fmt: skip
    if MEAN_LENGTH.value is not None:
        checks.positive("mean_length", MEAN_LENGTH.value)
        task = with_mean_length(task, load_candidate(names[0]).tokenizer, mean=MEAN_LENGTH.value)
    configs = (read_config(folder_of(name)).config for name in names)
    return with_prompts(task) if any(c.is_encoder_decoder for c in configs) else task


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
    measurement: Measurement, size: int, folder: RunFolder, progress: Progress
) -> dict:
    """One fine-tune, made now if the folder does not hold it; goes on where a killed run was.

    Its ``seconds`` are those of all processes that worked on it, each up to its last checkpoint.
    """
    name, num_params = measurement.candidate.name, measurement.candidate.num_params
    job = job_of(name, size, measurement.config, folder.path / cell_path(name, size))
    work = job.work(num_params)
    if not is_kept(job, progress, work):
        cell = cells.measure(
            job, Measurements.holding(measurement), on_progress=tells(progress, work)
        )
        keep(job, cell, folder, progress, work)
    return folder.read_json(cell_path(name, size))


def job_of(
    name: str, size: int, config: MeasurementConfig, path: Path,
    *, search: cells.Search = cells.NO_SEARCH,
) -> Job:  # fmt: skip
    """A cell with the checkpoints that the flags ask for."""
    return Job(name, size, config, search, path, CHECKPOINT_SECONDS.value)


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
            "projections": spectrum.projections.tolist(),
            "learning_rate": spectrum.learning_rate,
            "formula": "F(t) = sum_j projections_j exp(-2 learning_rate eigenvalues_j t)",
        },
    }


def slug_of(name: str) -> str:
    """A candidate's name as a file name."""
    return name.strip("/").replace("/", "--")
