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

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.scaling.laws import UNITS
from lensllm_jax.scaling.least_squares import minimise_least_squares, with_jacobian
from lensllm_jax.scaling.result import FitStatus

NUM_FREE = 5
MAX_STEPS = 500
LOWER = np.array([-60.0, 0.0, -60.0, 0.0, 0.02])
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
        """Predicted losses, nats per token; infinite at D = 0."""
        p = self.params
        with np.errstate(divide="ignore"):
            data_term = p["B"] / np.asarray(sizes, np.float64)[None] ** p["alpha_D"]
        return (p["A"] / num_params[:, None] ** p["alpha_N"] + data_term) ** p["alpha"]


def _log_loss(theta, log_n, log_d):
    model, alpha_n, data, alpha_d, alpha = theta
    return alpha * jnp.logaddexp(model - alpha_n * log_n, data - alpha_d * log_d)


@jax.jit
def _solve(starts, log_n, log_d, log_loss):
    predict = jax.vmap(_log_loss, in_axes=(None, 0, 0))
    linearise = with_jacobian(lambda theta: predict(theta, log_n, log_d) - log_loss)
    weights, squares = jnp.ones_like(log_loss), jnp.asarray(jnp.inf)

    def run(start):
        return minimise_least_squares(
            linearise,
            start,
            jnp.asarray(LOWER),
            jnp.asarray(UPPER),
            weights,
            squares,
            max_steps=MAX_STEPS,
        )

    found = jax.vmap(run)(starts)
    best = jnp.argmin(found.objective)
    return jax.tree.map(lambda values: values[best], found)


def fit_kaplan(
    num_params: Float[np.ndarray, " num_candidates"],
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_candidates num_sizes"],
) -> KaplanFit:
    """Fits Eq 1 to the candidates of one family.

    Args:
        num_params: parameters of each candidate.
        sizes: training examples; 0 is left out, Eq 1 is infinite there.
        losses: test losses, nats per token; NaN is left out.

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
    names = ("A", "alpha_N", "B", "alpha_D", "alpha")
    units = {name: UNITS[name] for name in names}
    if min(len(np.unique(n)), len(np.unique(d))) < 2 or len(values) < NUM_FREE:
        nothing = dict.fromkeys(names, float("nan"))
        return KaplanFit(nothing, units, float("nan"), FitStatus.UNDERDETERMINED)
    log_n, log_d, log_loss = np.log(n), np.log(d), np.log(values)
    bracket = log_loss.mean() / STARTS[:, 2]
    starts = np.stack(
        [
            bracket + np.log(STARTS[:, 3]),
            STARTS[:, 0],
            bracket + np.log1p(-STARTS[:, 3]),
            STARTS[:, 1],
            STARTS[:, 2],
        ],
        axis=1,
    )
    with jax.enable_x64(True):
        found = _solve(starts, log_n - log_n.mean(), log_d - log_d.mean(), log_loss)
        theta, objective, converged = (np.asarray(x) for x in found)
    model, alpha_n, data, alpha_d, alpha = theta
    params = (
        np.exp(model + alpha_n * log_n.mean()),
        alpha_n,
        np.exp(data + alpha_d * log_d.mean()),
        alpha_d,
        alpha,
    )
    return KaplanFit(
        dict(zip(names, map(float, params), strict=True)),
        units,
        float(np.sqrt(objective / len(values))),
        FitStatus.CONVERGED if converged else FitStatus.MAX_STEPS,
    )
