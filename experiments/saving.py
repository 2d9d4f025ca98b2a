r"""FLOPs to reach a given PearCorr: what a selector saves against full tuning (Table 4, Figure 4).

    python -m experiments.saving \
        --curves=lin2024/flan,experiments/results/pydoc_losses.csv \
        --ledger=,experiments/results/pydoc_ledger.csv \
        --output_dir=out/saving

Every selector ranks at every budget that a table has, at the cost of the fine-tunes that it reads:
what the table's --ledger counted (one per table, in the order of --curves), or 6 N D tokens at
--tokens_per_example and one pass, where the ledger is left empty (shares of full tuning do not
depend on the two).  Full tuning is every candidate on the largest size; by definition its PearCorr
and relative accuracy are 100.  `upwards` is successive halving on the table
(lensllm_jax.selection.orders), scored by its lines.

--output_dir receives

* saving.csv: a row per task, selector and budget: FLOPs, percent of full tuning, both metrics, the
  90 % interval of PearCorr, and PearCorr minus that of `subtuning` at the budget that costs nearest
  to the same, with its interval.  Intervals resample the candidates (paired bootstrap): they say
  whether another pool of this kind would show the same, not what another seed would.
* saving_levels.csv: the cheapest budget at which a selector reaches a PearCorr and does not fall
  below it at any larger one; empty where there is none.
* saving.png: both metrics against percent of full tuning, with the Pareto front of all selectors.

23 seconds of one core for four tables.  Expected: at 5 % of full tuning the best PearCorr is 70 on
FLAN (`pooled`), 94 on Gigaword and, by the plain loss after 200 examples, 93 on pydoc, where no
selector is distinguishably better than that loss; `upwards` finds the best candidate of FLAN for
5 %.
"""

import csv
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float, Int

from experiments.common import cli, paper_plots
from experiments.common.curves import digests, read_curves, selectors_of
from experiments.common.flags import (
    define_curves,
    define_keep,
    define_output_dir,
    define_selectors,
    define_tokens_per_example,
)
from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, read_rows
from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.orders import DropRule, measure_upwards
from lensllm_jax.selection.rank import rank

CURVES = define_curves()
LEDGER = flags.DEFINE_list(
    "ledger", [], "What fine-tunes cost (CSV: candidate, size, flops), one per table; empty: 6 N D."
)
SELECTED = define_selectors()
LEVELS = flags.DEFINE_list(
    "levels",
    ["78.4", "85.8", "90", "95", "98"],
    "PearCorr to reach; the paper's two come first.",
)
OUTPUT_DIR = define_output_dir()
TOKENS = define_tokens_per_example("Where no ledger counted them.")
KEEP = define_keep()

CONTROL, UPWARDS = "subtuning", "upwards"
NUM_RESAMPLES, LEVEL, SEED = 2000, 0.9, 0

Flops = Callable[[str, int], float]  # candidate, size -> what that fine-tune costs
Scores = Float[np.ndarray, " num_candidates"]


@dataclasses.dataclass(frozen=True)
class Point:
    """One selector at one budget."""

    task: str
    selector: str
    budget: int  # examples
    flops: float  # of the fine-tunes that it reads
    scores: Scores  # as PearCorr takes them; NaN where it has none
    selected: str  # its pick


def main(_: Sequence[str]) -> None:
    """Ranks by every selector at every budget; writes what it cost and how good it was."""
    levels = [_level(text) for text in LEVELS.value]
    names = selectors_of(SELECTED.value)
    cost = TrainingCost(tokens_per_example=TOKENS.value)
    tables = read_curves(CURVES.value)
    for table in tables:
        _check(table)
    prices = [
        _price_of(table, _read_ledger(path) if path else {}, cost)
        for table, path in zip(tables, _ledgers_of(tables), strict=True)
    ]
    rule = DropRule(target_size=1, keep=KEEP.value)
    folder = RunFolder.open(OUTPUT_DIR.value, _settings(names, levels))
    rows: list[dict[str, Any]] = []
    for table, price in zip(tables, prices, strict=True):
        points = _points_of(table, names, price, rule)
        rows += _rows_of(table, points, _full_tuning(table, price))
    folder.write_rows("saving.csv", [_written(row) for row in rows])
    folder.write_bytes(
        "saving.png", paper_plots.saving_figure(read_rows(folder.path / "saving.csv"))
    )
    reached = [row for table in tables for row in levels_of(table.task, rows, levels)]
    folder.write_rows("saving_levels.csv", [_written(row) for row in reached])
    for table in tables:
        _show(table.task, levels, reached)
    print(f"written to {folder.path}")


def _level(text: str) -> float:
    """A PearCorr to reach."""
    try:
        level = float(text)
    except ValueError:
        level = float("nan")
    if not 0 < level < 100:
        raise checks.UserError(f"`levels` must be numbers above 0 and below 100, got {text!r}")
    return level


def _settings(names: Sequence[str], levels: Sequence[float]) -> dict[str, Any]:
    """All that decides the results."""
    return {
        "files": digests([*CURVES.value, *filter(None, LEDGER.value)]),
        "selectors": list(names),
        "levels": list(levels),
        "tokens_per_example": TOKENS.value,
        "keep": KEEP.value,
        "seed": SEED,  # of the resampled candidates
    }


def _check(table: LossTable) -> None:
    """Refuses a table without a choice, a budget below full tuning, or one of its losses."""
    budgets = _budgets_of(table)
    if len(table.names) < 3 or not budgets:
        raise checks.UserError(
            f"{table.task} must hold three or more candidates and two or more sizes above 0, "
            f"got {len(table.names)} and {len(budgets) + 1}"
        )
    for size in (*budgets, int(table.sizes[-1])):
        table.column(size)


def _ledgers_of(tables: Sequence[LossTable]) -> list[str]:
    """The ledger of each table, empty where none was counted."""
    if LEDGER.value and len(LEDGER.value) != len(tables):
        raise checks.UserError(
            f"`ledger` must name one per table, got {len(LEDGER.value)} for {len(tables)} tables: "
            "leave a name empty where none was counted, as in --ledger=,ledger.csv"
        )
    return LEDGER.value or [""] * len(tables)


def _read_ledger(path: str) -> dict[tuple[str, int], float]:
    """(candidate, size) -> FLOPs, from a CSV with the columns candidate, size and flops."""
    try:
        with open(path, encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        return {(row["candidate"], int(row["size"])): float(row["flops"]) for row in rows}
    except (OSError, UnicodeDecodeError, KeyError, ValueError, TypeError) as error:
        raise checks.UserError(
            f"`ledger` must be a CSV with candidate, size and flops, got {path}: {error!r}"
        ) from None


def _price_of(
    table: LossTable, counted: Mapping[tuple[str, int], float], cost: TrainingCost
) -> Flops:
    """FLOPs of a fine-tune: counted by the ledger for the whole table, or assumed for all of it.

    Raises:
        UserError: if the ledger holds a part of the table, or a number of parameters is unknown.
    """
    num_params = dict(zip(table.names, table.num_params.tolist(), strict=True))
    cells = [(name, int(size)) for name in table.names for size in table.sizes if size > 0]
    missing = [cell for cell in cells if cell not in counted]
    if not missing:
        return lambda name, size: counted[name, size]
    if len(missing) < len(cells):
        raise checks.UserError(
            f"`ledger` must hold every fine-tune of {table.task}, got none of {missing[0]}"
        )
    for name, number in num_params.items():
        if np.isnan(number):
            raise checks.UserError(f"{table.task} must have a `size` of {name!r}, got none")
    return lambda name, size: cost.flops(num_params[name], size)


def _budgets_of(table: LossTable) -> list[int]:
    """Sizes above 0 and below the largest."""
    return [int(size) for size in table.sizes[:-1] if size > 0]


def _full_tuning(table: LossTable, price: Flops) -> float:
    """FLOPs of every candidate on the largest size."""
    return float(sum(price(name, int(table.sizes[-1])) for name in table.names))


def _points_of(table: LossTable, names: Sequence[str], price: Flops, rule: DropRule) -> list[Point]:
    """Every selector at every budget, without those that lack a column of the table."""
    target = int(table.sizes[-1])
    points = []
    for selector in names:
        for budget in _budgets_of(table):
            try:
                ranking = rank(table, budget_size=budget, target_size=target, selector=selector)
            except checks.UserError as error:
                terminal.warn(f"{table.task}: no {selector} at {budget}: {error}")
                continue
            flops = sum(
                price(entry.candidate, entry.num_examples) for entry in ranking.ledger.entries
            )
            scores = np.array([ranking.scores[name] for name in table.names])
            points.append(Point(table.task, selector, budget, flops, scores, ranking.order[0]))
    rule = dataclasses.replace(rule, target_size=target)
    return points + [upwards(table, budget, price, rule) for budget in _budgets_of(table)]


def upwards(table: LossTable, budget: int, price: Flops, rule: DropRule) -> Point:
    """Successive halving up to a budget (examples), replayed on measured losses.

    Scores are by the line of each candidate's last sizes, or its last loss where these are too few.
    """
    seen: dict[str, dict[int, float]] = {name: {} for name in table.names}

    def look(name: str, size: int) -> float:
        seen[name][size] = float(table.column(size)[table.names.index(name)])
        return seen[name][size]

    sizes = [size for size in _budgets_of(table) if size <= budget]
    dropped = measure_upwards(table.names, sizes, look, rule)
    line = len(sizes) >= rule.gamma
    scores = {n: rule.predicted(row) if line else row[max(row)] for n, row in seen.items()}
    kept = [name for name in table.names if name not in dropped]
    flops = sum(price(name, size) for name, row in seen.items() for size in row)
    order = np.array([scores[name] for name in table.names])
    selected = min(kept, key=scores.__getitem__)
    return Point(table.task, UPWARDS, budget, flops, order, selected)


def _rows_of(table: LossTable, points: Sequence[Point], full: float) -> list[dict[str, Any]]:
    """Rows of saving.csv; ``full`` is the cost of full tuning, FLOPs."""
    target = int(table.sizes[-1])
    truth = table.column(target)
    controls = [point for point in points if point.selector == CONTROL]
    controls.append(Point(table.task, CONTROL, target, full, truth, ""))  # full tuning itself
    draws = np.random.default_rng(SEED).integers(0, len(truth), (NUM_RESAMPLES, len(truth)))
    rows = []
    for point in points:
        known = np.isfinite(point.scores)
        whole = bool(known.all()) and bool(np.ptp(point.scores))
        picked = truth[table.names.index(point.selected)]
        row: dict[str, Any] = {
            "task": point.task,
            "selector": point.selector,
            "budget_fraction": point.budget / target,
            "flops": point.flops,
            "percent_of_full_tuning": 100.0 * point.flops / full,
            "pearson": pearson_correlation(point.scores, truth) if whole else np.nan,
            "relative_accuracy": relative_accuracy(picked, truth) if known.any() else np.nan,
        }
        rows.append(row | intervals(point, controls, truth, draws, whole=whole))
    for metric in ("pearson", "relative_accuracy"):
        on_front = front([row["flops"] for row in rows], [row[metric] for row in rows])
        for row, on in zip(rows, on_front, strict=True):
            row[f"pareto_{metric}"] = on
    return rows


def intervals(
    point: Point, controls: Sequence[Point], truth: Scores, draws: Int[np.ndarray, "r n"],
    *, whole: bool,
) -> dict[str, float]:  # fmt: skip
    """How sure PearCorr is, and its difference from `subtuning`'s for the same FLOPs."""
    names = ("pearson_low", "pearson_high", "less_subtuning", "less_low", "less_high")
    row = dict.fromkeys(names, float("nan"))
    if not whole:
        return row
    tails = 100 * (0.5 - 0.5 * LEVEL), 100 * (0.5 + 0.5 * LEVEL)
    pearson = resampled(point.scores, truth, draws)
    row["pearson_low"], row["pearson_high"] = np.nanpercentile(pearson, tails)
    if point.selector != CONTROL and point.flops > 0:
        nearest = min(controls, key=lambda control: abs(np.log(control.flops / point.flops)))
        difference = pearson - resampled(nearest.scores, truth, draws)
        row["less_subtuning"] = pearson_correlation(point.scores, truth) - pearson_correlation(
            nearest.scores, truth
        )
        row["less_low"], row["less_high"] = np.nanpercentile(difference, tails)
    return row


def resampled(
    scores: Scores, truth: Scores, draws: Int[np.ndarray, "r n"]
) -> Float[np.ndarray, " r"]:
    """PearCorr of every resampled pool, percent; NaN where all drawn are one candidate."""
    a, b = scores[draws], truth[draws]
    a, b = a - a.mean(1, keepdims=True), b - b.mean(1, keepdims=True)
    with np.errstate(invalid="ignore"):
        return 100.0 * (a * b).sum(1) / np.sqrt((a**2).sum(1) * (b**2).sum(1))


def front(flops: Sequence[float], values: Sequence[float]) -> list[bool]:
    """Whether no other point is as good for fewer FLOPs, or better for as many; NaN never is."""
    pairs = list(zip(flops, values, strict=True))
    return [
        not np.isnan(value)
        and not any((c <= cost and v > value) or (c < cost and v >= value) for c, v in pairs)
        for cost, value in pairs
    ]


def levels_of(
    task: str, rows: Sequence[Mapping[str, Any]], levels: Sequence[float]
) -> list[dict[str, Any]]:
    """A row per level (PearCorr) and selector: the smallest budget that reaches it for good."""
    of_task = [row for row in rows if row["task"] == task]
    reached = []
    for level in levels:
        for selector in dict.fromkeys(row["selector"] for row in of_task):
            row = _smallest_reaching(level, [r for r in of_task if r["selector"] == selector])
            reached.append({
                "task": task,
                "pearson_reached": level,
                "selector": selector,
                "budget_fraction": row["budget_fraction"] if row else "",
                "flops": row["flops"] if row else "",
                "saving_percent": 100.0 - row["percent_of_full_tuning"] if row else "",
            })  # fmt: skip
    return reached


def _smallest_reaching(level: float, rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any]:
    """The smallest budget at which, and at all larger ones, PearCorr is at least ``level``."""
    smallest: Mapping[str, Any] = {}
    for row in sorted(rows, key=lambda row: -row["budget_fraction"]):
        if not row["pearson"] >= level:  # NaN reaches nothing
            break
        smallest = row
    return smallest


def _written(row: Mapping[str, Any]) -> dict[str, Any]:
    """Six digits are more than any of these numbers means; what is not known is an empty cell."""

    def cell(value: Any) -> Any:
        if not isinstance(value, float):
            return value
        return "" if np.isnan(value) else f"{value:.6g}"

    return {name: cell(value) for name, value in row.items()}


def _show(task: str, levels: Sequence[float], reached: Sequence[Mapping[str, Any]]) -> None:
    """Saving at each level, on the terminal."""
    shown = terminal.table(
        f"{task}: saving against full tuning (%) at a PearCorr of",
        left=["selector"],
        right=[f"{level:g}" for level in levels],
    )
    of_task = [row for row in reached if row["task"] == task]
    for selector in dict.fromkeys(row["selector"] for row in of_task):
        cells = [row["saving_percent"] for row in of_task if row["selector"] == selector]
        shown.add_row(selector, *("-" if cell == "" else f"{cell:.1f}" for cell in cells))
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
