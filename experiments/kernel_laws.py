r"""Table 2 and Figure 3 with F measured: Eq 10, the rectified law, and the released forms.

    python -m experiments.kernel_laws --tables=experiments/results --task=pydoc \
        --output_dir=out/kernel-laws

In sample: a law is fitted to all sizes.  Held out: to the sizes up to 1/budget of the largest, and
evaluated on all larger ones, no prediction being above the largest loss that was fitted.  Errors
are root mean squares of raw losses in nats per byte, as in the paper's Table 2.  F is measured at
each size's own step, beyond the budget at steps in proportion to D
(experiments/common/kernel_tables.py), over

* form: the matrix exponential of Eq 9; the kernel's residual on test examples; the elementwise
  exponential and the scalar "kernel" of the released code;
* read-out and number of kernel examples n (loss and target_logprob have one F: the residual
  changes its sign, the kernel does not);
* eta: the fine-tune's rate over n; the released 0.01; 1 / lambda_max; one multiple of
  1 / lambda_max for the pool, chosen by the fit below the budget;
* unit: F as it stands (three parameters) or up to one fitted factor (four, as the rectified law).

--output_dir receives errors.csv (a row per law and budget, a column per candidate) and
differences.csv: a row per law and budget with the mean over candidates of law minus rectified, its
95 % bootstrap interval over candidates, and sign-flip p-values alone and over all held-out rows
(lensllm_jax/paired.py).
kernel_share is the FLOPs of the kernels over those of the fine-tunes within the budget: the law
with F costs that much more than its control.  About a minute on 2 cores.  Expected for pydoc: see
docs/REPRODUCTION.md.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from experiments.common import cli
from experiments.common.curves import check_budgets, divisors_of
from experiments.common.flags import (
    define_budgets,
    define_output_dir,
    define_tables,
    define_task_prefix,
)
from experiments.common.kernel_tables import MULTIPLES, Form, Pool, Rate, pool_digests, read_pool
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.paired import paired
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.kernel import Measured, Spectrum
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import LawFits

TABLES_FOLDER = define_tables("Folder of the pool's tables.")
TASK = define_task_prefix()
BUDGETS = define_budgets(2, 4, 8)
OUTPUT_DIR = define_output_dir()

ABLATED = ("target_logprob", 64)  # the kernel of the released code's forms, if it was measured
SHOWN = 6  # laws of the printed table


@dataclasses.dataclass(frozen=True)
class Variant:
    """One way for F to enter Eq 10."""

    form: Form
    key: tuple[str, int]  # read-out, n
    rate: Rate
    free_scale: bool  # whether F counts up to one fitted factor

    def columns(self) -> dict[str, Any]:
        """What names it in a table."""
        return {
            "law": "lensllm",
            "form": self.form.value,
            "readout": self.key[0],
            "num_examples": self.key[1],
            "rate": self.rate.value,
            "unit": "fitted" if self.free_scale else "as it stands",
        }


CONTROLS = {
    "rectified": {"law": "rectified", "form": "none"},
    "t free": {"law": "lensllm", "form": "matrix, one free t"},
    "power": {"law": "power", "form": "none"},
}
EMPTY = {"readout": "", "num_examples": "", "rate": "", "unit": ""}


def main(_: Sequence[str]) -> None:
    """Fits every law at every budget and writes errors and differences."""
    budgets = [1, *divisors_of(BUDGETS.value)]
    pool = read_pool(TABLES_FOLDER.value, TASK.value)
    check_budgets(pool.table, budgets)
    tables = pool_digests(TABLES_FOLDER.value, TASK.value)
    settings = {"task": TASK.value, "budgets": budgets, "tables": tables}
    folder = RunFolder.open(OUTPUT_DIR.value, settings)
    results = list(_all_results(pool, budgets))
    folder.write_rows("errors.csv", list(_error_rows(pool, results)))
    rows = difference_rows(pool, results)
    folder.write_rows("differences.csv", rows)
    _show(rows, budgets)
    print(f"written to {folder.path}")


class Result(NamedTuple):
    """Errors of one law fitted within one budget."""

    columns: dict[str, Any]  # what names the law in a table
    budget: int  # divisor of the largest size; 1 is in sample
    errors: Float[np.ndarray, " num_candidates"]  # nats per byte


def variants(pool: Pool) -> Iterator[Variant]:
    """All ways for F to enter that the tables allow."""
    ablated = ABLATED if ABLATED in pool.kernels else next(iter(pool.kernels))
    for free_scale in (False, True):
        for rate in Rate:
            for form in (Form.MATRIX, Form.TEST):
                for key in pool.kernels:
                    yield Variant(form, key, rate, free_scale)
            for form in (Form.ELEMENTWISE, Form.SCALAR):
                yield Variant(form, ablated, rate, free_scale)


def _all_results(pool: Pool, budgets: Sequence[int]) -> Iterator[Result]:
    """The controls, then every variant, at every budget."""
    largest = int(pool.table.sizes[-1])
    for budget in budgets:
        for name, columns in CONTROLS.items():
            fits = control_fits(pool, name, largest // budget)
            yield Result({**columns, **EMPTY}, budget, errors_of(pool, fits, None, budget))
    chosen = list(variants(pool))
    for free_scale in (False, True):
        jobs = [(v, b) for v in chosen if v.free_scale == free_scale for b in budgets]
        for (variant, budget), fits, ntk_loss in fit_variants(pool, jobs):
            errors = errors_of(pool, fits, ntk_loss, budget)
            yield Result(variant.columns(), budget, errors)


def control_fits(pool: Pool, name: str, budget_size: int) -> LawFits:
    """Fits of a law that needs no F, or of Eq 10 with one free t."""
    weights = pool.within_budget(budget_size)
    sizes, losses = pool.table.sizes.astype(np.float64), pool.table.losses
    if name != "t free":
        return fit_laws(Law(name), sizes, losses, weights=weights)
    key = ABLATED if ABLATED in pool.kernels else next(iter(pool.kernels))
    spectra = [
        NtkSpectrum(k.eigenvalues, k.projections, pool.learning_rate / k.num_examples)
        for k in pool.kernels[key]
    ]
    return fit_laws(Law.LENSLLM, sizes, losses, ntk=Spectrum(spectra), weights=weights)


def fit_variants(
    pool: Pool, jobs: Sequence[tuple[Variant, int]]
) -> Iterator[tuple[tuple[Variant, int], LawFits, np.ndarray]]:
    """Eq 10 with F measured, fitted to the losses within a budget, all jobs in one compiled call.

    Args:
        pool: losses, steps and kernels.
        jobs: how F enters, and the divisor of the largest size; all with the same ``free_scale``.

    Yields:
        The job, its fits, and F at every size as known at that budget.
    """
    largest, count = int(pool.table.sizes[-1]), len(pool.table.names)
    tried = [
        (job, multiple)
        for job in jobs
        for multiple in (MULTIPLES if job[0].rate is Rate.FITTED else (1.0,))
    ]
    ntk_loss = [
        pool.ntk_loss(v.form, v.key, v.rate, budget_size=largest // budget, multiple=multiple)
        for (v, budget), multiple in tried
    ]
    fits = fit_laws(
        Law.LENSLLM,
        pool.table.sizes.astype(np.float64),
        np.tile(pool.table.losses, (len(tried), 1)),
        ntk=Measured(np.concatenate(ntk_loss), free_scale=jobs[0][0].free_scale),
        weights=np.concatenate([pool.within_budget(largest // budget) for (_, budget), _ in tried]),
    )
    squares = np.nan_to_num(fits.objective, nan=np.inf).reshape(len(tried), count).sum(1)
    for job in jobs:
        # one multiple for the pool: the least sum of squared log residuals below the budget
        of_job = [i for i, (which, _) in enumerate(tried) if which == job]
        best = of_job[int(np.argmin(squares[of_job]))]
        yield job, fits.take(slice(best * count, (best + 1) * count)), ntk_loss[best]


def errors_of(
    pool: Pool, fits: LawFits, ntk_loss: np.ndarray | None, budget: int
) -> Float[np.ndarray, " num_candidates"]:
    """Root mean square error per candidate, nats per byte; NaN where no fit is usable.

    With a budget of 1, fits are evaluated on the sizes that were fitted, else on the larger ones.
    ``ntk_loss`` is F at every size, where the law reads it.
    """
    sizes = pool.table.sizes
    predicted = fits.predict(sizes.astype(np.float64), ntk_loss=ntk_loss)
    evaluated = (sizes > sizes[-1] // budget) if budget > 1 else np.ones(len(sizes), bool)
    if fits.law is Law.POWER:
        evaluated = evaluated & (sizes > 0)  # its loss at D = 0 is infinite
    losses, predicted = pool.table.losses[:, evaluated], predicted[:, evaluated]
    if budget > 1:
        # F that vanishes between two sizes lets a law predict any number: predictions are capped
        # at the largest loss that was fitted
        largest = fits.problem.losses.max(1, where=fits.problem.used, initial=0.0)
        predicted = np.minimum(predicted, largest[:, None])
    with np.errstate(over="ignore"):  # in sample a law without sense may lie that far off
        return np.sqrt(np.nanmean((predicted - losses) ** 2, axis=1, where=~np.isnan(losses)))


def _error_rows(pool: Pool, results: Sequence[Result]) -> Iterator[dict[str, Any]]:
    for columns, budget, errors in results:
        cells = ("" if np.isnan(error) else f"{error:.4g}" for error in errors)
        by_name = dict(zip(pool.table.names, cells, strict=True))
        yield {**columns, "budget_fraction": 1.0 / budget, **by_name}


def difference_rows(pool: Pool, results: Sequence[Result]) -> list[dict[str, Any]]:
    """Rows of differences.csv; a law that fails for a candidate has a row without a difference."""
    control = {r.budget: r.errors for r in results if r.columns["law"] == "rectified"}
    rows = [_mean_row(pool, result) for result in results]
    # in-sample rows are their own family: no prediction stands behind them
    for held_out in (False, True):
        differences = {
            i: difference
            for i, (_, budget, errors) in enumerate(results)
            if (budget > 1) == held_out
            and np.all(np.isfinite(difference := errors - control[budget]))
        }
        if differences:
            for i, columns in zip(differences, _paired_columns(differences), strict=True):
                rows[i] |= columns
    all_columns = {name: "" for row in rows for name in row}
    return [{**all_columns, **row} for row in rows]


def _mean_row(pool: Pool, result: Result) -> dict[str, Any]:
    columns, budget, errors = result
    key, share = (columns["readout"], columns["num_examples"]), 0.0
    if key in pool.kernels:
        with_test = columns["form"] == Form.TEST.value
        size = int(pool.table.sizes[-1]) // budget
        share = pool.kernel_share(key, size, with_test=with_test)
    return {
        **columns,
        "budget_fraction": 1.0 / budget,
        "kernel_share": f"{share:.3g}",
        "mean_rmse": f"{errors.mean():.6g}" if np.all(np.isfinite(errors)) else "",
    }


def _paired_columns(differences: Mapping[int, np.ndarray]) -> Iterator[dict[str, str]]:
    """Of each comparison in a family of them."""
    result = paired(np.array([*differences.values()]))
    for at in range(len(differences)):
        yield {
            "less_rectified": f"{result.mean[at]:.6g}",
            "low": f"{result.low[at]:.6g}",
            "high": f"{result.high[at]:.6g}",
            "better": f"{result.better[at]:.3g}",
            "p_value": f"{result.p_value[at]:.3g}",
            "p_family": f"{result.p_family[at]:.3g}",
        }


def _show(rows: Sequence[dict[str, Any]], budgets: Sequence[int]) -> None:
    """The controls, and the laws with F that come out best and worst on average."""
    by_law: dict[tuple, list[dict[str, Any]]] = {}
    for row in rows:
        name = tuple(row[k] for k in ("law", "form", "readout", "num_examples", "rate", "unit"))
        by_law.setdefault(name, []).append(row)

    def mean_difference(name: tuple) -> float:
        held_out = [row for row in by_law[name] if row["budget_fraction"] < 1]
        return float(np.mean([float(row["less_rectified"] or "inf") for row in held_out]))

    shown = terminal.table(
        "RMSE in nats per byte (mean minus the rectified law's)",
        left=["law"],
        right=["in sample" if budget == 1 else f"from 1/{budget}" for budget in budgets],
    )
    controls = [name for name in by_law if not name[2]]
    measured = sorted((name for name in by_law if name[2]), key=mean_difference)
    for name in [*controls, *measured[:SHOWN], *measured[-SHOWN:]]:
        cells = [f"{row['mean_rmse']} ({row['less_rectified']})" for row in by_law[name]]
        shown.add_row(" ".join(str(part) for part in name if part), *cells)
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
