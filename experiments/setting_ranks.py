r"""Does the ranking's quality move with the settings of the fine-tunes?  Tables 8 to 11.

A setting is a grid of its own (experiments/finetune_grid.py): the candidates on small subsets at
one learning rate and batch size,

    python -m experiments.finetune_grid --candidates=... --task=pydoc --sizes=0,200,400,800 \
        --learning_rate=3e-4 --batch_size=64 --output_dir=out/rate3e-4_batch64

or, for Table 11, on a part of the task with one average input length (--mean_length=18).  Each
grid resumes; run them in any order.  Then

    python -m experiments.setting_ranks \
        --curves=rate3e-4_batch64=out/rate3e-4_batch64/losses.csv,... \
        --truth=experiments/results/pydoc_losses.csv --output_dir=out/settings

ranks the pool at every size of every setting as a budget, and evaluates by the losses of --truth
at its largest size: full tuning at one setting, whatever the cheap runs had.  Without --truth each
table's own largest size is the truth, and its smaller ones are budgets.  Candidates are those of
the first table.

--output_dir receives settings.csv: a row per setting, selector and budget with PearCorr, RelAcc and
the pool's mean loss at the budget (what an unsuitable setting raises).  Seconds on 2 cores; the
grids' minutes stand in experiments/results/README.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.curves import TABLE_SELECTORS, digests
from experiments.common.flags import define_curves, define_output_dir, define_selectors
from experiments.common.ranking_metrics import metrics_cell
from lensllm_jax import checks
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, known
from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.rank import rank

CURVES = define_curves("label=table (CSV), one per setting.")
TRUTH = flags.DEFINE_string("truth", None, "Loss table (CSV) with full tuning's losses.")
SELECTED = define_selectors(
    "lensllm", "rectified", "pooled", "ats", "subtuning", help="Which are evaluated."
)
OUTPUT_DIR = define_output_dir()


def main(_: Sequence[str]) -> None:
    """Ranks at every setting and budget, and writes how good each ranking was."""
    if unknown := set(SELECTED.value) - set(TABLE_SELECTORS):
        raise checks.UserError(
            f"`selectors` must be some that read a loss table, got {sorted(unknown)[0]!r}: name "
            f"{', '.join(TABLE_SELECTORS)}"
        )
    paths = _labelled_paths(CURVES.value)
    tables = {label: read_loss_table(path) for label, path in paths.items()}
    names = next(iter(tables.values())).names
    tables = {label: table.select(names) for label, table in tables.items()}
    truth = None if TRUTH.value is None else read_loss_table(TRUTH.value).select(names)
    for label, table in tables.items():
        _check(label, table, truth)
    files = [*paths.values(), *([TRUTH.value] if TRUTH.value else [])]
    folder = RunFolder.open(OUTPUT_DIR.value, {
        "settings": paths,
        "files": digests(files),
        "selectors": SELECTED.value,
        "seed": None,  # nothing is random
    })  # fmt: skip
    rows = [row for label, table in tables.items()
            for row in _rows_of(label, table, truth, SELECTED.value)]  # fmt: skip
    folder.write_rows("settings.csv", [known(row) for row in rows])
    _show(rows)
    print(f"written to {folder.path}")


def _labelled_paths(entries: Sequence[str]) -> dict[str, str]:
    """Label -> path of the entries label=path.

    Example:
        >>> _labelled_paths(["18=out/a/losses.csv", "20=out/b/losses.csv"])
        {'18': 'out/a/losses.csv', '20': 'out/b/losses.csv'}
    """
    pairs = [entry.strip().partition("=")[::2] for entry in entries]
    paths = dict(pairs)
    if not paths or not all(label and path for label, path in pairs) or len(paths) < len(pairs):
        raise checks.UserError(
            f"`curves` must be distinct labels with their tables, label=path, got "
            f"{','.join(entries)!r}"
        )
    return paths


def _check(label: str, table: LossTable, truth: LossTable | None) -> None:
    """Refuses a table that has no budget below the truth, or lacks a loss."""
    target = _target_of(table, truth)
    if len(table.names) < 3 or not _budgets_of(table, target):
        raise checks.UserError(
            f"`curves` must hold three or more candidates and a size above 0 and below {target}, "
            f"got {len(table.names)} and {table.sizes.tolist()} in {label}"
        )
    for size in _budgets_of(table, target):
        table.column(size)
    (table if truth is None else truth).column(target)


def _target_of(table: LossTable, truth: LossTable | None) -> int:
    """The size at which the pool is ranked."""
    return int((table if truth is None else truth).sizes[-1])


def _budgets_of(table: LossTable, target: int) -> list[int]:
    """Sizes above 0 that are smaller than the target."""
    return [int(size) for size in table.sizes if 0 < size < target]


def _rows_of(
    label: str, table: LossTable, truth: LossTable | None, selectors: Sequence[str]
) -> list[dict[str, Any]]:
    """Rows of settings.csv for one setting; ``truth`` holds full tuning's losses, if elsewhere."""
    target = _target_of(table, truth)
    losses = (table if truth is None else truth).by_name(target)
    rows = []
    for selector in selectors:
        for budget in _budgets_of(table, target):
            ranking = rank(table, budget_size=budget, target_size=target, selector=selector)
            rows.append({
                "setting": label, "selector": selector, "budget_size": budget,
                "target_size": target, **ranking.evaluate(losses)._asdict(),
                "mean_budget_loss": float(table.column(budget).mean()),
            })  # fmt: skip
    return rows


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """PearCorr and RelAcc of every setting, a table per budget; the last row is their range."""
    for budget in dict.fromkeys(row["budget_size"] for row in rows):
        of_budget = [row for row in rows if row["budget_size"] == budget]
        selectors = list(dict.fromkeys(row["selector"] for row in of_budget))
        shown = terminal.table(
            f"PearCorr / RelAcc (%) from {budget} examples",
            left=["setting"],
            right=[*selectors, "mean loss"],
        )
        for setting in dict.fromkeys(row["setting"] for row in of_budget):
            cells = [row for row in of_budget if row["setting"] == setting]
            metrics = (metrics_cell(row["pearson"], row["relative_accuracy"]) for row in cells)
            shown.add_row(setting, *metrics, f"{cells[0]['mean_budget_loss']:.3f}")
        ranges = []
        for selector in selectors:
            values = [row["pearson"] for row in of_budget if row["selector"] == selector]
            ranges.append(f"{np.ptp(values):.1f}")
        shown.add_row("range of PearCorr", *ranges, "")
        terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
