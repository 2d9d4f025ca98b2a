r"""Does a kernel predict a learning curve?  The plan, written down before anything was run.

    python -m experiments.kernel_curve_value --tables=experiments/results --tasks=pydoc,sotu \
        --output_dir=out/kernel-curve-value

Reads, of each task, <task>_kernel_curves.csv (experiments/kernel_curves.py), <task>_losses.csv and
<task>_feature_scores.csv (experiments/feature_scores.py).  Two questions, each asked of every
read-out and estimate:

* level: does log E at the largest D of the curves order the candidates better than what needs no
  fine-tune either, the zero-shot loss and LogME (at its smallest budget)?  A candidate's error is
  the share of the other candidates that a score puts on the wrong side of it, by the loss at the
  table's largest size.
* slope: E falls as D^-2s in least squares on logarithms.  As a prior mean of each candidate's
  exponent, kappa s, it moves the posterior's log loss at the largest size by kappa s per log
  example.  Kappa and the pool's shift are ridge regression on the other candidates' full curves
  (leave-one-candidate-out), which is the best case for the kernel: such a history costs full
  tuning.  Control: the same with kappa = 0.  A candidate's error is |log predicted - log loss|,
  from 1/4, 1/8 and 1/16 of the largest size.

A candidate's differences, method minus control, are averaged over the tasks; sign flips over the
candidates (lensllm_jax/paired.py) give p-values alone and over all rows.  Primary rows: replica
estimate, target_logprob, level against the zero-shot loss and slope from 1/8.  A row counts as help
if its difference is negative and its family-wise p-value below 0.05; anything else is "not seen".
Regret, the excess of the pick's loss over the best one's in percent, is the mean over pools of 6
candidates drawn from each task's, and is not tested.

--output_dir receives curve_value.csv, a row per comparison.  Seconds.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float

from experiments.common import cli
from experiments.common.curves import check_budgets
from experiments.common.flags import define_output_dir, define_tables, define_tasks
from experiments.common.left_out import left_out_ridge
from lensllm_jax import checks
from lensllm_jax.linalg import fit_line
from lensllm_jax.paired import paired
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, read_rows, sha256_of
from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.rank import rank

TABLES_FOLDER = define_tables()
TASKS = define_tasks()
OUTPUT_DIR = define_output_dir()

NAMES = ("kernel_curves", "losses", "feature_scores")  # of a task's tables
BUDGETS = (4, 8, 16)  # divisors of the largest size
CONTROLS = ("zero_shot", "logme")  # of level
POOL_SIZE, NUM_POOLS = 6, 200  # of the regret
PRIMARY = {
    ("level", "target_logprob", "replica", "zero_shot", ""),
    ("slope", "target_logprob", "replica", "kappa = 0", "0.125"),
}

Key = tuple[str, str, str, str, str]  # question, read-out, estimate, control, budget fraction
Vector = Float[np.ndarray, " num_candidates"]


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A method and its control on one task."""

    error: Vector
    control_error: Vector
    regret: float  # percent
    control_regret: float


def main(_: Sequence[str]) -> None:
    """Compares on every task, pools the tasks and writes the rows."""
    paths = [Path(TABLES_FOLDER.value) / f"{task}_{name}.csv"
             for task in TASKS.value for name in NAMES]  # fmt: skip
    for path in paths:
        if not path.is_file():
            raise checks.UserError(f"`tables` must hold {path.name}, got no {path}")
    folder = RunFolder.open(OUTPUT_DIR.value, {
        "tasks": TASKS.value, "tables": {path.name: sha256_of(path) for path in paths},
    })  # fmt: skip
    rows = compared_rows([comparisons_of(TABLES_FOLDER.value, task) for task in TASKS.value])
    folder.write_rows("curve_value.csv", rows)
    _show(rows)
    print(f"written to {folder.path}")


def comparisons_of(folder: str | Path, task: str) -> dict[Key, Comparison]:
    """Every comparison on one task, candidates in alphabetical order."""
    stem = Path(folder) / task
    table = read_loss_table(f"{stem}_losses.csv", task=task)
    table = table.select(sorted(table.names))
    check_budgets(table, BUDGETS)
    curves = read_curves(f"{stem}_kernel_curves.csv", table.names)
    truth = np.log(table.column(int(table.sizes[-1])))
    known = {
        "zero_shot": table.column(0),
        "logme": -_logme(f"{stem}_feature_scores.csv", table.names),
    }
    found: dict[Key, Comparison] = {}
    for (readout, estimate), (sizes, errors) in curves.items():
        logs = np.log(errors)
        for name in CONTROLS:
            found["level", readout, estimate, name, ""] = Comparison(
                misordered(logs[:, -1], truth), misordered(known[name], truth),
                regret(logs[:, -1], truth), regret(known[name], truth),
            )  # fmt: skip
        slopes = np.array([-0.5 * fit_line(np.log(sizes), row).slope for row in logs])
        for budget in BUDGETS:
            key = ("slope", readout, estimate, "kappa = 0", f"{1 / budget:g}")
            found[key] = with_slope(table, budget, slopes, truth)
    return found


def with_slope(table: LossTable, budget: int, slopes: Vector, truth: Vector) -> Comparison:
    """The posterior with and without the slopes as a prior of the exponents."""
    target = int(table.sizes[-1])
    ranking = rank(table, budget_size=target // budget, target_size=target)
    predicted = np.log([ranking.predicted[name] for name in table.names])
    missed = truth - predicted
    moved = predicted + left_out_ridge(slopes[:, None], missed)
    control = predicted + left_out_ridge(np.zeros((len(truth), 0)), missed)
    return Comparison(
        np.abs(moved - truth), np.abs(control - truth), regret(moved, truth), regret(control, truth)
    )


def misordered(scores: Vector, truth: Vector) -> Vector:
    """Of each candidate, the share of the others on the wrong side; a tie is half wrong.

    Example:
        >>> misordered(np.array([1.0, 3.0, 2.0]), np.array([1.0, 2.0, 3.0]))
        array([0. , 0.5, 0.5])
    """
    said, true = (np.sign(values[:, None] - values[None]) for values in (scores, truth))
    wrong = 0.5 * np.abs(said - true)
    return wrong.sum(1) / (len(truth) - 1)


def regret(scores: Vector, truth: Vector) -> float:
    """Mean excess of the pick's loss over pools drawn from all candidates, percent."""
    random, size = np.random.default_rng(0), min(POOL_SIZE, len(truth))
    pools = [random.permutation(len(truth))[:size] for _ in range(NUM_POOLS)]
    excess = [truth[pool][np.argmin(scores[pool])] - truth[pool].min() for pool in pools]
    return 100.0 * float(np.mean(np.expm1(excess)))


def read_curves(
    path: str | Path, names: Sequence[str]
) -> dict[tuple[str, str], tuple[np.ndarray, Float[np.ndarray, "num_candidates num_sizes"]]]:
    """Sizes and mean square errors by read-out and estimate.

    Raises:
        UserError: if a candidate has no curve.
    """
    values: dict[tuple[str, str], dict[str, dict[int, float]]] = {}
    for row in read_rows(path):
        of_key = values.setdefault((row["readout"], row["estimate"]), {})
        of_key.setdefault(row["candidate"], {})[int(row["size"])] = float(row["mean_square"])
    for by_name in values.values():
        if missing := [name for name in names if name not in by_name]:
            raise checks.UserError(
                f"{path} must hold a curve of every candidate, got none of {missing[0]}"
            )
    return {
        key: (
            np.array(sorted(by_name[names[0]]), float),
            np.array([[by_name[n][d] for d in sorted(by_name[n])] for n in names]),
        )
        for key, by_name in values.items()
    }


def _logme(path: str | Path, names: Sequence[str]) -> Vector:
    """LogME of every candidate at the smallest budget."""
    rows = [row for row in read_rows(path) if row["selector"] == "logme"]
    least = min(float(row["budget_fraction"]) for row in rows)
    scores = {row["candidate"]: float(row["score"]) for row in rows
              if float(row["budget_fraction"]) == least}  # fmt: skip
    return np.array([scores[name] for name in names])


def compared_rows(by_task: Sequence[Mapping[Key, Comparison]]) -> list[dict[str, Any]]:
    """Rows of curve_value.csv: those of all tasks, differences averaged over them."""
    keys = [key for key in by_task[0] if all(key in found for found in by_task)]
    differences = np.array([
        np.mean([found[key].error - found[key].control_error for found in by_task], axis=0)
        for key in keys
    ])  # fmt: skip
    return list(_rows(keys, differences, by_task))


def _rows(
    keys: Sequence[Key], differences: np.ndarray, by_task: Sequence[Mapping[Key, Comparison]]
) -> Iterator[dict[str, Any]]:
    result = paired(differences)
    for i, key in enumerate(keys):
        found = [one[key] for one in by_task]
        numbers = {
            "mean_error": np.mean([one.error for one in found]),
            "control_error": np.mean([one.control_error for one in found]),
            "difference": result.mean[i],
            "low": result.low[i],
            "high": result.high[i],
            "better": result.better[i],
            "p_value": result.p_value[i],
            "p_family": result.p_family[i],
            "regret": np.mean([one.regret for one in found]),
            "control_regret": np.mean([one.control_regret for one in found]),
        }
        names = ("question", "readout", "estimate", "control", "budget_fraction")
        yield {
            **dict(zip(names, key, strict=True)),
            "primary": int(key in PRIMARY),
            **{name: f"{value:.4g}" for name, value in numbers.items()},
        }


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = terminal.table(
        "Mean error and regret (%), each compared with its control",
        left=["question", "read-out", "estimate", "control"],
        right=["from", "error", "its control's", "p, family", "regret", "its control's"],
    )
    for row in rows:
        cells = [row[k] for k in ("budget_fraction", "mean_error", "control_error", "p_family",
                                  "regret", "control_regret")]  # fmt: skip
        shown.add_row(row["question"], row["readout"], row["estimate"], row["control"], *cells)
    terminal.show(shown)
    helped = sum(float(row["difference"]) < 0 and float(row["p_family"]) < 0.05 for row in rows)
    print(f"of {len(rows)} comparisons {helped} are surely better than their control")


if __name__ == "__main__":
    cli.run(main)
