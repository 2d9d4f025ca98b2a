"""Leave one task out: the constants of `pooled` chosen on the other tables only.

    python -m benchmarks.leave_one_task_out --curves=lin2024/flan,lin2024/gigaword

For each table, every constant is chosen from a short list by coordinate ascent on the *other*
tables (mean PearCorr plus mean RelAcc, budgets 1/8 to 1/512) from the middle of each list, and
scored on the table left out, next to the constants as shipped and `ats`.  Three minutes on two
cores.  Expected: the table in benchmarks/LOG.md, "Leave one task out".
"""

import dataclasses
import itertools
from collections.abc import Sequence
from functools import cache

import numpy as np

from experiments.common import cli
from experiments.common.flags import define_curves
from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.selectors import ats
from lensllm_jax.selection.selectors.pooled import DEFAULT, Constants, views

CURVES = define_curves("Loss tables (CSV), two or more.")
FRACTIONS = (8, 16, 32, 64, 128, 256, 512)
# each list's middle is where the search starts; none is the shipped value by construction
CHOICES = {
    "slope_half_life": (0.75, 1.0, 1.5, 2.5, 4.0),
    "growth_half_life": (2.0, 4.0, 8.0, 16.0),
    "growth_ridge": (0.0, 1.0, 3.0, 10.0),
    "max_growth": (0.1, 0.15, 0.2),
    "reliability": (0.6, 0.7, 0.8, 0.9, 1.0),
    "huber_scale": (0.75, 1.5, 3.0),
    "taus": ((3.0,), (3.0, 5.0), (5.0,)),
    "early_gain": (0.0, 0.05, 0.1, 0.15, 0.2),
}
NUM_SWEEPS = 2


class Task:
    """A table at its budgets, with what does not depend on the constants computed once."""

    def __init__(self, table: LossTable):
        self.name, target = table.task, int(table.sizes[-1])
        self.truth = table.column(target)
        whole = Problem(table, target)
        self.problems = [whole.at_budget(target // f, target) for f in FRACTIONS]
        self.ats = [ats.score(problem).scores for problem in self.problems]

    def metrics(self, scores) -> np.ndarray:
        """PearCorr and RelAcc of one budget."""
        chosen = float(self.truth[int(np.argmin(scores))])
        return np.array(
            [pearson_correlation(scores, self.truth), relative_accuracy(chosen, self.truth)]
        )

    def pooled(self, constants: Constants) -> np.ndarray:
        """Mean PearCorr and mean RelAcc over the budgets."""
        predicted = [np.exp(views(p, constants=constants).mean(0)) for p in self.problems]
        return np.mean([self.metrics(scores) for scores in predicted], axis=0)


def chosen_on(tasks: Sequence[Task]) -> Constants:
    """Coordinate ascent over CHOICES."""

    @cache
    def score(constants: Constants) -> float:
        return float(np.mean([task.pooled(constants).sum() for task in tasks]))

    middles = {name: values[len(values) // 2] for name, values in CHOICES.items()}
    best = Constants(**middles)
    for _, name in itertools.product(range(NUM_SWEEPS), CHOICES):
        tried = [dataclasses.replace(best, **{name: value}) for value in CHOICES[name]]
        best = max([best, *tried], key=score)  # the first of equals: a tie changes nothing
    return best


def main(_: Sequence[str]) -> None:
    tasks = [Task(load_loss_table(path)) for path in CURVES.value]
    if len(tasks) < 2:
        raise checks.UserError("`curves` must name two or more tables, got one")
    print("| left out | constants of | PearCorr | RelAcc |")
    print("|---|---|---|---|")
    for left_out in tasks:
        others = [task for task in tasks if task is not left_out]
        constants = chosen_on(others)
        ats_means = np.mean([left_out.metrics(s) for s in left_out.ats], axis=0)
        names = " and ".join(task.name for task in others)
        for what, values in (
            (names, left_out.pooled(constants)),
            ("itself, in sample", left_out.pooled(chosen_on([left_out]))),
            ("as shipped", left_out.pooled(DEFAULT)),
            ("ats", ats_means),
        ):
            print(f"| {left_out.name} | {what} | {values[0]:.1f} | {values[1]:.1f} |")
        print(f"chosen on {names}: {constants}")


if __name__ == "__main__":
    cli.run(main)
