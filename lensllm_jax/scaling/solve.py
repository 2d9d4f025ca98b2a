r"""Many fits of one law at once: curves x starts under one ``vmap``, in float64, compiled once.

For each curve the objective (FORMULAS: the LSE form in log space) is

.. math:: \min_\theta \sum_i w_i\,\rho(\log \hat L(D_i; \theta) - \log L(D_i)),

:math:`\theta = (a, \delta, \beta, E, \alpha)` as in :func:`laws.log_loss`; a law is the box
that theta may move in.  Given :math:`(\delta, \beta, \alpha)` every law is linear in
:math:`(e^a, E)`, so a grid over those three with a closed-form inner solve searches the whole
box; the best point of each region starts a bounded Levenberg-Marquardt run.  Nothing is
random: the same input gives the same bits.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.laws import Law
    >>> sizes = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    >>> solved = solve_curves(Law.POWER, sizes, (sizes**-0.5 + 1.0)[None])
    >>> solved.theta[0].round(6)[2:4]  # beta, E
    array([0.5, 1. ])
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax.scaling.laws import Law, log_loss
from lensllm_jax.scaling.least_squares import minimise_least_squares

NUM_THETA = 5
MIN_LOG_F = -30.0  # exp(-30) beside D^beta >= 1: no pre-power phase at all
NO_F = -700.0  # log F of the laws without F; exp(-700) is 0 beside any D^beta
MAX_LOG_F = 300.0
BETA_BOUNDS = (1e-4, 20.0)
ALPHA_BOUNDS = (0.02, 50.0)
LOG_SCALE_BOUNDS = (-60.0, 30.0)

# The grid of starts: NUM_BETA exponents x NUM_SECOND values of delta or alpha.
NUM_BETA, NUM_SECOND = 24, 16
BLOCKS = (3, 2)  # regions of the grid that each send one start
FIRST_STEPS, LAST_STEPS = 25, 500
SIZE_BLOCK = 16  # sizes are padded to a multiple of it


class Solved(NamedTuple):
    """Fits of ``num_curves`` curves, as numpy arrays in float64."""

    theta: Float[np.ndarray, "num_curves 5"]  # (a, delta, beta, E, alpha)
    objective: Float[np.ndarray, " num_curves"]  # weighted sum of rho over sizes
    converged: Bool[np.ndarray, " num_curves"]  # stationary in the box


class _Problem(NamedTuple):
    """One curve with its box and grid; arrays get a leading curve axis under vmap."""

    log_size: Any  # (m,), numpy or JAX
    log_losses: Any  # (m,)
    weights: Any  # (m,)
    log_offset: Any  # (m,) log of a measured F, else 0
    log_reference: Any  # () log of the largest size measured
    log_offset_reference: Any  # ()
    lower: Any  # (5,)
    upper: Any  # (5,)


def box(
    law: Law, *, measured_f: bool, max_log_f: float = MAX_LOG_F, max_loss: float = 1e6
) -> tuple[Float[np.ndarray, "5"], Float[np.ndarray, "5"]]:
    """Lower and upper bounds of theta; equal where the law has no such parameter."""
    log_f = {
        Law.POWER: (NO_F, NO_F),
        Law.VANILLA: (NO_F, NO_F),
        Law.RECTIFIED: (MIN_LOG_F, MAX_LOG_F),
        Law.LENSLLM: (0.0, 0.0) if measured_f else (MIN_LOG_F, max_log_f),
    }[law]
    alpha = ALPHA_BOUNDS if law is Law.VANILLA else (1.0, 1.0)
    bounds = np.array([LOG_SCALE_BOUNDS, log_f, BETA_BOUNDS, (0.0, max_loss), alpha])
    return bounds[:, 0], bounds[:, 1]


def _grid(law: Law, log_size: np.ndarray, *, measured_f: bool) -> np.ndarray:
    """Points (log D*, beta, alpha), (NUM_BETA, NUM_SECOND, 3); D* is where the slope turns."""
    beta = np.geomspace(0.01, 3.0, NUM_BETA)
    positive = log_size[np.isfinite(log_size)]
    transition = np.linspace(positive.min() - 3.0, positive.max() + 3.0, NUM_SECOND)
    alpha = np.ones(NUM_SECOND)
    if law is Law.VANILLA:
        alpha = np.geomspace(0.2, 8.0, NUM_SECOND)
    if law in (Law.POWER, Law.VANILLA) or measured_f:
        transition = np.zeros(NUM_SECOND)  # clipped to the law's own log F
    grid = np.empty((NUM_BETA, NUM_SECOND, 3))
    grid[..., 0], grid[..., 1], grid[..., 2] = transition[None], beta[:, None], alpha[None]
    return grid


def _predict_fn(problem: _Problem):
    def predict(theta):
        one_size = jax.vmap(log_loss, in_axes=(None, 0, None, 0, None))
        return one_size(
            theta,
            problem.log_size,
            problem.log_reference,
            problem.log_offset,
            problem.log_offset_reference,
        )

    return predict


def _start_at(problem: _Problem, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Best (a, E) at one grid point, and the objective there (squares)."""
    transition, beta, alpha = point
    delta = jnp.clip(transition * beta, problem.lower[1], problem.upper[1])
    predict = _predict_fn(problem)
    unit = jnp.stack([jnp.zeros(()), delta, beta, jnp.zeros(()), jnp.ones(())])
    basis = jnp.exp(predict(unit))
    target = jnp.exp(problem.log_losses / alpha)
    w = problem.weights / target**2  # relative errors are errors of the logarithm
    gg, g1, one = jnp.sum(w * basis**2), jnp.sum(w * basis), jnp.sum(w)
    gy, y1 = jnp.sum(w * basis * target), jnp.sum(w * target)
    determinant = gg * one - g1**2
    floor = jnp.where(determinant > 1e-12 * gg * one, (gg * y1 - g1 * gy) / determinant, 0.0)
    floor = jnp.clip(floor, 0.0, 0.999 * jnp.min(jnp.where(w > 0, target, jnp.inf)))
    scale = jnp.maximum((gy - floor * g1) / gg, 1e-12)
    theta = jnp.clip(
        jnp.stack([jnp.log(scale), delta, beta, floor, alpha]), problem.lower, problem.upper
    )
    error = jnp.sum(problem.weights * (predict(theta) - problem.log_losses) ** 2)
    return theta, jnp.where(jnp.isfinite(error), error, jnp.inf)


def _starts(problem: _Problem, grid: jax.Array) -> jax.Array:
    """The best grid point of each block, shape (num_blocks, 5)."""
    theta, error = jax.vmap(jax.vmap(lambda point: _start_at(problem, point)))(grid)
    rows, columns = BLOCKS
    split = (rows, NUM_BETA // rows, columns, NUM_SECOND // columns)
    error = error.reshape(split).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    theta = theta.reshape(*split, NUM_THETA).transpose(0, 2, 1, 3, 4)
    theta = theta.reshape(rows * columns, -1, NUM_THETA)
    return jax.vmap(lambda candidates, errors: candidates[jnp.argmin(errors)])(theta, error)


def _solve_one(problem: _Problem, grid: jax.Array, extra_start: jax.Array, huber_delta: jax.Array):
    predict = _predict_fn(problem)

    def residuals_fn(theta):
        return predict(theta) - problem.log_losses

    def run(start, max_steps):
        return minimise_least_squares(
            residuals_fn,
            start,
            problem.lower,
            problem.upper,
            problem.weights,
            huber_delta,
            max_steps=max_steps,
        )

    starts = jnp.concatenate([_starts(problem, grid), extra_start[None]])
    first = jax.vmap(lambda start: run(start, FIRST_STEPS))(starts)
    return run(first.theta[jnp.argmin(first.objective)], LAST_STEPS)


@jax.jit
def _solve_batch(problem: _Problem, grid, extra_start, huber_delta):
    return jax.vmap(_solve_one, in_axes=(0, None, 0, None))(problem, grid, extra_start, huber_delta)


def _pad_rows(array: np.ndarray, num_curves: int) -> np.ndarray:
    """Repeats the first curve up to the next power of two: few shapes, so few compilations."""
    count = 1 << (num_curves - 1).bit_length()
    return np.concatenate([array, np.repeat(array[:1], count - num_curves, axis=0)])


def _padded(arrays: _Problem, num_curves: int, num_sizes: int) -> _Problem:
    """The same, and sizes of weight 0 up to the next multiple of ``SIZE_BLOCK``."""

    def pad(array):
        return np.pad(_pad_rows(array, num_curves), ((0, 0), (0, -num_sizes % SIZE_BLOCK)))

    per_size = ("log_size", "log_losses", "weights", "log_offset")
    return _Problem(
        **{
            name: pad(value) if name in per_size else _pad_rows(value, num_curves)
            for name, value in arrays._asdict().items()
        }
    )


def solve_curves(
    law: Law,
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_curves num_sizes"],
    *,
    weights: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    ntk_loss: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    max_ntk_loss: Float[np.ndarray, " num_curves"] | None = None,
    min_ntk_loss: Float[np.ndarray, " num_curves"] | None = None,
    huber_delta: float = np.inf,
    zero_floor: Bool[np.ndarray, " num_curves"] | None = None,
    start: Float[np.ndarray, "num_curves 5"] | None = None,
) -> Solved:
    """Fits ``law`` to every row of ``losses`` in one compiled call.

    Args:
        law: which law.
        sizes: training examples, the same for every curve; 0 allowed.
        losses: test losses, nats per token, positive; ignored where the weight is 0.
        weights: of the squared log residuals; default 1.
        ntk_loss: measured F at each size, for ``Law.LENSLLM`` with t observed.
        max_ntk_loss: upper bound of a free F (``Law.LENSLLM`` with t free).
        min_ntk_loss: lower bound of a free F.
        huber_delta: where the loss of a log residual turns from square to linear.
        zero_floor: which curves hold E at 0; default none.
        start: a further start a curve, for refits near a known optimum.

    Returns:
        theta, objective and convergence of each curve; inputs are trusted (see ``fit_laws``).
    """
    num_curves = len(losses)
    weights = np.ones_like(losses, np.float64) if weights is None else weights
    with np.errstate(divide="ignore"):
        log_size = np.log(np.asarray(sizes, np.float64))
    if law in (Law.POWER, Law.VANILLA):
        weights = np.where(np.isneginf(log_size)[None], 0.0, weights)
        log_size = np.where(np.isneginf(log_size), 0.0, log_size)  # their loss there is infinite
    offset = np.zeros_like(losses) if ntk_loss is None else np.log(ntk_loss)
    lower, upper = box(law, measured_f=ntk_loss is not None, max_loss=10.0 * np.max(losses) + 1.0)
    lower, upper = np.tile(lower, (num_curves, 1)), np.tile(upper, (num_curves, 1))
    if law is Law.LENSLLM and ntk_loss is None:
        for bound, value in ((upper, max_ntk_loss), (lower, min_ntk_loss)):
            if value is not None:
                bound[:, 1] = np.clip(np.log(np.maximum(value, 1e-300)), MIN_LOG_F, MAX_LOG_F)
    if zero_floor is not None:
        upper[zero_floor, 3] = 0.0
    largest = np.argmax(np.where(weights > 0, log_size[None], -np.inf), axis=1)
    rows = np.arange(num_curves)
    grid = _grid(law, log_size, measured_f=ntk_loss is not None)
    if start is None:
        start = np.stack([np.log(losses.mean(1)), *([np.zeros(num_curves)] * 4)], axis=1)
        start[:, 2:] = 0.3, 0.0, 1.0
    arrays = _Problem(
        np.tile(log_size, (num_curves, 1)),
        np.log(np.where(weights > 0, losses, 1.0)),
        weights,
        offset,
        log_size[largest],
        offset[rows, largest],
        lower,
        upper,
    )
    with jax.enable_x64(True):
        found = _solve_batch(
            _padded(arrays, num_curves, len(log_size)),
            grid,
            _pad_rows(np.asarray(start, np.float64), num_curves),
            np.float64(huber_delta),
        )
        theta, objective, converged = (np.asarray(x)[:num_curves] for x in found)
    return Solved(theta, objective, converged)


def predict_log_losses(
    theta: Float[np.ndarray, "num_curves 5"],
    sizes: Float[np.ndarray, " num_sizes"],
    reference: Float[np.ndarray, " num_curves"],
    *,
    ntk_loss: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    ntk_loss_reference: Float[np.ndarray, " num_curves"] | None = None,
) -> Float[np.ndarray, "num_curves num_sizes"]:
    """Log losses of fitted curves at ``sizes``, by :func:`laws.log_loss`, in numpy and float64.

    Args:
        theta: fitted parameters.
        sizes: training examples.
        reference: each curve's reference size, the largest that it was fitted on.
        ntk_loss: measured F at ``sizes``, if the law was fitted with it.
        ntk_loss_reference: measured F at ``reference``.

    Returns:
        Logarithms of the losses.
    """
    a, delta, beta, E, alpha = (theta[:, i][:, None] for i in range(NUM_THETA))
    offset = 0.0 if ntk_loss is None else np.log(ntk_loss)
    offset_reference = 0.0 if ntk_loss_reference is None else np.log(ntk_loss_reference)[:, None]
    with np.errstate(divide="ignore", over="ignore"):  # a loss beyond float64 is infinite
        denominator = np.logaddexp(delta + offset, beta * np.log(np.asarray(sizes, float))[None])
        top = np.logaddexp(delta + offset_reference, beta * np.log(reference)[:, None])
        return alpha * np.log(np.exp(a + top - denominator) + E)
