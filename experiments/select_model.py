r"""Ranks a pool of pretrained language models for one task, paying for a part of the tuning.

    python -m experiments.select_model --candidates=zoo --task=pydoc \
        --budget_size=1600 --target_size=6400 --output_dir=out/pydoc

For each candidate: the exact neural tangent kernel at its pretrained weights (Eq 8), the loss
before fine-tuning, then Algorithm 1 - fine-tunes on the largest subset within the budget, on
half of it, and so on until the loss leaves the power phase - and the law
L(D) = B / (F(Theta, t) + D^beta) + E (Eq 10) through the accepted losses, extrapolated to
--target_size.  The rectified law, fitted by the same optimiser, stands beside it as the
control.

--output_dir receives ranking.csv, losses.csv (the public table format), kernels/<name>/ntk.npy
with ntk.json, report.md, loss_curves.png and kernel_spectra.png; run.json holds settings,
versions and seed; cells/ what is finished.  The same command goes on where a killed run was
cut off and ends with the same files; only cells/ holds durations.

On the bundled candidates and 2 cores: about 6 minutes.
"""

import csv
import dataclasses
import io
import time
from collections.abc import Sequence

import numpy as np
from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli
from experiments.progress import Progress, remaining
from experiments.run_folder import RunFolder, command
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import list_zoo, load_candidate
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import Task
from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.ntk.gram import NtkMethod
from lensllm_jax.ntk.loss import kernel_report
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.report import figures
from lensllm_jax.report.selection import Selection, selection_markdown
from lensllm_jax.scaling.laws import NtkSpectrum
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from lensllm_jax.selection.measurement import Measurement, MeasurementConfig, spectrum_for_law

DEFAULTS = MeasurementConfig()
ONE_EACH = (Readout.LOSS, Readout.TARGET_LOGPROB)  # read-outs with one output an example

CANDIDATES = flags.DEFINE_string(
    "candidates", "zoo", "zoo (all bundled), or names, folders and hub ids, comma-separated."
)
TASK = flags.DEFINE_string("task", "pydoc", "A built-in task, or a .jsonl, .csv, .parquet or .txt.")
BUDGET_SIZE = flags.DEFINE_integer("budget_size", 1600, "Largest affordable subset, examples.")
TARGET_SIZE = flags.DEFINE_integer("target_size", 6400, "Size to rank at, examples.")
SMALLEST_SIZE = flags.DEFINE_integer("smallest_size", 200, "Smallest subset, examples.")
OUTPUT_DIR = flags.DEFINE_string("output_dir", None, "Folder of the run.", required=True)
GAMMA = flags.DEFINE_integer("gamma", 3, "Algorithm 1: accepted losses before it may stop.")
TAU = flags.DEFINE_float("tau", 5.0, "Algorithm 1: residual deviations at which it stops.")
LEARNING_RATE = flags.DEFINE_float("learning_rate", DEFAULTS.learning_rate, "Of AdamW.")
WEIGHT_DECAY = flags.DEFINE_float("weight_decay", DEFAULTS.weight_decay, "Of AdamW.")
BATCH_SIZE = flags.DEFINE_integer("batch_size", DEFAULTS.batch_size, "Examples a step.")
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
SEED = flags.DEFINE_integer("seed", 0, "Of subsets and orders.")
QUIET = flags.DEFINE_bool("quiet", False, "Print nothing but the ranking.")


def main(argv: Sequence[str]) -> None:
    """Measures, ranks and reports."""
    del argv
    start = time.monotonic()
    names = list_zoo() if CANDIDATES.value == "zoo" else cli.names(CANDIDATES.value)
    config = measurement_config()
    task = load_task(TASK.value)
    sizes = affordable_sizes(task, config)
    num_params = check_candidates(names)
    folder = RunFolder.open(OUTPUT_DIR.value, settings(names, task, config))
    with Progress(total=total_work(num_params, sizes, config), quiet=QUIET.value) as progress:
        measured = {}
        for name in names:
            measured[name] = measure(name, task, sizes, config, folder, progress)
    selection = select(names, num_params, task, measured, config)
    write_results(folder, selection)
    show(selection)
    if not QUIET.value:
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was paid for one candidate.

    Attributes:
        losses: size -> test loss, nats per target token; 0 is before fine-tuning.
        search: Algorithm 1 at its end.
        spectrum: of its kernel, with the fine-tuning's rate.
        num_tokens: trained on, all subsets together.
        family: Hugging Face's name of its kind.
    """

    losses: dict[int, float]
    search: Halving
    spectrum: NtkSpectrum
    num_tokens: int
    family: str


def measurement_config() -> MeasurementConfig:
    """The settings of every measurement, from the flags."""
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
    )


def affordable_sizes(task: Task, config: MeasurementConfig) -> tuple[int, ...]:
    """The doubling sizes within the budget, largest first; refuses what cannot be measured."""
    available = len(task.train)
    if BUDGET_SIZE.value > available:
        raise checks.UserError(
            f"`budget_size` must be at most {available} (the training examples of {task.name}), "
            f"got {BUDGET_SIZE.value}"
        )
    if BUDGET_SIZE.value < SMALLEST_SIZE.value:
        raise checks.UserError(
            f"`budget_size` must be at least `smallest_size` {SMALLEST_SIZE.value}, "
            f"got {BUDGET_SIZE.value}"
        )
    if TARGET_SIZE.value <= BUDGET_SIZE.value:
        raise checks.UserError(
            f"`target_size` must be above `budget_size` {BUDGET_SIZE.value}, "
            f"got {TARGET_SIZE.value}"
        )
    if config.num_kernel_examples > available:
        raise checks.UserError(
            f"`num_kernel_examples` must be at most {available} (the training examples of "
            f"{task.name}), got {config.num_kernel_examples}"
        )
    Halving(gamma=GAMMA.value, tau=TAU.value)  # its own checks
    return nested_sizes(BUDGET_SIZE.value, SMALLEST_SIZE.value)[::-1]


def check_candidates(names: Sequence[str]) -> dict[str, int]:
    """Number of parameters of every candidate; loads each once, so that none fails later."""
    if not names or len(set(names)) < len(names):
        raise checks.UserError(f"`candidates` must be one or more distinct names, got {names}")
    num_params = {}
    for name in names:
        candidate = load_candidate(name)
        assert len(candidate.tokenizer)  # a missing tokenizer must stop the run here
        num_params[name] = candidate.num_params
    return num_params


def settings(names: Sequence[str], task: Task, config: MeasurementConfig) -> dict:
    """All that decides the results."""
    return {
        "candidates": list(names),
        "task": task.name,
        "task_sha256": task.fingerprint,
        "budget_size": BUDGET_SIZE.value,
        "target_size": TARGET_SIZE.value,
        "smallest_size": SMALLEST_SIZE.value,
        "gamma": GAMMA.value,
        "tau": TAU.value,
        **dataclasses.asdict(config),
    }


def fine_tune_work(num_params: int, size: int, config: MeasurementConfig) -> float:
    """Cost of a fine-tune in parameters times examples, if patience never ends it."""
    return float(num_params * size * config.max_epochs)


def total_work(num_params: dict[str, int], sizes: Sequence[int], config: MeasurementConfig):
    """Cost of the run if no candidate stops early."""
    return sum(fine_tune_work(n, size, config) for n in num_params.values() for size in sizes)


def measure(
    name: str, task: Task, sizes: Sequence[int], config: MeasurementConfig, folder: RunFolder,
    progress: Progress,
) -> Measured:  # fmt: skip
    """Everything paid for one candidate; finished pieces are read from the folder."""
    candidate = load_candidate(name)
    measurement = Measurement(candidate, task, config=config)
    slug = slug_of(name)
    progress.at(0.0, f"{name}: kernel")
    spectrum = remember_kernel(measurement, folder, f"kernels/{slug}")
    progress.at(0.0, f"{name}: loss before fine-tuning")
    zero_shot = folder.remember(
        f"cells/{slug}/0.json", lambda: {"test_loss": measurement.zero_shot()}
    )
    losses, num_tokens = {0: zero_shot["test_loss"]}, 0
    search = Halving(gamma=GAMMA.value, tau=TAU.value)
    for size in sizes:
        work = fine_tune_work(candidate.num_params, size, config)
        if search.stopped:
            progress.drop(work)
            continue
        cell = remember_cell(measurement, size, work, folder, f"cells/{slug}/{size}.json", progress)
        losses[size], num_tokens = cell["test_loss"], num_tokens + cell["num_tokens"]
        search = search.observe(size, cell["test_loss"])
    return Measured(losses, search, spectrum, num_tokens, candidate.family.name)


def remember_cell(
    measurement: Measurement, size: int, work: float, folder: RunFolder, piece: str,
    progress: Progress,
) -> dict:  # fmt: skip
    """One fine-tune, made now if the folder does not hold it."""
    name = measurement.candidate.name
    if folder.has(piece):
        progress.skip(work)
        return folder.remember(piece, dict)

    def on_progress(now) -> None:
        doing = f"{name}: {size} examples, validation loss {now.validation_loss:.4f}"
        progress.at(work * now.step / now.max_steps, doing)

    start = time.monotonic()
    result = measurement.fine_tune(size, on_progress=on_progress)
    seconds = round(time.monotonic() - start, 3)
    cell = folder.remember(piece, lambda: {**result._asdict(), "seconds": seconds})
    progress.finish(work, f"{name}: {size} examples, test loss {cell['test_loss']:.4f}")
    return cell


def remember_kernel(measurement: Measurement, folder: RunFolder, path: str) -> NtkSpectrum:
    """The kernel's spectrum; ntk.json is written last and says that ntk.npy is whole."""
    if not folder.has(f"{path}/ntk.json"):
        kernel = measurement.kernel()
        folder.write_array(f"{path}/ntk.npy", kernel.theta)
        folder.write_json(f"{path}/ntk.json", kernel_summary(measurement, kernel))
    stored = folder.remember(f"{path}/ntk.json", dict)["spectrum"]
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


def select(
    names: Sequence[str], num_params: dict[str, int], task: Task, measured: dict[str, Measured],
    config: MeasurementConfig,
) -> Selection:  # fmt: skip
    """Ranks the pool from what was measured."""
    sizes = sorted({size for m in measured.values() for size in m.losses})
    table = LossTable(
        names=tuple(names),
        sizes=np.array(sizes),
        losses=np.array([[measured[n].losses.get(s, np.nan) for s in sizes] for n in names]),
        num_params=np.array([float(num_params[n]) for n in names]),
        family=tuple(measured[n].family for n in names),
        task=task.name,
    )
    return Selection(
        table=table,
        target_size=TARGET_SIZE.value,
        gamma=GAMMA.value,
        tau=TAU.value,
        spectra={name: measured[name].spectrum for name in names},
        searches={name: measured[name].search for name in names},
        flops={
            name: flops_of(num_params[name], measured[name].num_tokens, config) for name in names
        },
        task=task,
        command=command(),
    )


def flops_of(num_params: int, num_tokens: int, config: MeasurementConfig) -> float:
    """FLOPs of a candidate: 6 N per training token; a kernel's gradients and their products."""
    n = config.num_kernel_examples
    kernel = 6.0 * num_params * n * config.max_length + 1.0 * num_params * n * (n + 1)
    return 6.0 * num_params * num_tokens + kernel


def write_results(folder: RunFolder, selection: Selection) -> None:
    """The files that a person reads."""
    write_loss_table(selection.table, folder.path / "losses.csv")
    rows = selection.rows()
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    folder.write_text("ranking.csv", text.getvalue())
    folder.write_bytes("loss_curves.png", figures.loss_curves(
        selection.table, selection.laws(), target_size=selection.target_size))  # fmt: skip
    spectra = {name: s.eigenvalues for name, s in selection.spectra.items()}
    folder.write_bytes("kernel_spectra.png", figures.kernel_spectra(spectra))
    folder.write_text("report.md", selection_markdown(selection))


def show(selection: Selection) -> None:
    """The ranking on the terminal."""
    table = Table(title=f"{selection.table.task}: predicted test loss at {selection.target_size} "
                        "examples (nats per token)")  # fmt: skip
    rows = selection.rows()
    for column in rows[0]:
        justify = "left" if column == "candidate" else "right"
        table.add_column(column.replace("_", " "), justify=justify)
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    # a pipe has no width of its own: rows must not be folded there
    Console(width=None if Console().is_terminal else 160).print(table)


def slug_of(name: str) -> str:
    """A candidate's name as a file name."""
    return name.strip("/").replace("/", "--")


if __name__ == "__main__":
    cli.run(main)
