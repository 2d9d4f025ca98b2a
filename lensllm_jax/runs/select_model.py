"""Selection of a candidate: a pool measured within a budget, ranked, and reported.

``python -m experiments.select_model --help`` says what each order of measuring is, and what
``output_dir`` receives.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import ParameterCounts, parameter_counts, share_met
from lensllm_jax.measurement.jobs import Job, Measurer
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import check_kernel_examples, describe_pool, loss_table
from lensllm_jax.measurement.rates import NUM_EXAMPLES, expected_examples
from lensllm_jax.measurement.rows import row_lengths
from lensllm_jax.measurement.winner import Winner
from lensllm_jax.report import figures
from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import to_markdown
from lensllm_jax.report.sections import Report
from lensllm_jax.report.selection import selection_report
from lensllm_jax.runs.executors import ExecutorSettings
from lensllm_jax.runs.racing import Workers, affordable, ladder, run_race, smallest_of
from lensllm_jax.runs.results import ModelSelection
from lensllm_jax.runs.resume import CandidateRun, Cells, task_settings, test_covariances
from lensllm_jax.runs.run_folder import RUN, RunFolder
from lensllm_jax.runs.settings import WinnerSettings, read_settings
from lensllm_jax.selection import orders
from lensllm_jax.selection.answer import Model
from lensllm_jax.selection.flops import FlopsLedger, kernel_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import write_loss_table
from lensllm_jax.selection.order_cost import OrderCost, Replay, fine_tune_flops, order_costs
from lensllm_jax.selection.orders import Drop, DropRule, Order
from lensllm_jax.selection.race import Race, RaceRule
from lensllm_jax.selection.selection import Selection

KERNELS = ("survivors", "all", "none")

Pool: TypeAlias = dict[str, CandidateRun]


@dataclasses.dataclass(frozen=True)
class SelectionSettings(WinnerSettings, ExecutorSettings):
    """What a selection takes beside the settings of every run."""

    target_size: int = 6400  # size that matters, examples
    budget_size: int | None = None  # largest affordable subset: 1600, half the target in a race
    smallest_size: int | None = None  # smallest subset: 200, or less in a race of a small task
    order: str = Order.RACE.value  # of measuring
    paper: bool = False  # order downwards, Eq 10 decides
    gamma: int = 3  # Algorithm 1: accepted losses before it may stop
    tau: float = 5.0  # Algorithm 1: residual deviations at which it stops
    keep: float = DropRule.keep  # upwards: share of the candidates kept
    confidence: float = 0.95  # P(best) at which a race stops
    max_cost: float | None = None  # of a race, share of tuning all on the target: see affordable
    max_hours: float = math.inf  # of a race, of fine-tuning
    worth: float = 0.0  # of a race, relative loss that tuning all on the target once is worth
    kernels: str = "survivors"  # whose are computed after a race
    all_test_examples: bool = False  # of a race: also where a loss is far above the best

    def plan(self, task: Task, *, num_searched: int = 0) -> "Plan":
        """What these settings mean on a task.

        Args:
            task: as the pool reads it.
            num_searched: examples that the search of each rate trains on.

        Raises:
            UserError: naming the setting at fault.
        """
        for name, values in (("order", [order.value for order in Order]), ("kernels", KERNELS)):
            checks.one_of(name, getattr(self, name), values)
        if self.paper and self.order not in (Order.RACE.value, Order.DOWNWARDS.value):
            raise checks.UserError(
                f"`paper` must stand without another `order`, got {self.order!r}: it runs downwards"
            )
        order = Order.DOWNWARDS if self.paper else Order(self.order)
        if self.executor != "serial" and order is not Order.RACE:
            raise checks.UserError(
                f"`executor` must be serial unless `order` is race, got {self.executor!r} with "
                f"{order.value}"
            )
        max_cost, target_size = self.max_cost, checks.positive("target_size", self.target_size)
        if max_cost is None:
            max_cost = affordable(target_size, num_searched=num_searched)
        budget, smallest = self._sizes(order, len(task.train), max_cost, num_searched)
        self._check_sizes(order, budget, smallest, task)
        race = None
        if order is Order.RACE:
            if not self.max_hours > 0:
                raise checks.UserError(f"`max_hours` must be positive, got {self.max_hours}")
            race = RaceRule(
                target_size=self.target_size,
                sizes=ladder(self.target_size, budget, smallest=smallest),
                confidence=self.confidence,
                max_cost=max_cost,
                num_searched=num_searched,
                worth=self.worth,
                max_seconds=3600 * self.max_hours,
            )
        halving = Halving(gamma=self.gamma, tau=self.tau)
        rule = DropRule(target_size=self.target_size, keep=self.keep, gamma=self.gamma)
        every = race is None or self.all_test_examples
        return Plan(budget, smallest, order, halving, rule, race, self.kernels, every)

    def _sizes(
        self, order: Order, available: int, max_cost: float, num_searched: int
    ) -> tuple[int, int]:
        """The largest and the smallest size."""
        budget, smallest = self.budget_size, self.smallest_size
        if order is Order.RACE:
            budget = min(available, self.target_size // 2) if budget is None else budget
            if smallest is None:
                smallest = smallest_of(
                    self.target_size, max_cost=max_cost, num_searched=num_searched
                )
        return 1600 if budget is None else budget, 200 if smallest is None else smallest

    def _check_sizes(self, order: Order, budget: int, smallest: int, task: Task) -> None:
        if budget > len(task.train):
            raise checks.UserError(
                f"`budget_size` must be at most {len(task.train)} (the training examples of "
                f"{task.name}), got {budget}"
            )
        if budget < smallest:
            raise checks.UserError(
                f"`budget_size` must be at least `smallest_size` {smallest}, got {budget}"
            )
        if self.target_size <= budget:
            raise checks.UserError(
                f"`target_size` must be above `budget_size` {budget}, got {self.target_size}"
            )
        if order is not Order.RACE and budget < 2 * smallest:
            raise checks.UserError(
                f"`budget_size` must be at least twice `smallest_size` {smallest}, for Eq 10 needs "
                f"two sizes above 0, got {budget}"
            )


def select_model(
    candidates: str | Sequence[str],
    task: str | Path | Task = "pydoc",
    *,
    output_dir: str | Path,
    on_progress: Callable[[float, str], object] | None = None,
    **settings: Any,
) -> ModelSelection:
    """Measures a pool within a budget and says which candidate to fine-tune.

    Args:
        candidates: as ``load_candidate`` takes them; "zoo": all bundled.
        task: as ``load_task`` takes it, or one that is loaded.
        output_dir: folder of the run; the same call resumes a run that was stopped.
        on_progress: called with the share of the work that is done and a message, in place of the
            bar.
        **settings: those of ``python -m experiments.select_model --help``, as Python values:
            ``target_size=6400``, ``max_cost=0.05``, ``learning_rate=1e-4``, ``tune="lora"``.

    Returns:
        The answer and all that it comes from; a notebook shows the ranking and the curves.

    Raises:
        UserError: naming the setting at fault, before anything is measured.

    Example:
        >>> select_model(["zoo/gpt2-xs", "zoo/opt-xs"], output_dir="out")  # doctest: +SKIP
        Fine-tune zoo/gpt2-xs: best at 6,400 records with P ...
    """
    given: dict[str, Any] = {"candidates": candidates, "task": task, "output_dir": output_dir}
    given |= {"on_progress": on_progress, **settings}
    run, wanted = read_settings(SelectionSettings, given, call="lensllm_jax.select_model")
    config, summaries = run.measurement, describe_pool(run.names)
    whole = run.load_task(summaries)
    num_searched = expected_examples(config, whole)
    plan = wanted.plan(whole, num_searched=num_searched)
    executor = wanted.executor_config()
    _check_race(plan, summaries)
    check_kernel_examples(whole, config.num_kernel_examples)
    decided = {**task_settings(summaries, whole, config), **plan.settings}
    if executor.kind != "serial":
        decided |= {"threads": executor.threads, "processes": executor.processes}
    winner = wanted.winner(decided, summaries, run)
    folder = run.open_folder(decided, whole, summaries)
    configs = run.fitted(whole, summaries, folder, at_a_time=executor.at_a_time)
    with run.progress(total=_total_work(summaries, plan, config, num_searched)) as progress:
        measurer = Measurer(whole, revisits=plan.order in (Order.UPWARDS, Order.RACE))
        cells, seconds = Cells(folder, progress), run.checkpoint_seconds
        pool = {
            name: CandidateRun(
                summary,
                configs[name],
                measurer,
                cells,
                checkpoint_seconds=seconds,
                winner=winner,
                all_test_examples=plan.all_test_examples,
            )
            for name, summary in summaries.items()
        }
        workers = Workers(executor, whole, cells)
        measured = _measure(pool, plan, workers, quiet=run.quiet)
    selection = _select(pool, plan, whole, config, measured, folder)
    if winner is not None:
        selection = _with_model(selection, pool, winner)
    report = selection_report(selection, whole, folder.read_json(RUN))
    _write_results(folder, selection, report)
    return ModelSelection(selection, folder.path, report)


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


def _check_race(plan: Plan, summaries: Mapping[str, CandidateSummary]) -> None:
    """Refuses a race that cannot start.

    Raises:
        UserError: of one candidate, or with a budget that does not pay for the first size.
    """
    if plan.race is not None:
        Race.start(tuple(summaries), [float(s.num_params) for s in summaries.values()], plan.race)


def _total_work(
    summaries: Mapping[str, CandidateSummary], plan: Plan, config: MeasurementConfig,
    num_searched: int,
) -> float:  # fmt: skip
    """Cost of fine-tuning the pool on every size, if patience never ends a fine-tune."""
    if plan.race is not None:  # of tuning all on the target
        whole = sum(
            Job(one.name, one.num_params, plan.race.target_size, config).work
            for one in summaries.values()
        )
        return plan.race.max_cost * whole
    return sum(
        Job(one.name, one.num_params, sum(plan.sizes), config, searched=num_searched).work
        for one in summaries.values()
    )


class Measured(NamedTuple):
    """What an order did."""

    dropped: dict[str, Drop]  # upwards
    race: Race | None = None  # at its end
    steps: Sequence[Mapping[str, Any]] = ()  # of the race, rows of race.csv


def _measure(pool: Pool, plan: Plan, workers: Workers, *, quiet: bool) -> Measured:
    """Measures all that the order needs."""
    if plan.race is not None:
        race, steps = run_race(pool, plan.race, workers, quiet=quiet)
        for name in kernels_after(race, plan.kernels):
            pool[name].compute_kernel()
        return Measured({}, race, steps)
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
    counts = {
        name: parameter_counts(one.config, one.num_params, config.compute)
        for name, one in summaries.items()
    }
    ledger = _ledger(pool, counts, kernels)
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
        steps=tuple(measured.steps),
        costs=_costs(pool, plan, counts, kernels, ledger),
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
        name: kernel_flops(
            float(one.num_params),
            num_examples=n,
            num_tokens=n * lengths[name].total * share_met(one.config),
        )
        for name, one in summaries.items()
    }


def _ledger(
    pool: Pool, counts: Mapping[str, ParameterCounts], kernels: Mapping[str, float]
) -> FlopsLedger:
    """What was spent on every candidate: its kernel, and its fine-tunes by their tokens."""
    ledger = FlopsLedger()
    for name, candidate in pool.items():
        if candidate.spectrum is not None:
            ledger = ledger.kernel(name, flops=kernels[name])
        trained = list(candidate.num_tokens.items())
        if candidate.search_tokens:
            trained.insert(0, (NUM_EXAMPLES, candidate.search_tokens))
        for size, num_tokens in trained:
            ledger = ledger.train(
                name, num_params=counts[name].trained, num_frozen=counts[name].frozen,
                num_examples=size, num_tokens=float(num_tokens),
            )  # fmt: skip
    return ledger


def _costs(
    pool: Pool,
    plan: Plan,
    counts: Mapping[str, ParameterCounts],
    kernels: Mapping[str, float],
    ledger: FlopsLedger,
) -> tuple[OrderCost, ...]:
    """What every order costs on this pool."""
    others = next(one.num_tokens for one in pool.values() if one.num_tokens)

    def flops(name: str, size: int) -> float:
        trained, frozen = counts[name]
        tokens = pool[name].num_tokens or others  # a candidate that failed has none of its own
        return fine_tune_flops(trained, size, tokens, num_frozen=frozen)

    losses = {n: {s: x for s, x in c.losses.items() if s > 0} for n, c in pool.items()}
    replay = Replay(losses=losses, flops=flops, kernel=kernels.__getitem__)
    return order_costs(plan.order, ledger, replay, plan.sizes, search=plan.halving, rule=plan.rule)


def _write_results(folder: RunFolder, selection: Selection, report: Report) -> None:
    """The files that a person reads."""
    write_loss_table(selection.table, folder.path / "losses.csv")
    folder.write_rows("ranking.csv", [_numbers(row) for row in selection.rows()])
    folder.write_rows("orders.csv", [dataclasses.asdict(cost) for cost in selection.costs])
    folder.write_bytes("loss_curves.png", figures.png(*figures.draw_loss_curves(
        selection.table, selection.laws, target_size=selection.target_size,
        predicted=selection.verdict.predicted, intervals=selection.verdict.intervals,
    )))  # fmt: skip
    spectra = {name: s.eigenvalues for name, s in selection.spectra.items()}
    if spectra:
        figure = figures.draw_kernel_spectra(spectra)
        folder.write_bytes("kernel_spectra.png", figures.png(*figure))
    folder.write_json("answer.json", selection.answer.as_dict())
    folder.write_text("report.md", to_markdown(report))
    folder.write_text("report.html", to_html(report))


def _numbers(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row for a table of numbers: a probability unrounded."""
    return {k: float(v) if isinstance(v, float) else v for k, v in row.items()}
