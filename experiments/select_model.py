r"""Ranks a pool of pretrained language models for one task, paying for a part of the tuning.

    python -m experiments.select_model --candidates=zoo --task=pydoc \
        --budget_size=1600 --target_size=6400 --output_dir=out/pydoc

For each candidate: the exact neural tangent kernel at its pretrained weights (Eq 8), the loss
before fine-tuning, then the losses after it, in one of three orders.

* --order=downwards, Algorithm 1: fine-tunes on the largest subset within the budget, on half of
  it, and so on until the loss leaves the power phase.
* --order=upwards, successive halving: from --smallest_size on, the pool together; once --gamma
  losses are known, only the --keep best by a straight line to the target go on to the next size.
  Dropped candidates are never measured again, need no kernel, and stand last in the ranking.
* --order=all: every size of every candidate.

The law L(D) = B / (F(Theta, t) + D^beta) + E (Eq 10) through the losses that Algorithm 1 accepts is
extrapolated to --target_size.  The rectified law, fitted by the same optimiser, stands beside it
as the control.  The cost of every order is stated beside full tuning: measured for the one that
was run, counted from the same losses for the others.

--output_dir receives ranking.csv, losses.csv (the public table format), orders.csv (FLOPs),
kernels/<name>/ntk.npy with ntk.json, report.html, report.md, loss_curves.png and
kernel_spectra.png; run.json holds settings, versions and seed; cells/ what is finished.  The same
command goes on where a killed run was cut off and ends with the same files; only cells/ holds
durations.

On the bundled candidates and 2 cores, with a budget of 800: 5 minutes.
"""

import dataclasses
import functools
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import flags

from experiments.common import cli, measuring, terminal
from experiments.common.flags import define_gamma, define_keep, define_tau
from experiments.common.measurement_flags import measurement_flags
from experiments.common.progress import Progress, remaining
from experiments.common.run_folder import RUN, RunFolder
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.loop import Loop
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement import jobs as cells
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.report import figures
from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import format_cell, to_markdown
from lensllm_jax.report.selection import selection_report
from lensllm_jax.selection import orders
from lensllm_jax.selection.flops import FlopsLedger, kernel_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import write_loss_table
from lensllm_jax.selection.order_cost import OrderCost, Replay, fine_tune_flops, order_costs
from lensllm_jax.selection.orders import Drop, DropRule, Order
from lensllm_jax.selection.selection import Selection

FLAGS = measurement_flags()
BUDGET_SIZE = flags.DEFINE_integer("budget_size", 1600, "Largest affordable subset, examples.")
TARGET_SIZE = flags.DEFINE_integer("target_size", 6400, "Size to rank at, examples.")
SMALLEST_SIZE = flags.DEFINE_integer("smallest_size", 200, "Smallest subset, examples.")
GAMMA = define_gamma()
TAU = define_tau()
ORDER = flags.DEFINE_enum(
    "order", Order.DOWNWARDS.value, [order.value for order in Order],
    "Sizes from the budget down (Algorithm 1), from the smallest up (successive halving), or all.",
)  # fmt: skip
# of ranking.csv, as many as 80 characters hold
SHOWN = (
    "rank", "candidate", "predicted_loss", "low_90", "high_90", "p_beats_next", "rectified_loss",
    "budget_loss", "dropped_at",
)  # fmt: skip
KEEP = define_keep()


def main(argv: Sequence[str]) -> None:
    """Measures, ranks and reports."""
    del argv
    start = time.monotonic()
    names = FLAGS.candidates()
    config = FLAGS.config()
    task = FLAGS.load_task(names)
    sizes = affordable_sizes(task, config)
    num_params = measuring.check_candidates(names, config)
    folder = RunFolder.open(FLAGS.output_dir, settings(names, task, config))
    work = measuring.total_work(num_params, sizes, config)
    with Progress(total=work, quiet=FLAGS.quiet) as progress:
        pool = Pool(task, config, num_params, folder, progress)
        dropped = measure(names, sizes, pool)
    selection = select(names, sizes, pool, dropped)
    write_results(folder, selection, task)
    show(selection)
    if not FLAGS.quiet:
        show_costs(selection)
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}")


@dataclasses.dataclass
class Measured:
    """What was paid for one candidate.

    Attributes:
        family: Hugging Face's name of its kind.
        losses: size -> test loss, nats per target token; 0 is before fine-tuning.
        num_tokens: size -> tokens trained on.
        spectrum: of its kernel, with the fine-tuning's rate; None before it is asked for.
    """

    family: str
    losses: dict[int, float] = dataclasses.field(default_factory=dict)
    num_tokens: dict[int, int] = dataclasses.field(default_factory=dict)
    spectrum: NtkSpectrum | None = None


class Pool:
    """Measures candidates one piece at a time; finished pieces are read from the folder.

    Attributes:
        task: the text.
        config: the settings.
        num_params: of every candidate.
        paid: candidate -> what was measured of it.
    """

    def __init__(
        self, task: Task, config: MeasurementConfig, num_params: Mapping[str, int],
        folder: RunFolder, progress: Progress,
    ):  # fmt: skip
        self.task, self.config, self.num_params = task, config, num_params
        self.paid: dict[str, Measured] = {}
        self._folder, self._progress = folder, progress
        self._open: tuple[str, Measurement] | None = None
        self._loops: dict[str, Loop] = {}

    def _measurement(self, name: str) -> Measurement:
        """Of one candidate at a time: the last one leaves memory first, but its compiled steps."""
        if self._open is None or self._open[0] != name:
            self._open = None
            measurement = Measurement(load_candidate(name), self.task, config=self.config)
            measurement.loop = self._loops.setdefault(name, measurement.loop)
            self._open = name, measurement
        measurement = self._open[1]
        self.paid.setdefault(name, Measured(measurement.candidate.family.name))
        return measurement

    def kernel(self, name: str) -> None:
        """The kernel's spectrum."""
        path = f"kernels/{measuring.slug_of(name)}"
        spectrum = measuring.remember_kernel(
            self._measurement(name), self._folder, path, self._progress
        )
        self.paid[name].spectrum = spectrum

    def zero_shot(self, name: str) -> None:
        """The loss before fine-tuning."""
        measurement = self._measurement(name)
        loss = measuring.remember_zero_shot(measurement, self._folder, self._progress)
        self.paid[name].losses[0] = loss

    def loss(self, name: str, size: int) -> float:
        """The loss after fine-tuning on ``size`` examples."""
        cell = measuring.remember_cell(
            self._measurement(name), size, self._folder, self._progress,
            checkpoint_seconds=FLAGS.checkpoint_seconds,
        )  # fmt: skip
        paid = self.paid[name]
        paid.losses[size], paid.num_tokens[size] = cell["test_loss"], cell["num_tokens"]
        return paid.losses[size]

    def finish(self, name: str, sizes: Sequence[int]) -> None:
        """Takes what will not be asked for off the work that is left; no fine-tune follows."""
        self._loops.pop(name, None)
        for size in set(sizes) - set(self.paid[name].num_tokens):
            work = cells.fine_tune_work(self.num_params[name], size, self.config)
            self._progress.drop(work)


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
    halving(), drop_rule()  # refuse settings out of range
    return nested_sizes(BUDGET_SIZE.value, SMALLEST_SIZE.value)[::-1]


def halving() -> Halving:
    """Algorithm 1 at its start."""
    return Halving(gamma=GAMMA.value, tau=TAU.value)


def drop_rule() -> DropRule:
    """Which candidates continue, upwards."""
    return DropRule(target_size=TARGET_SIZE.value, keep=KEEP.value, gamma=GAMMA.value)


def settings(names: Sequence[str], task: Task, config: MeasurementConfig) -> dict:
    """All that decides the results."""
    decided = {
        **measuring.task_settings(names, task, config),
        "budget_size": BUDGET_SIZE.value,
        "target_size": TARGET_SIZE.value,
        "smallest_size": SMALLEST_SIZE.value,
        "gamma": GAMMA.value,
        "tau": TAU.value,
    }
    if ORDER.value != Order.DOWNWARDS:  # folders from before there was a choice stay good
        decided["order"] = ORDER.value
    if ORDER.value == Order.UPWARDS or KEEP.value != DropRule.keep:  # orders.csv counts by it
        decided["keep"] = KEEP.value
    return decided


def measure(names: Sequence[str], sizes: Sequence[int], pool: Pool) -> dict[str, Drop]:
    """Everything that the order pays for.

    Args:
        names: the pool.
        sizes: that the budget allows, largest first.
        pool: what measures.

    Returns:
        Candidates that were dropped, and why.
    """
    if ORDER.value == Order.UPWARDS:
        return measure_upwards(names, sizes, pool)
    for name in names:
        pool.kernel(name)
        pool.zero_shot(name)
        loss = functools.partial(pool.loss, name)
        if ORDER.value == Order.ALL:
            for size in sizes:
                loss(size)
        else:
            orders.measure_downwards(sizes, loss, halving())
        pool.finish(name, sizes)
    return {}


def measure_upwards(names: Sequence[str], sizes: Sequence[int], pool: Pool) -> dict[str, Drop]:
    """Successive halving; kernels only of those that reach the budget."""

    def loss(name: str, size: int) -> float:
        if name not in pool.paid:
            pool.zero_shot(name)
        return pool.loss(name, size)

    def on_drop(name: str, drop: Drop) -> None:
        pool.finish(name, sizes)

    dropped = orders.measure_upwards(names, sizes, loss, drop_rule(), on_drop=on_drop)
    for name in names:
        if name not in dropped:
            pool.kernel(name)
    return dropped


def select(
    names: Sequence[str], sizes: Sequence[int], pool: Pool, dropped: dict[str, Drop]
) -> Selection:
    """Ranks the pool from what was measured."""
    paid = {name: pool.paid[name] for name in names}
    table = measuring.loss_table(
        names,
        {name: one.losses for name, one in paid.items()},
        pool.num_params,
        {name: one.family for name, one in paid.items()},
        pool.task,
    )
    ledger = ledger_of(pool, paid)
    return Selection(
        table=table,
        target_size=TARGET_SIZE.value,
        halving=halving(),
        spectra={n: one.spectrum for n, one in paid.items() if one.spectrum is not None},
        ledger=ledger,
        order=Order(ORDER.value),
        dropped=dropped,
        costs=costs_of(sizes, pool, paid, ledger),
    )


def flops_of_kernel(name: str, pool: Pool) -> float:
    """What the kernel of a candidate costs."""
    n = pool.config.num_kernel_examples
    num_tokens = n * pool.config.max_length
    return kernel_flops(pool.num_params[name], num_examples=n, num_tokens=num_tokens)


def ledger_of(pool: Pool, paid: Mapping[str, Measured]) -> FlopsLedger:
    """What was spent on every candidate: its kernel, and its fine-tunes by their tokens."""
    ledger = FlopsLedger()
    for name, one in paid.items():
        if one.spectrum is not None:
            ledger = ledger.kernel(name, flops=flops_of_kernel(name, pool))
        for size, num_tokens in one.num_tokens.items():
            ledger = ledger.train(
                name,
                num_params=pool.num_params[name],
                num_examples=size,
                num_tokens=num_tokens,
            )
    return ledger


def costs_of(
    sizes: Sequence[int], pool: Pool, paid: Mapping[str, Measured], ledger: FlopsLedger
) -> tuple[OrderCost, ...]:
    """What every order costs on this pool."""
    replay = Replay(
        losses={n: {s: x for s, x in one.losses.items() if s} for n, one in paid.items()},
        flops=lambda n, size: fine_tune_flops(pool.num_params[n], size, paid[n].num_tokens),
        kernel=lambda n: flops_of_kernel(n, pool),
    )
    order, rule = Order(ORDER.value), drop_rule()
    return order_costs(order, ledger, replay, sizes, search=halving(), rule=rule)


def write_results(folder: RunFolder, selection: Selection, task: Task) -> None:
    """The files that a person reads."""
    write_loss_table(selection.table, folder.path / "losses.csv")
    folder.write_rows("ranking.csv", [_numbers(row) for row in selection.rows()])
    folder.write_rows("orders.csv", [dataclasses.asdict(cost) for cost in selection.costs])
    folder.write_bytes("loss_curves.png", figures.loss_curves(
        selection.table, selection.laws, target_size=selection.target_size))  # fmt: skip
    spectra = {name: s.eigenvalues for name, s in selection.spectra.items()}
    folder.write_bytes("kernel_spectra.png", figures.kernel_spectra(spectra))
    report = selection_report(selection, task, folder.read_json(RUN))
    folder.write_text("report.md", to_markdown(report))
    folder.write_text("report.html", to_html(report))


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table of numbers: a probability as it is, not as far as it can be told."""
    return {k: float(v) if isinstance(v, float) else v for k, v in row.items()}


def show(selection: Selection) -> None:
    """The ranking on the terminal."""
    title = (
        f"{selection.table.task}: predicted test loss at {selection.target_size} examples "
        "(nats per token)"
    )
    rows = [{column: row[column] for column in SHOWN if column in row} for row in selection.rows()]
    _print(title, rows, texts=("candidate",))
    if selection.ranking.advice is not None:
        print(selection.ranking.advice)


def show_costs(selection: Selection) -> None:
    """What every order costs, on the terminal."""
    title = f"order {selection.order.value}: what it cost, and what the others would have"
    _print(title, selection.cost_rows(), texts=("order", "known"))


def _print(title: str, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> None:
    table = terminal.table(title)
    for column in rows[0]:
        justify: Literal["left", "right"] = "left" if column in texts else "right"
        table.add_column(column.replace("_", " "), justify=justify)
    for row in rows:
        table.add_row(*map(format_cell, row.values()))
    terminal.show(table)


if __name__ == "__main__":
    cli.run(main)
