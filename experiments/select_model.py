r"""Ranks a pool of pretrained language models for one task at a part of the cost of full tuning.

    python -m experiments.select_model --candidates=zoo --task=pydoc \
        --budget_size=1600 --target_size=6400 --output_dir=out/pydoc

The answer is one sentence: which candidate to fine-tune, with which probability it is the best at
--target_size, what that costs to know. What is measured depends on the order.

* --order=race, the default: all candidates run the first sizes; then each fine-tune is the one
  that lowers the expected regret most for its cost, by the posterior of all losses, which drops
  whom it cannot believe any more.  It stops at --confidence, at --max_cost (a share of tuning all
  on the target size) or --max_hours, or when the best fine-tune is not worth its cost (--worth).
  The exact neural tangent kernel (Eq 8) of those that reached the last two sizes (--kernels) gives
  Eq 10 beside the posterior.
* --order=downwards, Algorithm 1 (--paper: with Eq 10 to decide): fine-tunes on the largest subset
  within the budget, on half of it, and so on until the loss leaves the power phase.
* --order=upwards, successive halving: from --smallest_size on, the pool together; once --gamma
  losses are known, only the --keep best by a straight line to the target reach the next size.
  Dropped candidates are never measured again, need no kernel, and stand last in the ranking.
* --order=all: every size of every candidate.

In the other orders every kernel of a ranked candidate is computed, and the law
L(D) = B / (F(Theta, t) + D^beta) + E (Eq 10) through the losses that Algorithm 1 accepts, at
--target_size, decides.  The rectified law, fitted by the same optimizer, is the
control.  The cost of every order is compared with full tuning: measured for the order that was run,
counted from the same losses for the others.

--output_dir receives answer.json, ranking.csv, losses.csv (the public table format), orders.csv
(FLOPs), kernels/<name>/ntk.npy with ntk.json, report.html, report.md, loss_curves.png and
kernel_spectra.png; run.json holds settings, versions and seed; cells/ what is finished.  The same
command resumes a killed run and ends with the same files; only cells/ holds durations.
--save_winner=FOLDER receives the pick's weights after its largest fine-tune, at the best step.

Seven bundled candidates, --paper with a budget of 800: 10 minutes on 2 cores that were busy beside.
"""

import dataclasses
import itertools
import math
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from absl import flags

from experiments.common import cli
from experiments.common.flags import (
    define_confidence,
    define_gamma,
    define_keep,
    define_save_adapter,
    define_save_winner,
    define_tau,
)
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import Task
from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.measurement.jobs import Job, Measurer
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import check_kernel_examples, describe_pool, loss_table
from lensllm_jax.measurement.rows import row_lengths
from lensllm_jax.measurement.winner import Winner
from lensllm_jax.report import figures
from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import format_cell, to_markdown
from lensllm_jax.report.selection import selection_report
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress, remaining
from lensllm_jax.runs.racing import ladder, run_race, smallest_of
from lensllm_jax.runs.resume import CandidateRun, Cells, task_settings, test_covariances
from lensllm_jax.runs.run_folder import RUN, RunFolder
from lensllm_jax.selection import orders
from lensllm_jax.selection.answer import Model
from lensllm_jax.selection.flops import FlopsLedger, kernel_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import write_loss_table
from lensllm_jax.selection.order_cost import OrderCost, Replay, fine_tune_flops, order_costs
from lensllm_jax.selection.orders import Drop, DropRule, Order
from lensllm_jax.selection.race import Race, RaceRule
from lensllm_jax.selection.selection import Selection

FLAGS = measurement_flags()
BUDGET_SIZE = flags.DEFINE_integer(
    "budget_size", None, "Largest affordable subset, examples: 1600, half the target in a race."
)
TARGET_SIZE = flags.DEFINE_integer("target_size", 6400, "Size to rank at, examples.")
SMALLEST_SIZE = flags.DEFINE_integer(
    "smallest_size", None, "Smallest subset, examples: 200, or less in a race of a small task."
)
GAMMA = define_gamma()
TAU = define_tau()
ORDER = flags.DEFINE_enum(
    "order", Order.RACE.value, [order.value for order in Order],
    "A race; sizes from the budget down (Algorithm 1), from the smallest up (successive halving), "
    "or all.",
)  # fmt: skip
PAPER = flags.DEFINE_bool("paper", False, "As the paper: --order=downwards, Eq 10 decides.")
CONFIDENCE = define_confidence()
MAX_COST = flags.DEFINE_float("max_cost", 0.1, "Of a race, share of tuning all on the target.")
MAX_HOURS = flags.DEFINE_float("max_hours", math.inf, "Of a race: hours of fine-tuning.")
WORTH = flags.DEFINE_float(
    "worth", 0.0, "Of a race: relative loss that tuning all on the target once is worth."
)
KERNELS = flags.DEFINE_enum(
    "kernels", "survivors", ["survivors", "all", "none"], "Whose kernels are computed after a race."
)
ALL_TEST_EXAMPLES = flags.DEFINE_bool(
    "all_test_examples", False,
    "Of a race: evaluate all, also where 128, 256, ... of them put a loss far above the best.",
)  # fmt: skip
KEEP = define_keep()
SAVE_WINNER = define_save_winner()
SAVE_ADAPTER = define_save_adapter()
# columns of ranking.csv on the terminal, as many as 80 characters hold
SHOWN = (
    "rank", "candidate", "predicted_loss", "low_90", "high_90", "p_beats_next", "rectified_loss",
    "budget_loss", "dropped_at",
)  # fmt: skip
SHOWN_OF_RACE = (
    "rank", "candidate", "p_best", "predicted_loss", "low_90", "high_90", "lensllm_loss",
    "largest_size", "dropped_at",
)  # fmt: skip

Pool: TypeAlias = dict[str, CandidateRun]


class Plan(NamedTuple):
    """Which sizes are measured, in which order, and at which size candidates are compared."""

    budget_size: int  # examples
    smallest_size: int  # examples
    order: Order
    halving: Halving  # of the downward order, before its first loss
    rule: DropRule  # of the upward order, with the target size
    race: RaceRule | None  # of a race
    kernels: str  # whose are computed after a race
    all_test_examples: bool = True  # or, in a race, as many as a loss needs

    @property
    def sizes(self) -> tuple[int, ...]:
        """The doubling sizes within the budget, largest first."""
        if self.race is not None:
            return self.race.sizes[::-1]
        return nested_sizes(self.budget_size, self.smallest_size)[::-1]

    @property
    def settings(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "budget_size": self.budget_size,
            "target_size": self.rule.target_size,
            "smallest_size": self.smallest_size,
            "order": self.order.value,
            "gamma": self.halving.gamma,
            "tau": self.halving.tau,
            "keep": self.rule.keep,
            **self._race_settings,
        }

    @property
    def _race_settings(self) -> dict[str, Any]:
        if self.race is None:
            return {}
        one = self.race
        hours = one.max_seconds / 3600 if math.isfinite(one.max_seconds) else None
        return {
            "sizes": list(one.sizes),
            "confidence": one.confidence,
            "max_cost": one.max_cost,
            "max_hours": hours,
            "worth": one.worth,
            "kernels": self.kernels,
            "all_test_examples": self.all_test_examples,
        }


def main(argv: Sequence[str]) -> None:
    """Measures, ranks and reports."""
    del argv
    start = time.monotonic()
    config = FLAGS.config()
    summaries = describe_pool(FLAGS.candidates())
    task = FLAGS.load_task(summaries)
    plan = plan_of_flags(task)
    check_race(plan, summaries)
    check_kernel_examples(task, config.num_kernel_examples)
    settings = {**task_settings(summaries, task, config), **plan.settings}
    winner = winner_of_flags(settings, summaries, config)
    folder = FLAGS.open_folder(settings, task, summaries)
    with Progress(total=_total_work(summaries, plan, config), quiet=FLAGS.quiet) as progress:
        measurer = Measurer(task, revisits=plan.order in (Order.UPWARDS, Order.RACE))
        cells, seconds = Cells(folder, progress), FLAGS.checkpoint_seconds
        pool = {
            name: CandidateRun(
                summary,
                config,
                measurer,
                cells,
                checkpoint_seconds=seconds,
                winner=winner,
                all_test_examples=plan.all_test_examples,
            )
            for name, summary in summaries.items()
        }
        measured = _measure(pool, plan)
    selection = _select(pool, plan, task, config, measured, folder)
    if winner is not None:
        selection = _with_model(selection, pool, winner)
    _write_results(folder, selection, task)
    show(selection)
    if not FLAGS.quiet:
        _show_costs(selection)
        print(f"\n{folder.path}: done in {remaining(time.monotonic() - start)}")


def plan_of_flags(task: Task) -> Plan:
    """The plan that the flags describe.

    Raises:
        UserError: naming the flag at fault.
    """
    if PAPER.value and ORDER.value not in (Order.RACE, Order.DOWNWARDS):
        raise checks.UserError(
            f"`paper` must stand without another `order`, got {ORDER.value!r}: it runs downwards"
        )
    order, target = Order.DOWNWARDS if PAPER.value else Order(ORDER.value), TARGET_SIZE.value
    available = len(task.train)
    budget, smallest = _sizes_of_flags(order, target, available)
    if budget > available:
        raise checks.UserError(
            f"`budget_size` must be at most {available} (the training examples of {task.name}), "
            f"got {budget}"
        )
    if budget < smallest:
        raise checks.UserError(
            f"`budget_size` must be at least `smallest_size` {smallest}, got {budget}"
        )
    if target <= budget:
        raise checks.UserError(f"`target_size` must be above `budget_size` {budget}, got {target}")
    halving = Halving(gamma=GAMMA.value, tau=TAU.value)
    rule = DropRule(target_size=target, keep=KEEP.value, gamma=GAMMA.value)
    race = None
    if order is Order.RACE:
        race = RaceRule(
            target_size=target,
            sizes=ladder(target, budget, smallest=smallest),
            confidence=CONFIDENCE.value,
            max_cost=MAX_COST.value,
            worth=WORTH.value,
            max_seconds=3600 * MAX_HOURS.value,
        )
    every = race is None or ALL_TEST_EXAMPLES.value
    return Plan(budget, smallest, order, halving, rule, race, KERNELS.value, every)


def winner_of_flags(
    run: Mapping[str, Any], pool: Mapping[str, CandidateSummary], config: MeasurementConfig
) -> Winner | None:
    """Where the winner goes, if it is to be saved.

    Raises:
        UserError: naming the flag at fault.
    """
    if SAVE_WINNER.value is None:
        if SAVE_ADAPTER.value:
            raise checks.UserError("`save_adapter` must go with `save_winner`, got no folder")
        return None
    winner = Winner(Path(SAVE_WINNER.value), run, adapter=SAVE_ADAPTER.value)
    num_params = {name: one.num_params for name, one in pool.items()}
    winner.check(num_params, config.compute, Path(FLAGS.output_dir))
    return winner


def _sizes_of_flags(order: Order, target: int, available: int) -> tuple[int, int]:
    """The largest and the smallest size, where a flag does not say."""
    budget, smallest = BUDGET_SIZE.value, SMALLEST_SIZE.value
    if order is Order.RACE:
        budget = min(available, target // 2) if budget is None else budget
        if smallest is None:
            smallest = smallest_of(target, max_cost=MAX_COST.value)
    return 1600 if budget is None else budget, 200 if smallest is None else smallest


def check_race(plan: Plan, summaries: Mapping[str, CandidateSummary]) -> None:
    """Refuses a race that cannot start.

    Raises:
        UserError: of one candidate, or with a budget that does not pay for the first size.
    """
    if plan.race is not None:
        Race.start(tuple(summaries), [float(s.num_params) for s in summaries.values()], plan.race)


def _total_work(
    summaries: Mapping[str, CandidateSummary], plan: Plan, config: MeasurementConfig
) -> float:
    """Cost of fine-tuning the pool on every size, if patience never ends a fine-tune."""
    if plan.race is not None:  # of tuning all on the target
        whole = sum(
            Job(one.name, one.num_params, plan.race.target_size, config).work
            for one in summaries.values()
        )
        return plan.race.max_cost * whole
    pairs = itertools.product(summaries.values(), plan.sizes)
    return sum(Job(one.name, one.num_params, size, config).work for one, size in pairs)


class Measured(NamedTuple):
    """What an order did."""

    dropped: dict[str, Drop]  # upwards
    race: Race | None = None  # at its end


def _measure(pool: Pool, plan: Plan) -> Measured:
    """Measures all that the order needs."""
    if plan.race is not None:
        race = run_race(pool, plan.race, quiet=FLAGS.quiet)
        for name in kernels_after(race, plan.kernels):
            pool[name].compute_kernel()
        return Measured({}, race)
    if plan.order is Order.UPWARDS:
        return Measured(_measure_upwards(pool, plan))
    for candidate in pool.values():
        candidate.compute_kernel()
        candidate.measure_loss(0)
        if plan.order is Order.ALL:
            for size in plan.sizes:
                candidate.measure_loss(size)
        else:
            orders.measure_downwards(plan.sizes, candidate.measure_loss, plan.halving)
        candidate.finish(plan.sizes)
    return Measured({})


def kernels_after(race: Race, whose: str) -> tuple[str, ...]:
    """The candidates whose kernels are computed: survivors reached the last two sizes."""
    if whose == "none":
        return ()
    reached = sorted({size for size in race.largest.values() if size > 0})[-2:]
    if whose == "all":
        return tuple(name for name in race.names if race.largest[name] > 0)
    return tuple(name for name in race.running if race.largest[name] in reached)


def _measure_upwards(pool: Pool, plan: Plan) -> dict[str, Drop]:
    """Successive halving; kernels only of the candidates that reach the budget."""

    def loss(name: str, size: int) -> float:
        if not pool[name].losses:
            pool[name].measure_loss(0)
        return pool[name].measure_loss(size)

    def on_drop(name: str, drop: Drop) -> None:
        pool[name].forget_weights()
        pool[name].finish(plan.sizes)

    dropped = orders.measure_upwards(tuple(pool), plan.sizes, loss, plan.rule, on_drop=on_drop)
    for name, candidate in pool.items():
        if name not in dropped:
            candidate.compute_kernel()
    return dropped


def _select(
    pool: Pool, plan: Plan, task: Task, config: MeasurementConfig, measured: Measured,
    folder: RunFolder,
) -> Selection:  # fmt: skip
    """Ranks the pool from what was measured."""
    summaries = {name: candidate.summary for name, candidate in pool.items()}
    losses = {name: candidate.losses for name, candidate in pool.items()}
    kernels = _kernel_costs(summaries, task, config)
    ledger = _ledger(pool, kernels)
    table = loss_table(summaries, losses, task)
    return Selection(
        table=table,
        target_size=plan.rule.target_size,
        halving=plan.halving,
        spectra={n: c.spectrum for n, c in pool.items() if c.spectrum is not None},
        ledger=ledger,
        order=plan.order,
        dropped=measured.dropped,
        race=measured.race,
        costs=_costs(pool, plan, kernels, ledger),
        loss_covariance=test_covariances(folder, table),
    )


def _with_model(selection: Selection, pool: Pool, winner: Winner) -> Selection:
    """With the pick's weights in their folder; those of all others are removed."""
    size = pool[selection.verdict.selected].save_weights(winner)
    for candidate in pool.values():
        candidate.forget_weights()
    return dataclasses.replace(selection, model=Model(str(winner.folder), size))


def _kernel_costs(
    summaries: Mapping[str, CandidateSummary], task: Task, config: MeasurementConfig
) -> dict[str, float]:
    """FLOPs of each candidate's kernel, whether or not it was computed."""
    n = config.num_kernel_examples
    lengths = {
        name: row_lengths(task, one, chat_template=config.chat_template)
        for name, one in summaries.items()
    }
    return {
        name: kernel_flops(one.num_params, num_examples=n, num_tokens=n * lengths[name].total)
        for name, one in summaries.items()
    }


def _ledger(pool: Pool, kernels: Mapping[str, float]) -> FlopsLedger:
    """What was spent on every candidate: its kernel, and its fine-tunes by their tokens."""
    ledger = FlopsLedger()
    for name, candidate in pool.items():
        if candidate.spectrum is not None:
            ledger = ledger.kernel(name, flops=kernels[name])
        for size, num_tokens in candidate.num_tokens.items():
            num_params = candidate.summary.num_params
            ledger = ledger.train(
                name, num_params=num_params, num_examples=size, num_tokens=num_tokens
            )
    return ledger


def _costs(
    pool: Pool, plan: Plan, kernels: Mapping[str, float], ledger: FlopsLedger
) -> tuple[OrderCost, ...]:
    """What every order costs on this pool."""

    def flops(name: str, size: int) -> float:
        return fine_tune_flops(pool[name].summary.num_params, size, pool[name].num_tokens)

    losses = {n: {s: x for s, x in c.losses.items() if s > 0} for n, c in pool.items()}
    replay = Replay(losses=losses, flops=flops, kernel=kernels.__getitem__)
    return order_costs(plan.order, ledger, replay, plan.sizes, search=plan.halving, rule=plan.rule)


def _write_results(folder: RunFolder, selection: Selection, task: Task) -> None:
    """The files that a person reads."""
    write_loss_table(selection.table, folder.path / "losses.csv")
    folder.write_rows("ranking.csv", [_numbers(row) for row in selection.rows()])
    folder.write_rows("orders.csv", [dataclasses.asdict(cost) for cost in selection.costs])
    folder.write_bytes("loss_curves.png", figures.png(*figures.draw_loss_curves(
        selection.table, selection.laws, target_size=selection.target_size)))  # fmt: skip
    spectra = {name: s.eigenvalues for name, s in selection.spectra.items()}
    if spectra:
        figure = figures.draw_kernel_spectra(spectra)
        folder.write_bytes("kernel_spectra.png", figures.png(*figure))
    folder.write_json("answer.json", selection.answer.as_dict())
    report = selection_report(selection, task, folder.read_json(RUN))
    folder.write_text("report.md", to_markdown(report))
    folder.write_text("report.html", to_html(report))


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table of numbers: a probability unrounded."""
    return {k: float(v) if isinstance(v, float) else v for k, v in row.items()}


def show(selection: Selection) -> None:
    """The ranking on the terminal."""
    title = (
        f"{selection.table.task}: predicted test loss at {selection.target_size} examples "
        f"({LOSS_UNIT})"
    )
    shown = SHOWN if selection.race is None else SHOWN_OF_RACE
    rows = [{column: row[column] for column in shown if column in row} for row in selection.rows()]
    _print(title, rows, texts=("candidate",))
    if selection.race is None and selection.ranking.advice is not None:
        terminal.show(str(selection.ranking.advice))
    terminal.show_box(str(selection.answer))


def _show_costs(selection: Selection) -> None:
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
