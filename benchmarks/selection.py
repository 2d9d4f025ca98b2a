"""The decision on small pools: regret, picks and probabilities, with constants of other tables.

    python -m benchmarks.selection --curves=lin2024/flan,lin2024/gigaword,\
experiments/results/pydoc_losses.csv,experiments/results/sotu_losses.csv

Pools of 3, 6, 10 and all candidates are drawn from each table and ranked at three budgets: 1/16,
1/64 and 1/256 of the largest size, or 1/4, 1/8 and 1/16 where a table is shorter; all candidates
once, at every budget from 1/8 to 1/512. Prints

* regret: how far the pick's loss lies above the pool's lowest, percent of the lowest, with the 95 %
  interval of the mean over draws; top-1: how often they are the same; RelAcc;
* Brier: mean squared error of P(A beats B); cover: the shares of losses, relative to the pool's
  mean, within the 50 and 90 % intervals; log score: the mean log density of these losses; PearCorr:
  of predictions and losses.

"posterior" has the constants shipped, "posterior, left out" those that coordinate ascent chooses on
the other tables (regret in units of ats' plus four times Brier minus the log score, pools of 6).
Three minutes on one core for 200 draws.  Expected: the tables in benchmarks/LOG.md, "Decision".
"""

import itertools
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from benchmarks.pools import (
    POOLS,
    Case,
    belief_metrics,
    cases_of,
    constants_left_out,
    pick_metrics,
)
from experiments.common import cli
from experiments.common.curves import read_curves
from experiments.common.flags import define_curves
from lensllm_jax.selection.selectors.posterior import DEFAULT, Constants

CURVES = define_curves("Loss tables (CSV), two or more.")
DRAWS = flags.DEFINE_integer("draws", 200, "Pools of each size drawn from each table.")


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
    print("\n| table | pool | constants | Brier | cover 50, 90 % | log score | PearCorr |")
    print("|---|---|---|---|---|---|---|")
    groups: dict[tuple[str, int], list[Case]] = {}
    for case in cases:
        groups.setdefault((case.task, case.pool), []).append(case)
    for (task, pool), members in groups.items():
        for name, constants in (("shipped", DEFAULT), ("of the others", left_out[task])):
            beliefs = [(case, case.views.posterior(constants)) for case in members]
            rows = np.array([belief_metrics(*pair) for pair in beliefs])
            brier, half, most, log_score, pearson = rows.mean(0)
            print(
                f"| {task} | {pool} | {name} | {brier:.3f} | {half:.2f}, {most:.2f} "
                f"| {log_score:.2f} | {pearson:.1f} |"
            )


def main(_: Sequence[str]) -> None:
    tables = read_curves(CURVES.value)
    by_table = {table.task: list(cases_of(table, DRAWS.value)) for table in tables}
    left_out, cases = constants_left_out(by_table), [*itertools.chain(*by_table.values())]
    for task, constants in left_out.items():
        print(f"without {task}: {constants}")
    show_picks(cases, left_out)
    show_beliefs(cases, left_out)


if __name__ == "__main__":
    cli.run(main)
