r"""Does the kernel help, over several tasks?  The comparisons of two binaries, pooled.

    python -m experiments.kernel_pooled --tables=experiments/results --tasks=pydoc,sotu \
        --output_dir=out/kernel-pooled

Reads, of each task, <task>_kernel_errors.csv (errors.csv of experiments/kernel_laws.py),
<task>_kernel_predictions.csv (predictions.csv of experiments/kernel_value.py) and
<task>_losses.csv.  A candidate's differences on two tasks are no two observations: those of the
candidates that all tasks have are averaged over the tasks first, and intervals and sign flips
(lensllm_jax/paired.py) then take the candidate as a whole.

--output_dir receives pooled.csv: a row per comparison that all tasks have, with the mean difference
(method minus control, nats per byte) on each task and over them, its 95 % interval, and p-values
alone and over all rows of its kind: `law` (F in Eq 10 against the rectified law, held out) and
`value` (another method with the kernel against the same without).  Seconds.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.common import cli
from experiments.common.flags import define_output_dir, define_tables, define_tasks
from lensllm_jax import checks
from lensllm_jax.paired import paired
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, read_rows, sha256_of
from lensllm_jax.selection.loss_table import read_loss_table

TABLES_FOLDER = define_tables()
TASKS = define_tasks()
OUTPUT_DIR = define_output_dir()

NAMES = ("kernel_errors", "kernel_predictions", "losses")  # of a task's tables
KINDS = ("law", "value")
LAW_COLUMNS = ("form", "readout", "num_examples", "rate", "unit", "budget_fraction")
VALUE_COLUMNS = ("method", "uses", "readout", "num_examples", "budget_fraction")
COLUMNS = ("form", "method", "uses", "readout", "num_examples", "rate", "unit", "budget_fraction")

Key = tuple[str, ...]  # of a comparison, the entries of COLUMNS
Differences = dict[Key, dict[str, float]]  # comparison -> candidate -> method minus control


def main(_: Sequence[str]) -> None:
    """Pools the comparisons of the tasks and writes them."""
    tasks = TASKS.value
    if len(tasks) < 2 or len(set(tasks)) < len(tasks):
        raise checks.UserError(f"`tasks` must be two or more distinct names, got {tasks}")
    paths = [Path(TABLES_FOLDER.value) / f"{task}_{name}.csv" for task in tasks for name in NAMES]
    for path in paths:
        if not path.is_file():
            raise checks.UserError(f"`tables` must hold {path.name}, got no {path}")
    differences = {
        "law": {task: law_differences(TABLES_FOLDER.value, task) for task in tasks},
        "value": {task: value_differences(TABLES_FOLDER.value, task) for task in tasks},
    }
    digests = {path.name: sha256_of(path) for path in paths}
    folder = RunFolder.open(OUTPUT_DIR.value, {"tasks": tasks, "tables": digests})
    rows = [row for kind in KINDS for row in pooled_rows(kind, differences[kind])]
    folder.write_rows("pooled.csv", rows)
    _show(rows)
    print(f"written to {folder.path}")


def law_differences(folder: str | Path, task: str) -> Differences:
    """Held-out error with F measured minus the rectified law's, candidate by candidate.

    Comparisons in which a candidate has no finite error are left out.
    """
    rows = [row for row in read_rows(Path(folder) / f"{task}_kernel_errors.csv")
            if float(row["budget_fraction"]) < 1]  # fmt: skip
    names = [name for name in rows[0] if name not in ("law", *LAW_COLUMNS)]
    control = {row["budget_fraction"]: row for row in rows if row["law"] == "rectified"}
    return {
        _key_of(row, LAW_COLUMNS): {
            name: float(row[name]) - float(control[row["budget_fraction"]][name]) for name in names
        }
        for row in rows
        if row["readout"] and all(row[name] for name in names)
    }


def value_differences(folder: str | Path, task: str) -> Differences:
    """|error| with the kernel minus that of the same method without, candidate by candidate."""
    table = read_loss_table(Path(folder) / f"{task}_losses.csv")
    truth = table.by_name(int(table.sizes[-1]))
    rows = read_rows(Path(folder) / f"{task}_kernel_predictions.csv")

    def error(row: Mapping[str, str]) -> float:
        return abs(float(row["predicted_loss"]) - truth[row["candidate"]])

    control = {
        tuple(row[name] for name in ("method", "uses", "budget_fraction", "candidate")): error(row)
        for row in rows
        if not row["readout"]
    }
    differences: Differences = {}
    for row in rows:
        if row["readout"]:
            names = ("method", "control", "budget_fraction", "candidate")
            difference = error(row) - control[tuple(row[name] for name in names)]
            key = _key_of(row, VALUE_COLUMNS)
            differences.setdefault(key, {})[row["candidate"]] = difference
    return differences


def _key_of(row: Mapping[str, str], columns: Sequence[str]) -> Key:
    """What names a comparison; columns that its kind lacks are empty."""
    return tuple(row[name] if name in columns else "" for name in COLUMNS)


def pooled_rows(kind: str, differences: Mapping[str, Differences]) -> list[dict[str, Any]]:
    """Rows of pooled.csv, one per comparison that every task has; ``differences`` by task.

    Raises:
        UserError: if the tasks have no comparison, or fewer than two candidates, in common.
    """
    tasks = list(differences)
    keys = [key for key in differences[tasks[0]] if all(key in differences[t] for t in tasks)]
    if not keys:
        raise checks.UserError(f"`tasks` must have a {kind} comparison in common, got none")
    names = sorted(set.intersection(*(set(differences[task][keys[0]]) for task in tasks)))
    if len(names) < 2:
        raise checks.UserError(f"`tasks` must have two or more candidates in common, got {names}")
    by_task = np.array([[[differences[task][key][name] for name in names] for task in tasks]
                        for key in keys])  # fmt: skip
    result = paired(averaged(by_task))
    return [
        {
            "kind": kind,
            **dict(zip(COLUMNS, key, strict=True)),
            "candidates": len(names),
            **{f"difference_{task}": f"{by_task[i, j].mean():.6g}" for j, task in enumerate(tasks)},
            **{
                {"mean": "difference"}.get(name, name): f"{getattr(result, name)[i]:.4g}"
                for name in ("mean", "low", "high", "better", "p_value", "p_family")
            },
        }
        for i, key in enumerate(keys)
    ]


def averaged(
    differences: Float[np.ndarray, "comparisons tasks n"],
) -> Float[np.ndarray, "comparisons n"]:
    """One number per candidate: tasks of one candidate are no independent observations."""
    return differences.mean(axis=1)


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """How many comparisons fall which way, by kind and method."""
    shown = terminal.table(
        "The kernel's differences over all tasks (nats per byte)",
        left=["kind", "method"],
        right=["rows", "mean", "smaller", "p<0.05 -/+", "family -/+"],
    )
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        uses = "log F" if row["method"] == "prior" else row["uses"]
        names = (row["form"], row["unit"]) if row["kind"] == "law" else (row["method"], uses)
        groups.setdefault((row["kind"], ", ".join(names)), []).append(row)
    for (kind, method), group in groups.items():
        difference, p, family = (
            np.array([float(row[name]) for row in group])
            for name in ("difference", "p_value", "p_family")
        )
        signs = [difference < 0, difference > 0]
        counts = [
            " / ".join(str(int((sign & (values < 0.05)).sum())) for sign in signs)
            for values in (p, family)
        ]
        cells = (str(len(group)), f"{difference.mean():+.4f}", str(int(signs[0].sum())), *counts)
        shown.add_row(kind, method, *cells)
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
