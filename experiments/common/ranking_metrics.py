"""How good rankings were: as rows of selection.csv, and as tables on the terminal.

Example:
    >>> metrics_cell(96.0, 100.0), metrics_cell(float("nan"), 100.0)
    ('96.0 / 100.0', '-')
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lensllm_jax.runs import terminal
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.ranking import Ranking


def metrics_row(table: LossTable, selector: str, divisor: int, ranking: Ranking) -> dict[str, Any]:
    """A row of selection.csv; ``divisor`` of the largest size gives the budget."""
    return {
        "task": table.task,
        "budget_fraction": 1.0 / divisor,
        "selector": selector,
        **ranking.evaluate(table.by_name(int(table.sizes[-1])))._asdict(),
        "flops": ranking.flops,
        "seconds": ranking.seconds,
    }


def show_metrics(
    task: str, divisors: Sequence[int], metrics: Mapping[str, Sequence[tuple[float, float]]]
) -> None:
    """A row per selector, a column per budget, then the mean.

    Args:
        task: in the title.
        divisors: of the largest size, one per budget.
        metrics: selector -> PearCorr and RelAcc at each budget, percent.
    """
    columns = [*(f"1/{divisor}" for divisor in divisors), "mean"]
    shown = terminal.table(f"{task}: PearCorr / RelAcc (%)", left=["selector"], right=columns)
    for selector, values in metrics.items():
        cells = [*values, np.mean(values, axis=0)]
        shown.add_row(selector, *(metrics_cell(*cell) for cell in cells))
    terminal.show(shown)


def metrics_cell(pearson: float, accuracy: float) -> str:
    """Both metrics, or a dash where one is not known."""
    return "-" if np.isnan([pearson, accuracy]).any() else f"{pearson:.1f} / {accuracy:.1f}"
