r"""How well each law fits measured curves, and how well it predicts what it never saw.

    python -m experiments.law_errors --curves=lin2024/flan,lin2024/gigaword --output_dir=out/laws
    python -m experiments.law_errors --curves=experiments/results/pydoc_losses.csv \
        --budgets=2,4,8 --output_dir=out/laws-pydoc

In sample: the law is fitted to all sizes of a curve.  Held out: it is fitted to the sizes up to
1/budget of the largest and evaluated on all larger ones.  Errors are root mean squares of raw
losses, as in the paper's Table 2, in the unit of their table.  LensLLM is fitted without a kernel,
F a bounded free number; the rectified law, fitted by the same optimiser, is its control: the last
columns hold the mean over candidates of law minus rectified with its 90 % interval (Student's).

--output_dir receives law_errors.csv (a row per task, candidate, law and budget; budget 1 is in
sample) and comparison.csv (a row per task, law and budget).  A law without a usable fit leaves its
cell empty.  Seconds on 2 cores.  Expected: LensLLM equals the rectified law wherever its bound on F
does not bind.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import scipy.stats

from experiments.common import cli
from experiments.common.curves import check_budgets, digests, divisors_of
from experiments.common.flags import define_budgets, define_curves, define_output_dir
from lensllm_jax.metrics import root_mean_square_error
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, known
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.public_tables import load_loss_table

CURVES = define_curves()
BUDGETS = define_budgets(8, 32, 128)
OUTPUT_DIR = define_output_dir()

LAWS = (Law.LENSLLM, Law.RECTIFIED, Law.VANILLA, Law.POWER)
LEVEL = 0.9


def main(_: Sequence[str]) -> None:
    """Fits every law to every curve at every budget and writes the errors."""
    budgets = [1, *divisors_of(BUDGETS.value)]
    tables = [load_loss_table(path) for path in CURVES.value]
    for table in tables:
        check_budgets(table, budgets)
    settings = {"curves": digests(CURVES.value), "budgets": budgets}
    folder = RunFolder.open(OUTPUT_DIR.value, settings)
    errors = {
        (table.task, law, budget): _curve_errors(table, law, budget)
        for table in tables
        for law in LAWS
        for budget in budgets
    }
    folder.write_rows("law_errors.csv", [known(row) for row in _rows(tables, errors)])
    rows = [comparison(key, errors) for key in errors]
    folder.write_rows("comparison.csv", [known(row) for row in rows])
    for table in tables:
        _show(table.task, budgets, rows)
    print(f"written to {folder.path}")


def _curve_errors(table: LossTable, law: Law, budget: int) -> np.ndarray:
    """Root mean square error per candidate, in the unit of the losses; NaN where no fit is usable.

    The law is fitted up to 1/budget of the largest size and evaluated on the larger sizes; with a
    budget of 1 it is both fitted to and evaluated on all sizes that it can read.
    """
    sizes = table.sizes.astype(np.float64)
    read = ~np.isnan(table.losses)
    if law in (Law.POWER, Law.VANILLA):
        read &= sizes[None] > 0  # their loss at D = 0 is infinite
    fitted = read & (sizes <= sizes[-1] / budget)[None]
    evaluated = read if budget == 1 else read & ~fitted
    fits = fit_laws(law, sizes, table.losses, weights=fitted.astype(np.float64))
    return np.array(
        [
            root_mean_square_error(fits[i].predict(sizes[evaluated[i]]), losses[evaluated[i]])
            if fits[i].status.usable
            else np.nan
            for i, losses in enumerate(table.losses)
        ]
    )


Key = tuple[str, Law, int]  # task, law, budget


def comparison(key: Key, errors: Mapping[Key, np.ndarray]) -> dict[str, Any]:
    """Mean error of a law over candidates minus the rectified law's; NaN where none is known."""
    task, law, budget = key
    difference = errors[key] - errors[task, Law.RECTIFIED, budget]
    difference = difference[np.isfinite(difference)]
    known = errors[key][np.isfinite(errors[key])]
    row = {
        "task": task, "law": law.value, "budget_fraction": 1.0 / budget,
        "candidates": len(known), "mean_rmse": known.mean() if len(known) else np.nan,
        "less_rectified": np.nan, "low": np.nan, "high": np.nan,
    }  # fmt: skip
    if len(difference) > 1:
        mean = difference.mean()
        half = scipy.stats.t.ppf(0.5 + 0.5 * LEVEL, len(difference) - 1)
        half *= difference.std(ddof=1) / np.sqrt(len(difference))
        row |= {"less_rectified": mean, "low": mean - half, "high": mean + half}
    return row


def _rows(tables: Sequence[LossTable], errors: Mapping[Key, np.ndarray]) -> list[dict[str, Any]]:
    names = {table.task: table.names for table in tables}
    return [
        {
            "task": task, "candidate": name, "law": law.value, "budget_fraction": 1.0 / budget,
            "rmse": error,
        }
        for (task, law, budget), values in errors.items()
        for name, error in zip(names[task], values, strict=True)
    ]  # fmt: skip


def _show(task: str, budgets: Sequence[int], rows: Sequence[Mapping[str, Any]]) -> None:
    shown = terminal.table(
        f"{task}: RMSE in the unit of the losses (mean minus the rectified law's)",
        left=["law"],
        right=["in sample" if budget == 1 else f"from 1/{budget}" for budget in budgets],
    )
    for law in LAWS:
        of_law = (row for row in rows if row["task"] == task and row["law"] == law.value)
        shown.add_row(law.value, *map(_cell, of_law))
    terminal.show(shown)


def _cell(row: Mapping[str, Any]) -> str:
    if not row["candidates"]:
        return "-"
    ends = f"{row['low']:+.4f} to {row['high']:+.4f}"
    return f"{row['mean_rmse']:.4f} ({row['less_rectified']:+.4f}, {ends})"


if __name__ == "__main__":
    cli.run(main)
