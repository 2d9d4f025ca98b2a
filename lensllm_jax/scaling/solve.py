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

from lensllm_jax.scaling.laws import Law, log_loss, log_loss_gradient
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
FIRST_STEPS = 10
LATER_STEPS = (15, 60, 500)  # most curves are done after few; the last ones then run alone
CHUNK = 64  # lanes of one compiled call
SIZE_BLOCK = 16  # sizes are padded to a multiple of it


class Solved(NamedTuple):
    """Fits of ``num_curves`` curves, as numpy arrays in float64."""

    theta: Float[np.ndarray, "num_curves 5"]  # (a, delta, beta, E, alpha)
    objective: Float[np.ndarray, " num_curves"]  # weighted sum of rho over sizes
    converged: Bool[np.ndarray, " num_curves"]  # stationary in the box


class _Problem(NamedTuple):
    """One curve with its box and grid; arrays get a leading curve axis under vmap."""

    log_size: Any  # (m,), shared by all curves; numpy or JAX
    log_losses: Any  # (m,)
    weights: Any  # (m,)
    log_offset: Any  # (m,) log of a measured F, else 0 and shared
    log_reference: Any  # () log of the largest size measured
    log_offset_reference: Any  # ()
    lower: Any  # (5,)
    upper: Any  # (5,)


def box(
    law: Law, *, fixed_f: bool, max_log_f: float = MAX_LOG_F, max_loss: float = 1e6
) -> tuple[Float[np.ndarray, "5"], Float[np.ndarray, "5"]]:
    """Lower and upper bounds of theta; equal where the law has no such parameter."""
    log_f = {
        Law.POWER: (NO_F, NO_F),
        Law.VANILLA: (NO_F, NO_F),
        Law.RECTIFIED: (MIN_LOG_F, MAX_LOG_F),
        Law.LENSLLM: (0.0, 0.0) if fixed_f else (MIN_LOG_F, max_log_f),
    }[law]
    alpha = ALPHA_BOUNDS if law is Law.VANILLA else (1.0, 1.0)
    bounds = np.array([LOG_SCALE_BOUNDS, log_f, BETA_BOUNDS, (0.0, max_loss), alpha])
    return bounds[:, 0], bounds[:, 1]


def _grid(law: Law, log_size: np.ndarray, lower: np.ndarray, upper: np.ndarray) -> np.ndarray:
    """Points (delta, beta, alpha), (NUM_BETA, NUM_SECOND, 3), in the box of all curves."""
    beta = np.geomspace(0.01, 3.0, NUM_BETA)
    positive = log_size[np.isfinite(log_size)]
    # where the slope turns: log D* = delta / beta
    transition = np.linspace(positive.min() - 3.0, positive.max() + 3.0, NUM_SECOND)
    alpha = np.geomspace(0.2, 8.0, NUM_SECOND) if law is Law.VANILLA else np.ones(NUM_SECOND)
    grid = np.empty((NUM_BETA, NUM_SECOND, 3))
    grid[..., 0] = np.clip(beta[:, None] * transition[None], lower[:, 1].min(), upper[:, 1].max())
    grid[..., 1], grid[..., 2] = beta[:, None], alpha[None]
    return grid


def _start_at(problem: _Problem, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Best (a, E) at one grid point, and the objective there (squares).

    The basis 1 / (F + D^beta) has no part of one curve's own, so that ``vmap`` computes it once
    for all curves that share sizes.
    """
    delta, beta, alpha = point
    zero = jnp.zeros(())

    def log_basis_at(log_size, log_offset):
        # the reference 1 / (1 + 0) leaves -log(F + D^beta)
        unit = jnp.stack([zero, delta, beta, zero, jnp.ones(())])
        return log_loss(unit, log_size, zero, log_offset, zero)

    log_basis = jax.vmap(log_basis_at)(problem.log_size, problem.log_offset)
    basis = jnp.exp(log_basis)
    target = jnp.exp(problem.log_losses / alpha)
    w = problem.weights / target**2  # relative errors are errors of the logarithm
    gg, g1, one = jnp.sum(w * basis**2), jnp.sum(w * basis), jnp.sum(w)
    gy, y1 = jnp.sum(w * basis * target), jnp.sum(w * target)
    determinant = gg * one - g1**2
    floor = jnp.where(determinant > 1e-12 * gg * one, (gg * y1 - g1 * gy) / determinant, 0.0)
    floor = jnp.clip(floor, 0.0, 0.999 * jnp.min(jnp.where(w > 0, target, jnp.inf)))
    floor = jnp.minimum(floor, problem.upper[3])
    scale = jnp.maximum((gy - floor * g1) / gg, 1e-300)
    values = alpha * jnp.log(scale * basis + floor)
    error = jnp.sum(problem.weights * (values - problem.log_losses) ** 2)
    log_reference_basis = log_basis_at(problem.log_reference, problem.log_offset_reference)
    theta = jnp.stack([jnp.log(scale) + log_reference_basis, delta, beta, floor, alpha])
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


def _run(problem: _Problem, start: jax.Array, huber_delta: jax.Array, max_steps):
    def linearise(theta):
        one_size = jax.vmap(log_loss_gradient, in_axes=(None, 0, None, 0, None))
        values, jacobian = one_size(
            theta,
            problem.log_size,
            problem.log_reference,
            problem.log_offset,
            problem.log_offset_reference,
        )
        return values - problem.log_losses, jacobian

    return minimise_least_squares(
        linearise,
        start,
        problem.lower,
        problem.upper,
        problem.weights,
        huber_delta,
        max_steps=max_steps,
    )


def _axes(problem: _Problem) -> _Problem:
    """Sizes, and offsets without a measured F, are shared by all curves."""
    shared = problem._replace(log_size=None, log_offset=None if problem.log_offset.ndim == 1 else 0)
    return _Problem(*(0 if value is not None else None for value in shared))


@jax.jit
def _starts_batch(problem: _Problem, grid: jax.Array) -> jax.Array:
    return jax.vmap(_starts, in_axes=(_axes(problem), None))(problem, grid)


@jax.jit
def _run_batch(problem: _Problem, start: jax.Array, huber_delta: jax.Array, max_steps: jax.Array):
    return jax.vmap(_run, in_axes=(_axes(problem), 0, None, None))(
        problem, start, huber_delta, max_steps
    )


def _take(problem: _Problem, rows: np.ndarray) -> _Problem:
    axes = _axes(problem)
    return _Problem(
        *(x if axis is None else x[rows] for x, axis in zip(problem, axes, strict=True))
    )


def _chunked(count: int) -> list[np.ndarray]:
    """Lanes in chunks of one fixed length, the last filled up with lane 0.

    Whatever the number of curves, one shape is compiled; and slow curves hold up their chunk only.
    """
    lanes = np.concatenate([np.arange(count), np.zeros(-count % CHUNK, int)])
    return list(lanes.reshape(-1, CHUNK))


def _run_lanes(problem: _Problem, curves: np.ndarray, starts: np.ndarray, huber_delta, max_steps):
    """Levenberg-Marquardt from ``starts[i]`` on curve ``curves[i]``; one row a lane."""
    parts = [
        _run_batch(_take(problem, curves[lanes]), starts[lanes], huber_delta, np.int64(max_steps))
        for lanes in _chunked(len(curves))
    ]
    return [
        np.concatenate([np.asarray(x) for x in y])[: len(curves)] for y in zip(*parts, strict=True)
    ]


def _solve(problem: _Problem, grid, extra: np.ndarray | None, huber_delta) -> Solved:
    num_curves = len(problem.weights)
    parts = [_starts_batch(_take(problem, rows), grid) for rows in _chunked(num_curves)]
    starts = np.concatenate([np.asarray(part) for part in parts])[:num_curves]
    if extra is not None:
        starts = np.concatenate([starts, extra[:, None]], axis=1)
    # a few steps from every start, then the best one alone, the slow curves longest
    curves = np.repeat(np.arange(num_curves), starts.shape[1])
    lanes = _run_lanes(problem, curves, starts.reshape(-1, NUM_THETA), huber_delta, FIRST_STEPS)
    best = np.argmin(lanes[1].reshape(starts.shape[:2]), axis=1)
    best += starts.shape[1] * np.arange(num_curves)
    theta, objective, converged = (array[best] for array in lanes)
    for max_steps in LATER_STEPS:
        rows = np.flatnonzero(~converged)
        if not len(rows):
            break
        found = _run_lanes(problem, rows, theta[rows], huber_delta, max_steps)
        theta[rows], objective[rows], converged[rows] = found
    return Solved(theta, objective, converged)


def solve_curves(
    law: Law,
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_curves num_sizes"],
    *,
    weights: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    ntk_loss: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    free_scale: bool = False,
    max_ntk_loss: Float[np.ndarray, " num_curves"] | None = None,
    min_ntk_loss: Float[np.ndarray, " num_curves"] | None = None,
    huber_delta: float = np.inf,
    zero_floor: Bool[np.ndarray, " num_curves"] | None = None,
    start: Float[np.ndarray, "num_curves 5"] | None = None,
) -> Solved:
    """Fits ``law`` to every row of ``losses``.

    Args:
        law: which law.
        sizes: training examples, the same for every curve; 0 allowed.
        losses: test losses, nats per token, positive; ignored where the weight is 0.
        weights: of the squared log residuals; default 1.
        ntk_loss: measured F at each size, for ``Law.LENSLLM`` with t observed.
        free_scale: whether a free factor stands before it, one a curve.
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
    offset = np.zeros(len(sizes)) if ntk_loss is None else np.log(ntk_loss)
    fixed_f = ntk_loss is not None and not free_scale
    lower, upper = box(law, fixed_f=fixed_f, max_loss=10.0 * np.max(losses) + 1.0)
    lower, upper = np.tile(lower, (num_curves, 1)), np.tile(upper, (num_curves, 1))
    if law is Law.LENSLLM and ntk_loss is None:
        for bound, value in ((upper, max_ntk_loss), (lower, min_ntk_loss)):
            if value is not None:
                bound[:, 1] = np.clip(np.log(np.maximum(value, 1e-300)), MIN_LOG_F, MAX_LOG_F)
    if zero_floor is not None:
        upper[zero_floor, 3] = 0.0
    largest = np.argmax(np.where(weights > 0, log_size[None], -np.inf), axis=1)
    grid = _grid(law, log_size, lower, upper)
    more = (0, -len(sizes) % SIZE_BLOCK)  # sizes of weight 0, again for one shape
    problem = _Problem(
        np.pad(log_size, more),
        np.pad(np.log(np.where(weights > 0, losses, 1.0)), [(0, 0), more]),
        np.pad(np.asarray(weights, np.float64), [(0, 0), more]),
        np.pad(offset, [(0, 0)] * (offset.ndim - 1) + [more]),
        log_size[largest],
        np.zeros(num_curves) if ntk_loss is None else offset[np.arange(num_curves), largest],
        lower,
        upper,
    )
    with jax.enable_x64(True):
        return _solve(problem, grid, start, np.float64(huber_delta))


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
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # NaN: no fit; inf: too big
        denominator = np.logaddexp(delta + offset, beta * np.log(np.asarray(sizes, float))[None])
        top = np.logaddexp(delta + offset_reference, beta * np.log(reference)[:, None])
        return alpha * np.log(np.exp(a + top - denominator) + E)
