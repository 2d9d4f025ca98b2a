r"""Eq 1 across the candidates of one family: loss over model size and data together.

.. math:: L(N, D) = (A / N^{\alpha_N} + B / D^{\alpha_D})^{\alpha}

Five numbers describe a whole family, where Eq 2 needs four for each candidate.  The objective is
the log residual's square, summed over candidates and sizes, by the same bounded least squares as
the laws of one candidate.  The two terms are parametrised by their logarithms at the mean of log N
and of log D, where the data determine them.

Example:
    >>> num_params, sizes = np.array([1e6, 1e7, 1e8]), np.array([100.0, 1e3, 1e4, 1e5])
    >>> losses = (9.0 / num_params[:, None] ** 0.1 + 20.0 / sizes[None] ** 0.3) ** 0.8
    >>> fit = fit_kaplan(num_params, sizes, losses)
    >>> {name: round(value, 2) for name, value in fit.params.items()}
    {'A': 9.0, 'alpha_N': 0.1, 'B': 20.0, 'alpha_D': 0.3, 'alpha': 0.8}
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.scaling.laws import UNITS
from lensllm_jax.scaling.least_squares import minimise_least_squares, with_jacobian
from lensllm_jax.scaling.solution import FitStatus

PARAMETERS = ("A", "alpha_N", "B", "alpha_D", "alpha")
MAX_STEPS = 500
LOWER = np.array([-60.0, 0.0, -60.0, 0.0, 0.02])  # of _Theta
UPPER = np.array([60.0, 5.0, 60.0, 5.0, 50.0])
# starts: alpha_N, alpha_D, alpha, and the model term's share of the bracket
STARTS = np.array(
    [
        (n, d, a, share)
        for n in (0.05, 0.3)
        for d in (0.05, 0.2, 0.6)
        for a in (0.3, 1.0, 3.0)
        for share in (0.3, 0.8)
    ]
)


@dataclasses.dataclass(frozen=True)
class KaplanFit:
    """A fit of Eq 1 to one family."""

    params: dict[str, float]  # A, alpha_N, B, alpha_D, alpha; NaN if not usable
    units: dict[str, str]  # of each
    log_rmse: float  # root mean squared log residual
    status: FitStatus  # how it ended; its value is the message

    def predict(
        self,
        num_params: Float[np.ndarray, " num_candidates"],
        sizes: Float[np.ndarray, " num_sizes"],
    ) -> Float[np.ndarray, "num_candidates num_sizes"]:
        """Predicted losses, nats per byte; infinite at D = 0."""
        p = self.params
        with np.errstate(divide="ignore"):
            data_term = p["B"] / np.asarray(sizes, np.float64)[None] ** p["alpha_D"]
        return (p["A"] / num_params[:, None] ** p["alpha_N"] + data_term) ** p["alpha"]


class _Theta(NamedTuple):
    """What is fitted; sizes are measured from their mean logarithm."""

    log_model: Any  # log of the model term at mean log N
    alpha_N: Any
    log_data: Any  # log of the data term at mean log D
    alpha_D: Any
    alpha: Any


def _log_loss(theta: _Theta, log_n, log_d):
    return theta.alpha * jnp.logaddexp(
        theta.log_model - theta.alpha_N * log_n, theta.log_data - theta.alpha_D * log_d
    )


@jax.jit
def _solve(starts, log_n, log_d, log_loss):
    predict = jax.vmap(_log_loss, in_axes=(None, 0, 0))
    linearise = with_jacobian(lambda theta: predict(_Theta(*theta), log_n, log_d) - log_loss)

    def run(start):
        return minimise_least_squares(
            linearise,
            start,
            lower=jnp.asarray(LOWER),
            upper=jnp.asarray(UPPER),
            weights=jnp.ones_like(log_loss),
            huber_delta=jnp.asarray(jnp.inf),
            max_steps=MAX_STEPS,
        )

    runs = jax.vmap(run)(starts)
    best = jnp.argmin(runs.objective)
    return jax.tree.map(lambda values: values[best], runs)


def fit_kaplan(
    num_params: Float[np.ndarray, " num_candidates"],
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_candidates num_sizes"],
) -> KaplanFit:
    """Fits Eq 1 to the candidates of one family.

    Args:
        num_params: parameters of each candidate.
        sizes: training examples; 0 is left out, Eq 1 is infinite there.
        losses: test losses, nats per byte; NaN is left out.

    Returns:
        The fit; status UNDERDETERMINED with fewer than two distinct model sizes or two
        training-set sizes, or with fewer losses than parameters.

    Raises:
        UserError: if shapes disagree, or a loss or model size is not positive.
    """
    checks.shape("losses", losses, (len(num_params), len(sizes)))
    rows, columns = np.nonzero(~np.isnan(losses) & (np.asarray(sizes) > 0)[None])
    n, d = np.asarray(num_params, np.float64)[rows], np.asarray(sizes, np.float64)[columns]
    values = losses[rows, columns]
    for name, array in (("num_params", n), ("losses", values)):
        if not (np.isfinite(array) & (array > 0)).all():
            raise checks.UserError(f"`{name}` must be positive and finite, got {array.min()}")
    if min(len(np.unique(n)), len(np.unique(d))) < 2 or len(values) < len(PARAMETERS):
        return _fit([float("nan")] * len(PARAMETERS), float("nan"), FitStatus.UNDERDETERMINED)
    log_n, log_d, log_loss = np.log(n), np.log(d), np.log(values)
    with jax.enable_x64(True):
        solved = _solve(
            _starts(log_loss.mean()), log_n - log_n.mean(), log_d - log_d.mean(), log_loss
        )
        best, objective, converged = (np.asarray(x) for x in solved)
    theta = _Theta(*best)
    params = (
        np.exp(theta.log_model + theta.alpha_N * log_n.mean()),
        theta.alpha_N,
        np.exp(theta.log_data + theta.alpha_D * log_d.mean()),
        theta.alpha_D,
        theta.alpha,
    )
    status = FitStatus.CONVERGED if converged else FitStatus.MAX_STEPS
    return _fit([float(x) for x in params], float(np.sqrt(objective / len(values))), status)


def _starts(mean_log_loss: float) -> np.ndarray:
    alpha_n, alpha_d, alpha, share = STARTS.T
    bracket = mean_log_loss / alpha
    return np.stack(
        _Theta(bracket + np.log(share), alpha_n, bracket + np.log1p(-share), alpha_d, alpha),
        axis=1,
    )


def _fit(params: list[float], log_rmse: float, status: FitStatus) -> KaplanFit:
    units = {name: UNITS[name] for name in PARAMETERS}
    return KaplanFit(dict(zip(PARAMETERS, params, strict=True)), units, log_rmse, status)
