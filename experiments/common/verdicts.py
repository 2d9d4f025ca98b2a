"""Verdicts: how good rankings were, as rows of selection.csv and as tables on the terminal.

Example:
    >>> pair(96.0, 100.0), pair(float("nan"), 100.0)
    ('96.0 / 100.0', '-')
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.common import terminal
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.ranking import Ranking


def verdict_row(table: LossTable, selector: str, divisor: int, ranking: Ranking) -> dict[str, Any]:
    """A row of selection.csv: how good a ranking is beside the losses at the largest size.

    Args:
        table: losses of the pool.
        selector: who ranked.
        divisor: of the largest size, which gives the budget.
        ranking: the verdict.

    Returns:
        What it cost and how good it was.
    """
    return {
        "task": table.task,
        "budget_fraction": 1.0 / divisor,
        "selector": selector,
        **ranking.evaluate(table.by_name(int(table.sizes[-1])))._asdict(),
        "flops": ranking.flops,
        "seconds": ranking.seconds,
    }


def show_verdicts(
    task: str, divisors: Sequence[int], verdicts: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """Both metrics on the terminal, a row a selector, a column a budget, then the mean.

    Args:
        task: whose.
        divisors: of the largest size.
        verdicts: by selector, PearCorr and RelAcc at each budget.
    """
    shown = terminal.table(f"{task}: PearCorr / RelAcc (%)")
    shown.add_column("selector")
    for column in (*(f"1/{divisor}" for divisor in divisors), "mean"):
        shown.add_column(column, justify="right")
    for selector, values in verdicts.items():
        pearson, accuracy = np.mean(values, axis=0)
        shown.add_row(selector, *(pair(*one) for one in values), pair(pearson, accuracy))
    terminal.show(shown)


def pair(pearson: float, accuracy: float) -> str:
    """A cell with both metrics, or a dash where one is not known."""
    return "-" if np.isnan([pearson, accuracy]).any() else f"{pearson:.1f} / {accuracy:.1f}"
