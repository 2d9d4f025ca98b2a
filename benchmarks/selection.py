"""The decision on small pools: regret, picks and probabilities, with constants of other tables.

    python -m benchmarks.selection --curves=lin2024/flan,lin2024/gigaword,\
experiments/results/pydoc_losses.csv,experiments/results/sotu_losses.csv

Pools of 3, 6, 10 and all candidates are drawn from each table and ranked at three budgets: 1/16,
1/64 and 1/256 of the largest size, or 1/4, 1/8 and 1/16 where a table is shorter; all candidates
once, at every budget from 1/8 to 1/512. Prints

* regret: how far the pick's loss lies above the pool's lowest, percent of the lowest, with the 95 %
  interval of the mean over draws; top-1: how often they are the same; RelAcc;
* Brier: mean squared error of P(A beats B); cover: the shares of losses, relative to the pool's
  mean, within the 50 and 90 % intervals; PearCorr: of predictions and losses.

"posterior" has the constants shipped, "posterior, left out" those that coordinate ascent chooses on
the other tables (regret in units of ats' plus four times Brier, pools of 6). Three minutes
on two cores for 200 draws.  Expected: the tables in benchmarks/LOG.md, "Decision".
"""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.curves import read_curves
from experiments.common.flags import define_curves
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.posterior import Posterior
from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.selectors import ats, pooled
from lensllm_jax.selection.selectors.posterior import DEFAULT, Constants, Views

CURVES = define_curves("Loss tables (CSV), two or more.")
DRAWS = flags.DEFINE_integer("draws", 200, "Pools of each size drawn from each table.")
POOLS = (3, 6, 10)
CHOSEN_ON = 6
SHORT, LONG = (4, 8, 16), (16, 64, 256)
EVERY = (8, 16, 32, 64, 128, 256, 512)
CHOICES = {
    "local": (0.1, 0.3, 0.5, 0.7),
    "warped": (0.0, 0.1, 0.2, 0.3),
    "slopes": (0.0, 0.15, 0.3, 0.5),
    "line": (0.0, 0.05, 0.2),
    "budget": (0.0, 0.05, 0.1),
    "dof": (4.0, 8.0, 16.0),
}
VIEWS = ("local view", "warped view", "slopes model", "straight line", "loss at the budget")
NUM_SWEEPS = 2


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A pool at a budget."""

    task: str
    pool: int
    divisor: int
    truth: np.ndarray  # losses at the target
    views: Views  # what the posterior reads, whatever its constants
    others: Mapping[str, np.ndarray]  # selector or view -> predicted losses


def cases_of(table: LossTable, draws: int) -> Iterator[Case]:
    """Drawn pools, then all candidates."""
    rng, target = np.random.default_rng(0), int(table.sizes[-1])
    few = LONG if target // LONG[-1] in table.sizes else SHORT
    for pool in (p for p in POOLS if p < len(table.names)):
        for _ in range(draws):
            rows = np.sort(rng.choice(len(table.names), pool, replace=False))
            part = table.select([table.names[i] for i in rows])
            yield from (case_of(part, target, divisor) for divisor in few)
    every = EVERY if few == LONG else (2, *SHORT)
    yield from (case_of(table, target, divisor) for divisor in every)


def case_of(table: LossTable, target: int, divisor: int) -> Case:
    problem = Problem(table, target).at_budget(target // divisor, target)
    views = Views.of(problem)
    others = dict(zip(VIEWS, np.exp(views.log_losses), strict=True))
    others["pooled"] = np.exp(pooled.views(problem).mean(0))
    others["ats"] = ats.score(problem).scores
    return Case(table.task, len(table.names), divisor, table.column(target), views, others)


def pick_metrics(case: Case, predicted: np.ndarray) -> tuple[float, float, float]:
    """Regret in percent, whether the best was picked, RelAcc in percent."""
    picked, best = float(case.truth[np.argmin(predicted)]), float(case.truth.min())
    regret = 100.0 * (picked / best - 1.0)
    return regret, float(picked == best), relative_accuracy(picked, case.truth)


def belief_metrics(case: Case, belief: Posterior) -> tuple[float, float, float, float]:
    """Brier, the shares of losses within the 50 and 90 % intervals, PearCorr in percent."""
    first, second = np.triu_indices(len(case.truth), 1)
    wins = case.truth[first] < case.truth[second]
    brier = float(np.mean((belief.beats(first, second) - wins) ** 2))
    error = np.log(case.truth) - belief.center
    z = np.abs(error - error.mean()) / belief.log_std
    inside = [float(np.mean(z < belief.quantile(0.5 + 0.5 * level))) for level in (0.5, 0.9)]
    return brier, inside[0], inside[1], pearson_correlation(np.exp(belief.center), case.truth)


def constants_chosen_on(cases: Sequence[Case]) -> Constants:
    """Coordinate ascent over CHOICES."""
    cases = [case for case in cases if case.pool == CHOSEN_ON]
    tasks = sorted({case.task for case in cases})
    of_ats = {
        task: np.mean([pick_metrics(c, c.others["ats"])[0] for c in cases if c.task == task])
        for task in tasks
    }

    @cache
    def cost(constants: Constants) -> float:
        costs: dict[str, list[float]] = {task: [] for task in tasks}
        for case in cases:
            belief = case.views.posterior(constants)
            regret = pick_metrics(case, belief.center)[0] / of_ats[case.task]
            costs[case.task].append(regret + 4.0 * belief_metrics(case, belief)[0])
        return float(np.mean([np.mean(values) for values in costs.values()]))

    best = Constants(**{name: values[len(values) // 2] for name, values in CHOICES.items()})
    for _, name in itertools.product(range(NUM_SWEEPS), CHOICES):
        tried = [dataclasses.replace(best, **{name: value}) for value in CHOICES[name]]
        best = min([best, *tried], key=cost)  # the first of equals
    return best


def show_picks(cases: Sequence[Case], left_out: Mapping[str, Constants]) -> None:
    """One row per pool size and selector."""
    tasks = list(dict.fromkeys(case.task for case in cases))
    print("\n| pool | pick | " + " | ".join(f"{t}: regret, top-1, RelAcc" for t in tasks) + " |")
    print("|---|---|" + "---|" * len(tasks))
    for pool in (*POOLS, 0):
        here = [c for c in cases if (c.pool == pool if pool else c.pool not in POOLS)]
        for name in ("posterior", "posterior, left out", *here[0].others):
            cells = []
            for task in tasks:
                rows = [
                    pick_metrics(case, predictions(case, name, left_out))
                    for case in here if case.task == task
                ]  # fmt: skip
                cells.append(_cell(np.array(rows)) if rows else "")
            print(f"| {pool or 'all'} | {name} | " + " | ".join(cells) + " |")


def predictions(case: Case, name: str, left_out: Mapping[str, Constants]) -> np.ndarray:
    """Of a selector or view, lowest first."""
    if name in case.others:
        return case.others[name]
    constants = DEFAULT if name == "posterior" else left_out[case.task]
    return case.views.posterior(constants).center


def _cell(rows: np.ndarray) -> str:
    regret, top, accuracy = rows.mean(0)
    half = 1.96 * rows[:, 0].std() / np.sqrt(len(rows))
    return f"{regret:.2f} ± {half:.2f}, {top:.2f}, {accuracy:.1f}"


def show_beliefs(cases: Sequence[Case], left_out: Mapping[str, Constants]) -> None:
    """One row per table, pool size and constants."""
    print("\n| table | pool | constants | Brier | cover 50, 90 % | PearCorr |")
    print("|---|---|---|---|---|---|")
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.task, case.pool), []).append(case)
    for (task, pool), members in groups.items():
        for name, constants in (("shipped", DEFAULT), ("of the others", left_out[task])):
            beliefs = [(case, case.views.posterior(constants)) for case in members]
            rows = np.array([belief_metrics(*pair) for pair in beliefs])
            brier, half, most, pearson = rows.mean(0)
            print(
                f"| {task} | {pool} | {name} | {brier:.3f} | {half:.2f}, {most:.2f} "
                f"| {pearson:.1f} |"
            )


def main(_: Sequence[str]) -> None:
    tables = read_curves(CURVES.value)
    cases = [case for table in tables for case in cases_of(table, DRAWS.value)]
    left_out = {
        table.task: constants_chosen_on([c for c in cases if c.task != table.task])
        for table in tables
    }
    for task, constants in left_out.items():
        print(f"without {task}: {constants}")
    show_picks(cases, left_out)
    show_beliefs(cases, left_out)


if __name__ == "__main__":
    cli.run(main)
