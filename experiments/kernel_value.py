r"""Does the kernel help?  What it adds to a prediction that does without it, at equal cost.

    python -m experiments.kernel_value --tables=experiments/results --task=pydoc \
        --output_dir=out/kernel-value

Each way of using the kernel is compared with the *same* method without it, candidate by candidate,
by the absolute error of the loss predicted at the largest size from 1/budget of it:

* prior: log D_l of the rectified law is drawn around mu + kappa log F; mu, kappa, the spread and
  the noise are fitted to the other candidates' measurements below the same budget.  Control: the
  same prior with kappa = 0.  Prediction: the posterior mean of the log loss.
* covariates: the log error of a base prediction (rectified, pooled), regressed by ridge on
  quantities of the kernel (trace and largest eigenvalue per example, decay of F and of the kernel's
  test residual at the step of the budget, fall of that residual from the smallest n to the
  largest).  The other candidates' full curves are known: a history that is paid for once.
  Controls: their mean error alone; ridge on quantities of the curve.

Everything is leave-one-candidate-out: no number of a candidate beyond the budget enters its own
prediction.  --output_dir receives predictions.csv (a row per method and candidate) and value.csv: a
row per method and budget with the mean of |error| - |control's error|, its 95 % bootstrap interval,
and sign-flip p-values alone and over all rows (lensllm_jax/paired.py).  kernel_share is the cost of
the kernels over that of the fine-tunes within the budget: a method with a kernel costs that much
more.
F enters Eq 10 itself in experiments/kernel_laws.py.  About a minute on 2 cores.  Expected for
pydoc: see docs/REPRODUCTION.md.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.optimize
import scipy.special
from jaxtyping import Float

from experiments.common import cli
from experiments.common.curves import check_budgets, divisors_of
from experiments.common.flags import (
    define_budgets,
    define_output_dir,
    define_tables,
    define_task_prefix,
)
from experiments.common.kernel_tables import Form, Pool, Rate, pool_digests, read_pool
from experiments.common.left_out import left_out_ridge
from lensllm_jax.metrics import pearson_correlation
from lensllm_jax.paired import paired
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.kernel import Measured
from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.rank import rank

TABLES_FOLDER = define_tables("Folder of the pool's tables.")
TASK = define_task_prefix()
BUDGETS = define_budgets(2, 4, 8)
OUTPUT_DIR = define_output_dir()

LOG_OFFSETS = np.linspace(-6.0, 14.0, 61)  # log D_l: from no pre-power phase to nothing else
PRIOR_RATES = (Rate.ADAMW, Rate.FASTEST)
BASES = ("rectified", "pooled")
PAIRED = {  # field of a comparison -> column of value.csv
    "mean": "less_control", "low": "low", "high": "high", "better": "better",
    "p_value": "p_value", "p_family": "p_family",
}  # fmt: skip

Vector = Float[np.ndarray, " num_candidates"]


@dataclasses.dataclass(frozen=True)
class Prediction:
    """Log losses at the largest size, predicted by one method from one budget."""

    method: str  # "prior" or "covariates of <base>"
    uses: str  # what beyond the losses, or "" for a control
    control: str  # ``uses`` of its control
    budget: int  # divisor of the largest size
    log_losses: Vector
    key: tuple[str, int] | None = None  # read-out and n of its kernel
    with_test: bool = False  # whether it reads the kernel's columns of the test examples


def main(_: Sequence[str]) -> None:
    """Predicts with and without the kernel and writes the comparison."""
    budgets = divisors_of(BUDGETS.value)
    pool = read_pool(TABLES_FOLDER.value, TASK.value)
    check_budgets(pool.table, budgets)
    truth = np.log(pool.table.column(int(pool.table.sizes[-1])))
    tables = pool_digests(TABLES_FOLDER.value, TASK.value)
    settings = {"task": TASK.value, "budgets": budgets, "tables": tables}
    folder = RunFolder.open(OUTPUT_DIR.value, settings)
    predictions = [p for b in budgets for p in (*priors(pool, b), *covariates(pool, b, truth))]
    folder.write_rows("predictions.csv", list(_prediction_rows(pool, predictions)))
    rows = value_rows(pool, predictions, truth)
    folder.write_rows("value.csv", rows)
    _show(rows)
    print(f"written to {folder.path}")


def priors(pool: Pool, budget: int) -> Iterator[Prediction]:
    """The rectified law under a common prior of D_l (the control), then under priors given F."""
    size = int(pool.table.sizes[-1]) // budget
    squares, log_losses = profile(pool, size)
    degrees_of_freedom = pool.within_budget(size).sum(1) - 3  # B, beta, E
    at_budget = int(np.flatnonzero(pool.table.sizes == size)[0])

    def predict(feature: Vector) -> Vector:
        spread = feature.std()
        z = (feature - feature.mean()) / spread if spread > 0 else np.zeros_like(feature)
        predicted = []
        for i in range(len(z)):
            others = np.arange(len(z)) != i
            prior = fit_prior(squares[others], degrees_of_freedom[others], z[others])
            weights = prior.posterior(squares[i], z[i])
            predicted.append(float(weights @ log_losses[i]))
        return np.array(predicted)

    yield Prediction("prior", "", "", budget, predict(np.zeros(len(squares))))
    for rate in PRIOR_RATES:
        for form in (Form.MATRIX, Form.TEST):
            for key in pool.kernels:
                f = pool.ntk_loss(form, key, rate, budget_size=size)[:, at_budget]
                uses = f"log F, {form.value}, eta {rate.value}"
                predicted = predict(np.log(f))
                yield Prediction("prior", uses, "", budget, predicted, key, form is Form.TEST)


def profile(
    pool: Pool, budget_size: int
) -> tuple[Float[np.ndarray, "num_candidates c"], Float[np.ndarray, "num_candidates c"]]:
    """The rectified law fitted up to ``budget_size`` with log D_l fixed at each of LOG_OFFSETS.

    Returns:
        Sums of squared log residuals, and predicted log losses at the largest size.
    """
    count, width = len(pool.table.names), len(LOG_OFFSETS)
    sizes = pool.table.sizes.astype(np.float64)
    fixed = np.repeat(np.tile(np.exp(LOG_OFFSETS), count)[:, None], len(sizes), axis=1)
    fits = fit_laws(
        Law.LENSLLM,
        sizes,
        np.repeat(pool.table.losses, width, axis=0),
        ntk=Measured(fixed),
        weights=np.repeat(pool.within_budget(budget_size), width, axis=0),
    )
    predicted = fits.predict(sizes[-1:], ntk_loss=fixed[:, -1:])
    return fits.objective.reshape(count, width), np.log(predicted).reshape(count, width)


@dataclasses.dataclass(frozen=True)
class Prior:
    r"""log D_l ~ N(mean + slope z, spread^2), log losses measured with a standard deviation."""

    log_noise: float  # of the standard deviation of a log loss
    mean: float
    log_spread: float
    slope: float  # kappa

    def log_joint(
        self, squares: Float[np.ndarray, "*n c"], z: Float[np.ndarray, "*n"]
    ) -> Float[np.ndarray, "*n c"]:
        """Log posterior over ``LOG_OFFSETS``, up to a constant in them."""
        off = LOG_OFFSETS - self.mean - self.slope * np.asarray(z)[..., None]
        return -0.5 * squares / np.exp(2 * self.log_noise) - 0.5 * off**2 / np.exp(
            2 * self.log_spread
        )

    def posterior(self, squares: Float[np.ndarray, " c"], z: float) -> Float[np.ndarray, " c"]:
        """Weights of ``LOG_OFFSETS`` for one candidate; they sum to 1."""
        return np.asarray(scipy.special.softmax(self.log_joint(squares, np.asarray(z))))


def fit_prior(
    squares: Float[np.ndarray, "n c"],
    degrees_of_freedom: Float[np.ndarray, " n"],
    z: Float[np.ndarray, " n"],
) -> Prior:
    """The prior that makes the candidates' measurements most likely (empirical Bayes).

    Args:
        squares: sums of squared log residuals at each fixed log D_l.
        degrees_of_freedom: sizes minus the parameters that the profile has fitted.
        z: the mean of log D_l is linear in it; all 0 for a common prior.
    """
    usable = np.all(np.isfinite(squares), axis=1)
    squares, num_residuals, z = squares[usable], degrees_of_freedom[usable].sum(), z[usable]

    def minus_log_evidence(at: np.ndarray) -> tuple[float, np.ndarray]:
        return _minus_log_evidence(Prior(*at), squares, num_residuals, z)

    # noise of 0.01 % to 30 %; a spread no finer than the grid, none wider than it
    step = float(LOG_OFFSETS[1] - LOG_OFFSETS[0])
    bounds = [(np.log(1e-4), np.log(0.3)), (LOG_OFFSETS[0], LOG_OFFSETS[-1])]
    bounds += [(np.log(step), np.log(20.0)), (-5.0, 5.0) if np.any(z) else (0.0, 0.0)]
    starts = [(np.log(0.01), mean, np.log(2.0), 0.0) for mean in (0.0, 4.0, 8.0)]
    results = [
        scipy.optimize.minimize(
            minus_log_evidence, start, jac=True, bounds=bounds, method="L-BFGS-B"
        )
        for start in starts
    ]
    return Prior(*map(float, min(results, key=lambda result: result.fun).x))


def _minus_log_evidence(
    prior: Prior, squares: np.ndarray, num_residuals: float, z: np.ndarray
) -> tuple[float, np.ndarray]:
    """Its value, and its gradient with respect to the fields of the prior."""
    joint = prior.log_joint(squares, z)
    log_norm = num_residuals * prior.log_noise + len(z) * prior.log_spread
    largest = joint.max(axis=1, keepdims=True)
    weights = np.exp(joint - largest)
    total = weights.sum(axis=1, keepdims=True)
    value = log_norm - (np.log(total) + largest).sum()
    weights /= total
    off = LOG_OFFSETS[None] - prior.mean - prior.slope * z[:, None]
    precision = np.exp(-2 * prior.log_spread)
    gradient = [
        num_residuals - (weights * squares).sum() * np.exp(-2 * prior.log_noise),
        -(weights * off).sum() * precision,
        len(z) - (weights * off**2).sum() * precision,
        -(weights * off * z[:, None]).sum() * precision,
    ]
    return float(value), np.array(gradient)


def covariates(pool: Pool, budget: int, truth: Vector) -> Iterator[Prediction]:
    """Base predictions, corrected by what the other candidates' full curves teach.

    ``truth`` are log losses at the largest size; a candidate's own does not enter its prediction.
    """
    size = int(pool.table.sizes[-1]) // budget
    curve = _curve_features(pool, size)
    for base in BASES:
        ranking = rank(
            pool.table, budget_size=size, target_size=int(pool.table.sizes[-1]), selector=base
        )
        predicted = np.log([ranking.predicted[name] for name in pool.table.names])
        method = f"covariates of {base}"

        def corrected(features: np.ndarray, predicted: np.ndarray = predicted) -> Vector:
            return predicted + left_out_ridge(features, truth - predicted)

        yield Prediction(method, "", "", budget, corrected(np.zeros((len(truth), 0))))
        yield Prediction(method, "curve", "", budget, corrected(curve))
        for key in pool.kernels:
            kernel = kernel_features(pool, key, size)
            both = np.column_stack([curve, kernel])
            yield Prediction(method, "kernel", "", budget, corrected(kernel), key, True)
            yield Prediction(
                method, "curve and kernel", "curve", budget, corrected(both), key, True
            )


def _curve_features(pool: Pool, budget_size: int) -> Float[np.ndarray, "num_candidates 3"]:
    """Fall of the log loss so far, its last slope per octave, and the log loss at the budget."""
    logs = np.log(pool.table.up_to(budget_size).losses)
    return np.column_stack([logs[:, 0] - logs[:, -1], logs[:, -2] - logs[:, -1], logs[:, -1]])


def kernel_features(
    pool: Pool, key: tuple[str, int], budget_size: int
) -> Float[np.ndarray, "num_candidates 5"]:
    """Trace and largest eigenvalue per example, decays at the budget's step, fall with n; logs."""
    at = int(np.flatnonzero(pool.table.sizes == budget_size)[0])

    def decay(form: Form, which: tuple[str, int]) -> Vector:
        f = pool.ntk_loss(form, which, Rate.ADAMW, budget_size=budget_size)
        return np.log(f[:, at] / f[:, 0])

    kernels = pool.kernels[key]
    least, most = (pick(k for k in pool.kernels if k[0] == key[0]) for pick in (min, max))
    return np.column_stack(
        [
            np.log([k.eigenvalues.sum() / k.num_examples for k in kernels]),
            np.log([k.largest / k.num_examples for k in kernels]),
            decay(Form.MATRIX, key),
            decay(Form.TEST, key),
            decay(Form.TEST, most) - decay(Form.TEST, least),
        ]
    )


def _prediction_rows(pool: Pool, predictions: Sequence[Prediction]) -> Iterator[dict[str, Any]]:
    for p in predictions:
        for name, log_loss in zip(pool.table.names, p.log_losses, strict=True):
            row = {**_columns(p), "control": p.control if p.key else "", "candidate": name}
            yield {**row, "predicted_loss": f"{np.exp(log_loss):.6g}"}


def _columns(p: Prediction) -> dict[str, Any]:
    readout, num_examples = p.key if p.key else ("", "")
    return {
        "method": p.method,
        "uses": p.uses,
        "readout": readout,
        "num_examples": num_examples,
        "budget_fraction": 1.0 / p.budget,
    }


def value_rows(
    pool: Pool, predictions: Sequence[Prediction], truth: Vector
) -> list[dict[str, Any]]:
    """Rows of value.csv; a control has no difference."""
    errors = [np.abs(np.exp(p.log_losses) - np.exp(truth)) for p in predictions]
    of_control = {
        (p.method, p.uses, p.budget): error
        for p, error in zip(predictions, errors, strict=True)
        if p.key is None
    }
    differences = [
        error - of_control[p.method, p.control, p.budget]
        for p, error in zip(predictions, errors, strict=True)
        if p.key is not None
    ]
    compared = iter(_paired_columns(np.array(differences)))
    return [
        {
            **_columns(p),
            "kernel_share": f"{_kernel_share(pool, p):.3g}",
            "mean_error": f"{error.mean():.6g}",
            "pearson": f"{pearson_correlation(np.exp(p.log_losses), np.exp(truth)):.4g}",
            **(dict.fromkeys(PAIRED.values(), "") if p.key is None else next(compared)),
        }
        for p, error in zip(predictions, errors, strict=True)
    ]


def _kernel_share(pool: Pool, p: Prediction) -> float:
    if p.key is None:
        return 0.0
    size = int(pool.table.sizes[-1]) // p.budget
    return pool.kernel_share(p.key, size, with_test=p.with_test)


def _paired_columns(differences: np.ndarray) -> Iterator[dict[str, str]]:
    """Of each prediction with a kernel."""
    result = paired(differences)
    for i in range(len(differences)):
        yield {column: f"{getattr(result, name)[i]:.4g}" for name, column in PAIRED.items()}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    """Per method: how often the kernel helped, and whether one comparison stands alone."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["method"], row["uses"]), []).append(row)
    shown = terminal.table(
        "|error| in nats per byte at the largest size; difference from control",
        left=["method", "uses"],
        right=["rows", "mean |error|", "difference", "helped", "p < 0.05"],
    )
    for (method, uses), group in groups.items():
        mean = float(np.mean([float(row["mean_error"]) for row in group]))
        compared = [row for row in group if row["less_control"]]
        cells = ["", "", ""]
        if compared:
            values = np.array([float(row["less_control"]) for row in compared])
            sure = sum(float(row["p_value"]) < 0.05 for row in compared)
            cells = [f"{values.mean():+.4f}", f"{(values < 0).sum()}", f"{sure}"]
        shown.add_row(method, uses or "(control)", str(len(group)), f"{mean:.4f}", *cells)
    terminal.show(shown)
    compared = [row for row in rows if row["less_control"]]
    best = min(compared, key=lambda row: float(row["p_family"]))
    print(
        f"of {len(compared)} comparisons the least family-wise p-value is {best['p_family']} "
        f"({best['method']}, {best['uses']}, 1/{1 / best['budget_fraction']:.0f}, difference "
        f"{best['less_control']})"
    )


if __name__ == "__main__":
    cli.run(main)
