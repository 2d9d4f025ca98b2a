r"""Many fits of one law at once: curves x starts under one ``vmap``, in float64, compiled once.

The objective of a curve is the squared, or Huber's, log residual

.. math:: \min_\theta \sum_i w_i\,\rho(\log \hat L(D_i; \theta) - \log L(D_i))

in the box of the law (``_theta.py``).  Given :math:`(\delta, \beta, \alpha)` every law is linear in
:math:`(e^a, E)`, so a grid over those three with a closed-form inner solve searches the whole
box; the best point of each region starts a bounded Levenberg-Marquardt run.  Nothing is
random: the same input gives the same bits.

Example:
    >>> import numpy as np
    >>> sizes = np.array([1.0, 4.0, 16.0, 64.0, 256.0])
    >>> solved = solve_curves(FitProblem.checked("power", sizes, (sizes**-0.5 + 1.0)[None]))
    >>> Theta(*solved.theta[0].round(6)).beta, Theta(*solved.theta[0].round(6)).E
    (np.float64(0.5), np.float64(1.0))
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax.scaling._theta import NUM_THETA, Theta, log_loss, log_loss_gradient
from lensllm_jax.scaling.kernel import Measured
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.least_squares import minimise_least_squares
from lensllm_jax.scaling.problem import WITHOUT_ZERO, FitProblem

# The grid of starts: NUM_BETA exponents x NUM_SECOND values of delta or alpha.
NUM_BETA, NUM_SECOND = 24, 16
BLOCKS = (3, 2)  # regions of the grid that each send one start
FIRST_STEPS = 10
LATER_STEPS = (15, 60, 500)  # most curves are done after few; the last ones then run alone
CHUNK = 64  # lanes of one compiled call
SIZE_BLOCK = 16  # sizes are padded to a multiple of it
DELTA = Theta._fields.index("delta")


class Solved(NamedTuple):
    """Fits of ``num_curves`` curves, as numpy arrays in float64."""

    theta: Float[np.ndarray, "num_curves 5"]
    objective: Float[np.ndarray, " num_curves"]  # weighted sum of rho over sizes
    converged: Bool[np.ndarray, " num_curves"]  # stationary in the box


class _Curves(NamedTuple):
    """Curves with their boxes; under ``vmap`` one curve without the leading axis."""

    log_size: Any  # (m,), shared by all curves; numpy or JAX
    log_losses: Any  # (m,)
    weights: Any  # (m,)
    log_offset: Any  # (m,) log of a measured F, else 0 and shared
    log_reference: Any  # () log of the largest size used
    log_offset_reference: Any  # ()
    lower: Any  # (5,)
    upper: Any  # (5,)


def solve_curves(
    problem: FitProblem, start: Float[np.ndarray, "num_curves 5"] | None = None
) -> Solved:
    """Fits the law to every curve.

    Args:
        problem: a checked one.
        start: one more start per curve, for refits near a known optimum.
    """
    log_unit = _log_units(problem)
    problem = dataclasses.replace(problem, losses=problem.losses / np.exp(log_unit)[:, None])
    ntk_loss, centre = _centred_ntk_loss(problem)
    shift = np.zeros((len(problem), NUM_THETA))
    shift[:, DELTA] = centre
    if start is not None:
        start = _in_units(start, -log_unit) + shift
    curves = _curves(problem, ntk_loss)
    grid = _grid(curves.log_size[: len(problem.sizes)], problem)
    with jax.enable_x64(True):
        solved = _solve(curves, grid, start, np.float64(problem.huber_delta))
    return solved._replace(theta=_in_units(solved.theta - shift, log_unit))


def _log_units(problem: FitProblem) -> Float[np.ndarray, " num_curves"]:
    """Logarithm of the unit in which each curve is fitted; its last loss is e there if ``vanilla``.

    With a free alpha, E and e^a in other units are powers of those in nats: only a unit of the
    curve's own makes the fit the same in all, since flat optima end where the path ends.
    """
    if problem.law is not Law.VANILLA:
        return np.zeros(len(problem))
    last = np.argmax(np.where(problem.used, problem.sizes[None], -np.inf), axis=1)
    return np.log(problem.losses[np.arange(len(problem)), last]) - 1.0


def _in_units(
    theta: Float[np.ndarray, "num_curves 5"], log_factor: Float[np.ndarray, " num_curves"]
) -> Float[np.ndarray, "num_curves 5"]:
    """Theta of losses that are larger by a factor."""
    named = Theta(*theta.T)
    inside = log_factor / named.alpha
    return named._replace(a=named.a + inside, E=named.E * np.exp(inside)).stack()


def _log_sizes(problem: FitProblem) -> np.ndarray:
    # a law that is infinite at D = 0 is not fitted on it: any finite size stands in
    unread = (problem.sizes == 0) & (problem.law in WITHOUT_ZERO)
    with np.errstate(divide="ignore"):
        return np.log(np.where(unread, 1.0, problem.sizes))


def _centred_ntk_loss(problem: FitProblem) -> tuple[np.ndarray | None, np.ndarray]:
    """A measured F, and the logarithm of the factor that it was divided by.

    A free factor is searched around that which makes a curve's F about 1.
    """
    centre = np.zeros(len(problem))
    if not isinstance(problem.ntk, Measured):
        return None, centre
    ntk_loss = problem.ntk.loss
    if problem.ntk.free_scale:
        number = np.maximum(problem.used.sum(1), 1)
        centre = (np.log(ntk_loss) * problem.used).sum(1) / number
    return ntk_loss / np.exp(centre)[:, None], centre


def _curves(problem: FitProblem, ntk_loss: np.ndarray | None) -> _Curves:
    log_size, box = _log_sizes(problem), problem.box
    offset = np.zeros(len(log_size)) if ntk_loss is None else np.log(ntk_loss)
    count = len(problem)
    largest = np.argmax(np.where(problem.used, log_size[None], -np.inf), axis=1)
    more = (0, -len(log_size) % SIZE_BLOCK)  # sizes of weight 0, again for one shape
    return _Curves(
        log_size=np.pad(log_size, more),
        log_losses=np.pad(np.log(np.where(problem.used, problem.losses, 1.0)), [(0, 0), more]),
        weights=np.pad(problem.weights, [(0, 0), more]),
        log_offset=np.pad(offset, [(0, 0)] * (offset.ndim - 1) + [more]),
        log_reference=log_size[largest],
        log_offset_reference=np.zeros(count) if ntk_loss is None else offset[range(count), largest],
        lower=box.lower.stack(),
        upper=box.upper.stack(),
    )


def _grid(log_size: np.ndarray, problem: FitProblem) -> np.ndarray:
    """Points (delta, beta, alpha), (NUM_BETA, NUM_SECOND, 3), in the box of all curves."""
    box = problem.box
    beta = np.geomspace(0.01, 3.0, NUM_BETA)
    positive = log_size[np.isfinite(log_size)]
    # where the slope turns: log D* = delta / beta
    transition = np.linspace(positive.min() - 3.0, positive.max() + 3.0, NUM_SECOND)
    free_alpha = box.free.alpha.any()
    alpha = np.geomspace(0.2, 8.0, NUM_SECOND) if free_alpha else np.ones(NUM_SECOND)
    grid = np.empty((NUM_BETA, NUM_SECOND, 3))
    delta = beta[:, None] * transition[None]
    grid[..., 0] = np.clip(delta, box.lower.delta.min(), box.upper.delta.max())
    grid[..., 1], grid[..., 2] = beta[:, None], alpha[None]
    return grid


def _start_at(curve: _Curves, point: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The theta of the best (a, E) at one grid point, and its sum of squares.

    The basis 1 / (F + D^beta) is the same for all curves that share sizes: ``vmap`` computes it
    once for all of them.
    """
    delta, beta, alpha = point
    zero = jnp.zeros(())

    def log_basis_at(log_size, log_offset):
        # the reference 1 / (1 + 0) leaves -log(F + D^beta)
        unit = Theta(a=zero, delta=delta, beta=beta, E=zero, alpha=jnp.ones(()))
        return log_loss(jnp.stack(unit), log_size, zero, log_offset, zero)

    log_basis = jax.vmap(log_basis_at)(curve.log_size, curve.log_offset)
    basis = jnp.exp(log_basis)
    target = jnp.exp(curve.log_losses / alpha)
    w = curve.weights / target**2  # relative errors are errors of the logarithm
    gg, g1, one = jnp.sum(w * basis**2), jnp.sum(w * basis), jnp.sum(w)
    gy, y1 = jnp.sum(w * basis * target), jnp.sum(w * target)
    determinant = gg * one - g1**2
    floor = jnp.where(determinant > 1e-12 * gg * one, (gg * y1 - g1 * gy) / determinant, 0.0)
    floor = jnp.clip(floor, 0.0, 0.999 * jnp.min(jnp.where(w > 0, target, jnp.inf)))
    floor = jnp.minimum(floor, Theta(*curve.upper).E)
    scale = jnp.maximum((gy - floor * g1) / gg, 1e-300)
    values = alpha * jnp.log(scale * basis + floor)
    error = jnp.sum(curve.weights * (values - curve.log_losses) ** 2)
    log_reference_basis = log_basis_at(curve.log_reference, curve.log_offset_reference)
    theta = Theta(jnp.log(scale) + log_reference_basis, delta, beta, E=floor, alpha=alpha)
    return jnp.stack(theta), jnp.where(jnp.isfinite(error), error, jnp.inf)


def _starts(curve: _Curves, grid: jax.Array) -> jax.Array:
    """The best grid point of each block, shape (num_blocks, 5)."""
    theta, error = jax.vmap(jax.vmap(lambda point: _start_at(curve, point)))(grid)
    rows, columns = BLOCKS
    split = (rows, NUM_BETA // rows, columns, NUM_SECOND // columns)
    error = error.reshape(split).transpose(0, 2, 1, 3).reshape(rows * columns, -1)
    theta = theta.reshape(*split, NUM_THETA).transpose(0, 2, 1, 3, 4)
    theta = theta.reshape(rows * columns, -1, NUM_THETA)
    return jax.vmap(lambda candidates, errors: candidates[jnp.argmin(errors)])(theta, error)


def _run(curve: _Curves, start: jax.Array, huber_delta: jax.Array, max_steps):
    def linearise(theta):
        one_size = jax.vmap(log_loss_gradient, in_axes=(None, 0, None, 0, None))
        values, jacobian = one_size(
            theta,
            curve.log_size,
            curve.log_reference,
            curve.log_offset,
            curve.log_offset_reference,
        )
        return values - curve.log_losses, jacobian

    return minimise_least_squares(
        linearise,
        start,
        curve.lower,
        curve.upper,
        curve.weights,
        huber_delta,
        max_steps=max_steps,
    )


def _axes(curves: _Curves) -> _Curves:
    """Sizes, and offsets without a measured F, are shared by all curves."""
    shared = curves._replace(log_size=None, log_offset=None if curves.log_offset.ndim == 1 else 0)
    return _Curves(*(0 if value is not None else None for value in shared))


@jax.jit
def _starts_batch(curves: _Curves, grid: jax.Array) -> jax.Array:
    return jax.vmap(_starts, in_axes=(_axes(curves), None))(curves, grid)


@jax.jit
def _run_batch(curves: _Curves, start: jax.Array, huber_delta: jax.Array, max_steps: jax.Array):
    return jax.vmap(_run, in_axes=(_axes(curves), 0, None, None))(
        curves, start, huber_delta, max_steps
    )


def _take(curves: _Curves, rows: np.ndarray) -> _Curves:
    axes = _axes(curves)
    return _Curves(*(x if axis is None else x[rows] for x, axis in zip(curves, axes, strict=True)))


def _chunked(count: int) -> list[np.ndarray]:
    """Lanes in chunks of one fixed length, the last one padded with lane 0.

    Whatever the number of curves, one shape is compiled; and slow curves hold up their chunk only.
    """
    lanes = np.concatenate([np.arange(count), np.zeros(-count % CHUNK, int)])
    return list(lanes.reshape(-1, CHUNK))


def _run_lanes(curves: _Curves, rows: np.ndarray, starts: np.ndarray, huber_delta, max_steps):
    """Levenberg-Marquardt from ``starts[i]`` on curve ``rows[i]``; the fields of Solved."""
    parts = [
        _run_batch(_take(curves, rows[lanes]), starts[lanes], huber_delta, np.int64(max_steps))
        for lanes in _chunked(len(rows))
    ]
    return [
        np.concatenate([np.asarray(x) for x in y])[: len(rows)] for y in zip(*parts, strict=True)
    ]


def _solve(curves: _Curves, grid, start: np.ndarray | None, huber_delta) -> Solved:
    count = len(curves.weights)
    parts = [_starts_batch(_take(curves, rows), grid) for rows in _chunked(count)]
    starts = np.concatenate([np.asarray(part) for part in parts])[:count]
    if start is not None:
        starts = np.concatenate([starts, start[:, None]], axis=1)
    # a few steps from every start, then the best one alone, the slow curves longest
    rows = np.repeat(np.arange(count), starts.shape[1])
    lanes = _run_lanes(curves, rows, starts.reshape(-1, NUM_THETA), huber_delta, FIRST_STEPS)
    best = np.argmin(lanes[1].reshape(starts.shape[:2]), axis=1)
    best += starts.shape[1] * np.arange(count)
    theta, objective, converged = (array[best] for array in lanes)
    for max_steps in LATER_STEPS:
        rows = np.flatnonzero(~converged)
        if not len(rows):
            break
        moved = _run_lanes(curves, rows, theta[rows], huber_delta, max_steps)
        theta[rows], objective[rows], converged[rows] = moved
    return Solved(theta, objective, converged)
