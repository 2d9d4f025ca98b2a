"""How often what is said with probability p happens, by selector and by table.

    python -m benchmarks.calibration --output_dir=out/calibration \
        --curves=lin2024/flan,lin2024/gigaword,\
experiments/results/pydoc_losses.csv,experiments/results/sotu_losses.csv

Pools of six are drawn from each table and ranked at three budgets, as in ``benchmarks.selection``,
then all candidates.  The posterior has the constants chosen on the other tables.
--output_dir receives calibration.csv, a row per table, selector and

* kind pair: that the likelier of two candidates has the lower loss at the target, in bins of the
  probability that was said;
* kind interval: that a loss, relative to the pool's mean, lies within the 50 or 90 % interval.

Ten minutes on two cores.  Expected: experiments/results/calibration.csv, whose figure
``experiments.paper_figures`` draws.
"""

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from absl import flags

from benchmarks.pools import CHOSEN_ON, LONG, SHORT, Case, case_of, constants_left_out
from experiments.common import cli
from experiments.common.curves import read_curves
from experiments.common.flags import define_curves, define_output_dir
from lensllm_jax import durable
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.posterior import Posterior
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors.posterior import Constants

CURVES = define_curves("Loss tables (CSV), two or more.")
OUTPUT_DIR = define_output_dir()
DRAWS = flags.DEFINE_integer("draws", 10, "Pools of six drawn from each table.")
OTHERS = ("pooled", "ats", "rectified", "lensllm")
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 0.97, 1.0)
LEVELS = (0.5, 0.9)


def pools_of(table: LossTable) -> Iterator[tuple[LossTable, int]]:
    """Pools and budgets: those of six candidates, then all."""
    rng, target = np.random.default_rng(1), int(table.sizes[-1])
    divisors = LONG if target // LONG[-1] in table.sizes else SHORT
    for _ in range(DRAWS.value):
        rows = np.sort(rng.choice(len(table.names), CHOSEN_ON, replace=False))
        part = table.select([table.names[i] for i in rows])
        yield from ((part, divisor) for divisor in divisors)
    yield from ((table, divisor) for divisor in divisors)


def beliefs_of(
    table: LossTable, cases: Sequence[Case], constants: Constants
) -> Iterator[tuple[str, np.ndarray, Posterior]]:
    """Selector, true losses and what it believes, for every pool and budget."""
    for case in cases:
        yield "posterior", case.truth, case.views.posterior(constants)
    target = int(table.sizes[-1])
    for part, divisor in pools_of(table):
        for name in OTHERS:
            ranking = rank(part, budget_size=target // divisor, target_size=target, selector=name)
            if isinstance(ranking.confidence, Posterior):
                yield name, part.column(target), ranking.confidence


def rows_of(task: str, selector: str, beliefs: Sequence[tuple[np.ndarray, Posterior]]):
    """Rows of calibration.csv."""
    said, wins, inside = [], [], []
    for truth, belief in beliefs:
        known = np.flatnonzero(np.isfinite(belief.center) & np.isfinite(belief.log_std))
        first, second = known[np.array(np.triu_indices(len(known), 1))]
        p = belief.beats(first, second)
        said.append(np.maximum(p, 1.0 - p))
        wins.append((truth[first] < truth[second]) == (p > 0.5))
        error = np.log(truth[known]) - belief.center[known]
        z = np.abs(error - error.mean()) / belief.interval_std[known]
        inside.append([z < belief.quantile(0.5 + 0.5 * level) for level in LEVELS])
    p, happened = np.concatenate(said), np.concatenate(wins)
    bins = np.clip(np.searchsorted(EDGES, p, side="right") - 1, 0, len(EDGES) - 2)
    row = {"task": task.removesuffix("_losses"), "selector": selector}
    for k, low in enumerate(EDGES[:-1]):
        here = bins == k
        if here.any():
            yield {**row, "kind": "pair", "low": low, "said": round(float(p[here].mean()), 4),
                   "happened": round(float(happened[here].mean()), 4),
                   "count": int(here.sum())}  # fmt: skip
    for i, level in enumerate(LEVELS):
        share = np.concatenate([rows[i] for rows in inside])
        yield {**row, "kind": "interval", "low": level, "said": level,
               "happened": round(float(share.mean()), 4), "count": len(share)}  # fmt: skip


def main(_: Sequence[str]) -> None:
    tables = read_curves(CURVES.value)
    cases = {
        table.task: [case_of(part, int(table.sizes[-1]), d) for part, d in pools_of(table)]
        for table in tables
    }
    left_out, rows = constants_left_out(cases), []
    for table in tables:
        beliefs: dict[str, list[tuple[np.ndarray, Posterior]]] = {}
        for name, truth, belief in beliefs_of(table, cases[table.task], left_out[table.task]):
            beliefs.setdefault(name, []).append((truth, belief))
        for name, members in beliefs.items():
            rows += rows_of(table.task, name, members)
            print(table.task, name, *[f"{r['said']}:{r['happened']}" for r in rows[-8:]])
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    output = Path(OUTPUT_DIR.value)
    output.mkdir(parents=True, exist_ok=True)
    durable.replace(output / "calibration.csv", text.getvalue().encode())


if __name__ == "__main__":
    cli.run(main)
