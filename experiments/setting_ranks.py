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

ranks the pool at every size of every setting as a budget, and judges by the losses of --truth at
its largest size: full tuning at one setting, whatever the cheap runs had.  Without --truth each
table's own largest size is the truth, and its smaller ones are budgets.  Candidates are those of
the first table.

--output_dir receives settings.csv: a row a setting, selector and budget with PearCorr, RelAcc and
the pool's mean loss at the budget (what an unsuitable setting raises).  Seconds on 2 cores; the
grids' minutes stand in experiments/results/README.md.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli, terminal
from experiments.common.flags import define_curves, define_output_dir
from experiments.common.run_folder import RunFolder, known, sha256_of
from experiments.common.verdicts import pair
from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors import NEEDS, SELECTORS

CURVES = define_curves("label=table (CSV), one per setting.")
TRUTH = flags.DEFINE_string("truth", None, "Loss table (CSV) with full tuning's losses.")
SELECTED = flags.DEFINE_list(
    "selectors", ["lensllm", "rectified", "pooled", "ats", "subtuning"], "Which are asked."
)
OUTPUT_DIR = define_output_dir()


def main(_: Sequence[str]) -> None:
    """Ranks at every setting and budget, and writes how good each ranking was."""
    if unknown := set(SELECTED.value) - (set(SELECTORS) - set(NEEDS)):
        raise checks.UserError(
            f"`selectors` must be some that read a loss table, got {sorted(unknown)[0]!r}: name "
            f"{', '.join(name for name in SELECTORS if name not in NEEDS)}"
        )
    paths = labelled_paths(CURVES.value)
    tables = {label: read_loss_table(path) for label, path in paths.items()}
    names = next(iter(tables.values())).names
    tables = {label: table.select(names) for label, table in tables.items()}
    truth = None if TRUTH.value is None else read_loss_table(TRUTH.value).select(names)
    for label, table in tables.items():
        check(label, table, truth)
    files = [*paths.values(), *([TRUTH.value] if TRUTH.value else [])]
    folder = RunFolder.open(OUTPUT_DIR.value, {
        "settings": paths,
        "files": {path: sha256_of(path) for path in files},
        "selectors": SELECTED.value,
        "seed": None,  # nothing is random
    })  # fmt: skip
    rows = [row for label, table in tables.items()
            for row in rows_of(label, table, truth, SELECTED.value)]  # fmt: skip
    folder.write_rows("settings.csv", [known(row) for row in rows])
    show(rows)
    print(f"written to {folder.path}")


def labelled_paths(entries: Sequence[str]) -> dict[str, str]:
    """What --curves names.

    Args:
        entries: label=path.

    Returns:
        Label -> path.

    Raises:
        UserError: for an entry without a label, or two with the same.

    Example:
        >>> labelled_paths(["18=out/a/losses.csv", "20=out/b/losses.csv"])
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


def check(label: str, table: LossTable, truth: LossTable | None) -> None:
    """Refuses a table that has no budget below the truth, or lacks a loss."""
    target = target_of(table, truth)
    if len(table.names) < 3 or not budgets_of(table, target):
        raise checks.UserError(
            f"`curves` must hold three or more candidates and a size above 0 and below {target}, "
            f"got {len(table.names)} and {table.sizes.tolist()} in {label}"
        )
    for size in budgets_of(table, target):
        table.column(size)
    (table if truth is None else truth).column(target)


def target_of(table: LossTable, truth: LossTable | None) -> int:
    """The size that the pool is ranked at."""
    return int((table if truth is None else truth).sizes[-1])


def budgets_of(table: LossTable, target: int) -> list[int]:
    """Sizes that a ranking may pay for."""
    return [int(size) for size in table.sizes if 0 < size < target]


def rows_of(
    label: str, table: LossTable, truth: LossTable | None, selectors: Sequence[str]
) -> list[dict[str, Any]]:
    """How good each selector's ranking is at each budget of one setting.

    Args:
        label: of the setting.
        table: its losses.
        truth: where full tuning's losses stand, if elsewhere.
        selectors: which are asked.

    Returns:
        Rows of settings.csv.
    """
    target = target_of(table, truth)
    losses = (table if truth is None else truth).by_name(target)
    rows = []
    for selector in selectors:
        for budget in budgets_of(table, target):
            ranking = rank(table, budget_size=budget, target_size=target, selector=selector)
            rows.append({
                "setting": label, "selector": selector, "budget_size": budget,
                "target_size": target, **ranking.evaluate(losses)._asdict(),
                "mean_budget_loss": float(table.column(budget).mean()),
            })  # fmt: skip
    return rows


def show(rows: Sequence[Mapping[str, Any]]) -> None:
    """PearCorr and RelAcc of every setting, a table a budget; the last row is their range."""
    for budget in dict.fromkeys(row["budget_size"] for row in rows):
        mine = [row for row in rows if row["budget_size"] == budget]
        selectors = list(dict.fromkeys(row["selector"] for row in mine))
        shown = terminal.table(f"PearCorr / RelAcc (%) from {budget} examples")
        shown.add_column("setting")
        for column in (*selectors, "mean loss"):
            shown.add_column(column, justify="right")
        for setting in dict.fromkeys(row["setting"] for row in mine):
            cells = [row for row in mine if row["setting"] == setting]
            pairs = (pair(row["pearson"], row["relative_accuracy"]) for row in cells)
            shown.add_row(setting, *pairs, f"{cells[0]['mean_budget_loss']:.3f}")
        ranges = []
        for selector in selectors:
            values = [row["pearson"] for row in mine if row["selector"] == selector]
            ranges.append(f"{np.ptp(values):.1f}")
        shown.add_row("range of PearCorr", *ranges, "")
        terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
