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
with ntk.json, report.html, report.md, loss_curves.png and kernel_spectra.png; run.json holds
settings, versions and seed; cells/ what is finished.  The same command goes on where a killed run
was cut off and ends with the same files; only cells/ holds durations.

On the bundled candidates and 2 cores, with a budget of 800: 5 minutes.
"""

import dataclasses
import time
from collections.abc import Sequence

from absl import flags
from rich.console import Console
from rich.table import Table

from experiments import cli, measuring
from experiments.progress import Progress, remaining
from experiments.run_folder import RUN, RunFolder, command
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import Task
from lensllm_jax.report import figures
from lensllm_jax.report.pages import selection_page
from lensllm_jax.report.selection import Selection, selection_markdown
from lensllm_jax.scaling.laws import NtkSpectrum
from lensllm_jax.selection.flops import FlopsLedger, kernel_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import write_loss_table
from lensllm_jax.selection.measurement import Measurement, MeasurementConfig

BUDGET_SIZE = flags.DEFINE_integer("budget_size", 1600, "Largest affordable subset, examples.")
TARGET_SIZE = flags.DEFINE_integer("target_size", 6400, "Size to rank at, examples.")
SMALLEST_SIZE = flags.DEFINE_integer("smallest_size", 200, "Smallest subset, examples.")
GAMMA = flags.DEFINE_integer("gamma", 3, "Algorithm 1: accepted losses before it may stop.")
TAU = flags.DEFINE_float("tau", 5.0, "Algorithm 1: residual deviations at which it stops.")


def main(argv: Sequence[str]) -> None:
    """Measures, ranks and reports."""
    del argv
    start = time.monotonic()
    names = measuring.candidate_names()
    config = measuring.measurement_config()
    task = measuring.load_task_for(names)
    sizes = affordable_sizes(task, config)
    num_params = measuring.check_candidates(names, config)
    folder = RunFolder.open(measuring.OUTPUT_DIR.value, settings(names, task, config))
    work = measuring.total_work(num_params, sizes, config)
    with Progress(total=work, quiet=measuring.QUIET.value) as progress:
        measured = {}
        for name in names:
            measured[name] = measure(name, task, sizes, config, folder, progress)
    selection = select(names, num_params, task, measured, config)
    write_results(folder, selection)
    show(selection)
    if not measuring.QUIET.value:
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}")


@dataclasses.dataclass(frozen=True)
class Measured:
    """What was paid for one candidate.

    Attributes:
        losses: size -> test loss, nats per target token; 0 is before fine-tuning.
        search: Algorithm 1 at its end.
        spectrum: of its kernel, with the fine-tuning's rate.
        num_tokens: size -> tokens trained on.
        family: Hugging Face's name of its kind.
    """

    losses: dict[int, float]
    search: Halving
    spectrum: NtkSpectrum
    num_tokens: dict[int, int]
    family: str


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
    measuring.check_kernel_examples(task, config)
    Halving(gamma=GAMMA.value, tau=TAU.value)  # its own checks
    return nested_sizes(BUDGET_SIZE.value, SMALLEST_SIZE.value)[::-1]


def settings(names: Sequence[str], task: Task, config: MeasurementConfig) -> dict:
    """All that decides the results."""
    return {
        **measuring.task_settings(names, task, config),
        "budget_size": BUDGET_SIZE.value,
        "target_size": TARGET_SIZE.value,
        "smallest_size": SMALLEST_SIZE.value,
        "gamma": GAMMA.value,
        "tau": TAU.value,
    }


def measure(
    name: str, task: Task, sizes: Sequence[int], config: MeasurementConfig, folder: RunFolder,
    progress: Progress,
) -> Measured:  # fmt: skip
    """Everything paid for one candidate; finished pieces are read from the folder."""
    candidate = load_candidate(name)
    measurement = Measurement(candidate, task, config=config)
    kernel_path = f"kernels/{measuring.slug_of(name)}"
    spectrum = measuring.remember_kernel(measurement, folder, kernel_path, progress)
    losses = {0: measuring.remember_zero_shot(measurement, folder, progress)}
    num_tokens: dict[int, int] = {}
    search = Halving(gamma=GAMMA.value, tau=TAU.value)
    for size in sizes:
        if search.stopped:
            progress.drop(measuring.fine_tune_work(candidate.num_params, size, config))
            continue
        cell = measuring.remember_cell(measurement, size, folder, progress)
        losses[size], num_tokens[size] = cell["test_loss"], cell["num_tokens"]
        search = search.observe(size, cell["test_loss"])
    return Measured(losses, search, spectrum, num_tokens, candidate.family.name)


def select(
    names: Sequence[str], num_params: dict[str, int], task: Task, measured: dict[str, Measured],
    config: MeasurementConfig,
) -> Selection:  # fmt: skip
    """Ranks the pool from what was measured."""
    table = measuring.loss_table(
        names,
        {name: measured[name].losses for name in names},
        num_params,
        {name: measured[name].family for name in names},
        task,
    )
    return Selection(
        table=table,
        target_size=TARGET_SIZE.value,
        gamma=GAMMA.value,
        tau=TAU.value,
        spectra={name: measured[name].spectrum for name in names},
        searches={name: measured[name].search for name in names},
        ledger=ledger_of(num_params, measured, config),
        task=task,
        command=command(),
    )


def ledger_of(
    num_params: dict[str, int], measured: dict[str, Measured], config: MeasurementConfig
) -> FlopsLedger:
    """What was spent on every candidate: its kernel, and its fine-tunes by their tokens."""
    ledger = FlopsLedger()
    n = config.num_kernel_examples
    for name, spent in measured.items():
        size_of = {"num_params": num_params[name]}
        flops = kernel_flops(**size_of, num_examples=n, num_tokens=n * config.max_length)
        ledger = ledger.kernel(name, flops=flops)
        for size, num_tokens in spent.num_tokens.items():
            ledger = ledger.train(name, **size_of, num_examples=size, num_tokens=num_tokens)
    return ledger


def write_results(folder: RunFolder, selection: Selection) -> None:
    """The files that a person reads."""
    write_loss_table(selection.table, folder.path / "losses.csv")
    folder.write_rows("ranking.csv", selection.rows())
    folder.write_bytes("loss_curves.png", figures.loss_curves(
        selection.table, selection.laws(), target_size=selection.target_size))  # fmt: skip
    spectra = {name: s.eigenvalues for name, s in selection.spectra.items()}
    folder.write_bytes("kernel_spectra.png", figures.kernel_spectra(spectra))
    folder.write_text("report.md", selection_markdown(selection))
    folder.write_text("report.html", selection_page(selection, folder.read_json(RUN)))


def show(selection: Selection) -> None:
    """The ranking on the terminal."""
    table = Table(title=f"{selection.table.task}: predicted test loss at {selection.target_size} "
                        "examples (nats per token)")  # fmt: skip
    rows = selection.rows()
    for column in rows[0]:
        is_text = column == "candidate"
        table.add_column(column.replace("_", " "), justify="left" if is_text else "right")
    for row in rows:
        table.add_row(*(f"{v:.4f}" if isinstance(v, float) else str(v) for v in row.values()))
    # a pipe has no width of its own: rows must not be folded there
    Console(width=None if Console().is_terminal else 160).print(table)


if __name__ == "__main__":
    cli.run(main)
