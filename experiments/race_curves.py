r"""A race against fixed budgets on tables of known losses: regret of the pick by what it cost.

    python -m experiments.race_curves --curves=flan.csv,gigaword.csv --output_dir=out/race

Pools of 6 candidates are drawn from each table (--pools, --draws), and the whole table is one pool
more.  For each of --costs, a share of fine-tuning the whole pool on the table's largest size in
parameters x examples, a race may spend that much (`race`, at --confidence); a fixed budget
fine-tunes every candidate on every size up to one, and `ats`, `pooled` or `posterior` picks;
`upwards` is successive halving with its line.  Fixed budgets cost powers of two: between them,
regret is interpolated linearly in the logarithm of the cost; below the cheapest, of three sizes,
the cell is empty.

--output_dir receives race_curves.csv (task, pool, selector, cost, regret_percent and its standard
error over pools, top_1, relative_accuracy, dropped_best: the share of pools in which the best
candidate was dropped, spent: the mean cost) and a figure per table.  Half a second per pool on one
core.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.curves import digests, read_curves
from experiments.common.flags import (
    define_confidence,
    define_curves,
    define_higher_is_better,
    define_output_dir,
    define_quiet,
)
from lensllm_jax import checks
from lensllm_jax.metrics import relative_accuracy
from lensllm_jax.report import figures
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.run_folder import RunFolder, known
from lensllm_jax.selection.loss_table import LossTable, cost_shares
from lensllm_jax.selection.orders import DropRule
from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.race import RaceRule, replay
from lensllm_jax.selection.selectors import SELECTORS

CURVES = define_curves("Loss tables (CSV) without an empty cell, one per task.")
HIGHER_IS_BETTER = define_higher_is_better()
POOLS = flags.DEFINE_list("pools", ["6"], "Candidates of the pools that are drawn.")
DRAWS = flags.DEFINE_integer("draws", 100, "Pools of each size drawn from each table.")
SEED = flags.DEFINE_integer("seed", 0, "Seed of the pools that are drawn.")
COSTS = flags.DEFINE_list("costs", ["0.02", "0.05", "0.1"], "Shares of tuning the whole pool.")
CONFIDENCE = define_confidence()
OUTPUT_DIR = define_output_dir()
QUIET = define_quiet()

FIXED = ("ats", "pooled", "posterior")
_FEWEST_SIZES = 3  # above 0, of a fixed budget
_ROUNDING = 1e-12  # of logarithms of costs


class Pick(NamedTuple):
    """What one way to spend says of one pool."""

    cost: float  # share of tuning all
    chosen: int  # row
    dropped_best: bool = False


def main(_: Sequence[str]) -> None:
    """Replays and writes."""
    costs = sorted(cli.numbers("costs", COSTS.value))
    pools = cli.whole_numbers("pools", POOLS.value)
    checks.positive("draws", DRAWS.value)
    checks.not_negative("seed", SEED.value)
    tables = read_curves(CURVES.value, higher_is_better=HIGHER_IS_BETTER.value)
    for table in tables:
        _check(table, pools)
    settings = {
        "curves": digests(CURVES.value), "pools": list(pools), "draws": DRAWS.value,
        "costs": costs, "confidence": CONFIDENCE.value, "seed": SEED.value,
        "higher_is_better": HIGHER_IS_BETTER.value,
    }  # fmt: skip
    folder = RunFolder.open(OUTPUT_DIR.value, settings)
    rows = []
    total = float(len(tables) * (len(pools) * DRAWS.value + 1))
    with Progress(total=total, quiet=QUIET.value) as progress:
        for table in tables:
            for pool, members in _drawn(table, pools, DRAWS.value, SEED.value).items():
                measured = []
                for part in members:
                    measured.append(_measured(part, costs))
                    progress.finish(1.0, f"{table.task}, {pool} candidates")
                rows += _rows_of(table.task, pool, costs, measured)
    folder.write_rows("race_curves.csv", [known(row) for row in rows])
    for table in tables:
        folder.write_bytes(f"{table.task}_race.png", _figure(table, rows))
    _show(rows)
    print(f"written to {folder.path}")


def _check(table: LossTable, pools: Sequence[int]) -> None:
    """Refuses a table that cannot be replayed.

    Raises:
        UserError: if it has an empty cell, too few sizes, or fewer candidates than a pool.
    """
    for size in table.sizes:
        table.column(int(size))
    count = int((table.sizes > 0).sum())
    if count <= _FEWEST_SIZES:
        raise checks.UserError(
            f"`curves` must have {_FEWEST_SIZES + 1} sizes or more above 0, got {count} in "
            f"{table.task}"
        )
    if pools and not 2 <= min(pools) <= max(pools) <= len(table.names):
        raise checks.UserError(
            f"`pools` must be from 2 to {len(table.names)} (the candidates of {table.task}), "
            f"got {list(pools)}"
        )


def _drawn(
    table: LossTable, pools: Sequence[int], draws: int, seed: int
) -> dict[int, list[LossTable]]:
    """Pools by their number of candidates; the whole table last."""
    rng = np.random.default_rng(seed)
    drawn = {}
    for pool in pools:
        rows = [np.sort(rng.choice(len(table.names), pool, replace=False)) for _ in range(draws)]
        drawn[pool] = [table.select([table.names[i] for i in some]) for some in rows]
    return {**drawn, len(table.names): [table]}


Measured = Mapping[str, list[tuple[float, ...]]]  # selector -> metrics at each cost


def _measured(table: LossTable, costs: Sequence[float]) -> Measured:
    """Regret in percent, top-1, RelAcc, dropped_best and cost of every way to spend."""
    target, truth = int(table.sizes[-1]), table.losses[:, -1]

    def metrics(pick: Pick) -> tuple[float, ...]:
        loss = float(truth[pick.chosen])
        regret = 100.0 * (loss / float(truth.min()) - 1.0)
        accuracy = relative_accuracy(loss, truth)
        return regret, float(regret == 0.0), accuracy, float(pick.dropped_best), pick.cost

    found = {"race": [metrics(_race(table, target, cost)) for cost in costs]}
    for name, picks in _fixed(table, target).items():
        found[name] = _interpolated([metrics(pick) for pick in picks], costs)
    found["upwards"] = _interpolated([metrics(p) for p in _upwards(table, target)], costs)
    return found


def _interpolated(
    points: list[tuple[float, ...]], costs: Sequence[float]
) -> list[tuple[float, ...]]:
    """Metrics at costs between those of the points, linear in the logarithm of the cost.

    NaN below the first point, which nobody could pay; beyond the last one stays at it.
    """
    *columns, paid = zip(*points, strict=True)
    x = np.log(paid)
    at = np.log(costs) + _ROUNDING  # a sum of shares may be above its own cost
    metrics = [np.interp(at, x, column, left=math.nan) for column in columns]
    spent = np.where(at < x[0], math.nan, np.minimum(costs, paid[-1]))
    return [*zip(*metrics, spent, strict=True)]


def _race(table: LossTable, target: int, cost: float) -> Pick:
    sizes = tuple(int(size) for size in table.sizes if size > 0)
    rule = RaceRule(target, sizes, confidence=CONFIDENCE.value, max_cost=cost)
    *_, race = replay(table, rule)
    best = table.names[int(table.losses[:, -1].argmin())]
    return Pick(race.cost, table.names.index(race.leader), best in race.dropped)


def _budgets(table: LossTable, target: int) -> Iterator[tuple[int, float]]:
    """Sizes that may be a budget, and what it costs to tune all candidates up to it."""
    sizes = [int(size) for size in table.sizes if size > 0]
    for count in range(_FEWEST_SIZES, len(sizes)):
        yield sizes[count - 1], sum(sizes[:count]) / target


def _fixed(table: LossTable, target: int) -> dict[str, list[Pick]]:
    picks: dict[str, list[Pick]] = {name: [] for name in FIXED}
    for budget, cost in _budgets(table, target):
        problem = Problem(table, target).at_budget(budget, target)
        for name, found in picks.items():
            found.append(Pick(cost, int(SELECTORS[name](problem).best_first()[0])))
    return picks


def _upwards(table: LossTable, target: int) -> Iterator[Pick]:
    """Successive halving up to each budget, then the lowest line of those that are left."""
    rule = DropRule(target_size=target)
    names, losses = table.names, {name: dict[int, float]() for name in table.names}
    shares = dict(zip(names, cost_shares(table.num_params), strict=True))
    best, spent = names[int(table.losses[:, -1].argmin())], 0.0
    by_name = dict(zip(names, table.losses, strict=True))
    column = {int(size): k for k, size in enumerate(table.sizes)}
    for size in (int(size) for size in table.sizes if 0 < size < target):
        if all(len(row) >= rule.gamma for row in losses.values()):
            for name in rule.drops(losses):
                del losses[name]
        for name, row in losses.items():
            row[size] = float(by_name[name][column[size]])
            spent += shares[name] * size / target
        if all(len(row) >= rule.gamma for row in losses.values()):
            chosen = min(losses, key=lambda name: rule.predicted(losses[name]))
            yield Pick(spent, names.index(chosen), best not in losses)


def _rows_of(
    task: str, pool: int, costs: Sequence[float], measured: Sequence[Measured]
) -> list[dict[str, Any]]:
    """One row per way to spend and cost: means over pools."""
    rows = []
    for name in measured[0]:
        for k, cost in enumerate(costs):
            values = np.array([one[name][k] for one in measured])
            regret, top, accuracy, dropped, spent = values.mean(0).tolist()
            error = (
                values[:, 0].std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else math.nan
            )
            rows.append({
                "task": task, "pool": pool, "draws": len(values), "selector": name, "cost": cost,
                "regret_percent": regret, "standard_error": float(error), "top_1": top,
                "relative_accuracy": accuracy, "dropped_best": dropped, "spent": spent,
            })  # fmt: skip
    return rows


def _figure(table: LossTable, rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Regret by what was spent, a panel per pool size."""
    mine = [row for row in rows if row["task"] == table.task]
    pools = list(dict.fromkeys(row["pool"] for row in mine))
    labels = [("cost (% of tuning all)", "regret (% of the lowest loss)")] * len(pools)
    figure, panels = figures.panels(*labels, width=6.0 * len(pools))
    for axes, pool in zip(panels, pools, strict=True):
        for name in dict.fromkeys(row["selector"] for row in mine):
            line = [row for row in mine if row["pool"] == pool and row["selector"] == name]
            spent = [100.0 * row["spent"] for row in line]
            regrets = [row["regret_percent"] for row in line]
            axes.plot(spent, regrets, label=name, **figures.style_of_selector(name))
        axes.set_xscale("log")
        costs = sorted({100.0 * row["cost"] for row in mine})
        axes.set_xticks(costs, [f"{cost:g}" for cost in costs])
        axes.minorticks_off()
        axes.set_ylim(bottom=0.0)
        axes.set_title(f"{table.task}, {pool} candidates")
    return figures.png(figure, panels[-1])


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = terminal.table(
        "Regret of the pick (% of the lowest loss)", left=["task", "selector"],
        right=["pool", "cost", "regret", "error", "top 1", "best dropped", "spent"],
    )  # fmt: skip
    for row in rows:
        shown.add_row(
            row["task"], row["selector"], str(row["pool"]), f"{row['cost']:.0%}",
            f"{row['regret_percent']:.2f}", f"{row['standard_error']:.2f}",
            f"{row['top_1']:.2f}", f"{row['dropped_best']:.2f}", f"{row['spent']:.1%}",
        )  # fmt: skip
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
