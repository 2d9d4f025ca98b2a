r"""Bounded nonlinear least squares: projected Levenberg-Marquardt for a handful of parameters.

Minimises :math:`\sum_i w_i\,\rho(r_i(\theta))` over a box :math:`l \le \theta \le u`, with
:math:`\rho(r) = r^2`, or Huber's :math:`\rho(r) = r^2` for :math:`|r| \le \delta` and
:math:`2\delta|r| - \delta^2` beyond.  One step solves

.. math:: (J^\top W J + \lambda\,\mathrm{diag}(J^\top W J))\,p = -J^\top W r

over the parameters that their gradient does not press against a bound, and once more with those
that it would carry through a bound stopped there.  A step that does not lower the objective is
rejected, so the result is never worse than the start.

All of it is branch-free, so that thousands of problems are solved under one ``vmap``; scipy's
and optimistix's solvers are written for one problem, or without bounds.

Example:
    >>> import jax, jax.numpy as jnp
    >>> data = jnp.array([2.0, 1.0, 0.5])
    >>> residuals_fn = lambda theta: theta[0] * 2.0 ** (-theta[1] * jnp.arange(3)) - data
    >>> with jax.enable_x64(True):
    ...     fit = minimise_least_squares(
    ...         with_jacobian(residuals_fn), jnp.array([1.0, 0.0]), jnp.zeros(2), jnp.full(2, 9.0),
    ...         jnp.ones(3), jnp.array(jnp.inf), max_steps=50)
    >>> fit.theta.round(6).tolist(), bool(fit.converged)
    ([2.0, 1.0], True)
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

GAIN_TOLERANCE = 1e-18  # of the objective: root mean squares of 1e-9 are below any measurement
DAMPING_LIMIT = 1e14  # above it a step is below float64's resolution

Linearise = Callable[[jax.Array], tuple[jax.Array, jax.Array]]


class LeastSquaresResult(NamedTuple):
    """Where the minimiser stopped."""

    theta: Float[Array, " p"]  # the parameters, inside the box
    objective: Float[Array, ""]  # sum of w_i rho(r_i)
    converged: Bool[Array, ""]  # no step lowers the objective further


def minimise_least_squares(
    linearise_fn: Linearise,
    start: Float[Array, " p"],
    lower: Float[Array, " p"],
    upper: Float[Array, " p"],
    weights: Float[Array, " m"],
    huber_delta: Float[Array, ""],
    *,
    max_steps: int | Int[Array, ""],
) -> LeastSquaresResult:
    """Minimises the objective in the box; traceable and vmappable.

    Args:
        linearise_fn: theta -> (residuals, Jacobian); finite inside the box.
        start: first theta; clipped to the box.
        lower: lower bounds; equal to ``upper`` where a parameter is fixed.
        upper: upper bounds.
        weights: one per residual; zero leaves it out.
        huber_delta: where the loss turns linear; infinite for squares.
        max_steps: linear solves at most.

    Returns:
        The best theta, its objective, and whether it is stationary.
    """
    problem = _Problem(lower, upper, weights, huber_delta)
    first = jnp.clip(start, lower, upper)
    residuals, jacobian = linearise_fn(first)
    state = _State(
        first,
        residuals,
        jacobian,
        _objective(problem, residuals),
        jnp.asarray(1e-3, first.dtype),
        jnp.array(False),
        jnp.array(0),
    )
    state = jax.lax.while_loop(
        lambda s: ~s.converged & (s.step < max_steps),
        lambda s: _step(linearise_fn, problem, s),
        state,
    )
    return LeastSquaresResult(state.theta, state.objective, state.converged)


def with_jacobian(
    residuals_fn: Callable[[Float[Array, " p"]], Float[Array, " m"]],
) -> Linearise:
    """Theta -> (residuals, Jacobian) by forward differentiation."""
    jacobian_fn = jax.jacfwd(residuals_fn)
    return lambda theta: (residuals_fn(theta), jacobian_fn(theta))


class _Problem(NamedTuple):
    lower: jax.Array
    upper: jax.Array
    weights: jax.Array
    huber_delta: jax.Array


class _State(NamedTuple):
    theta: jax.Array
    residuals: jax.Array  # at theta
    jacobian: jax.Array  # at theta
    objective: jax.Array
    damping: jax.Array
    converged: jax.Array
    step: jax.Array


def _objective(problem: _Problem, residuals: jax.Array) -> jax.Array:
    value = jnp.sum(problem.weights * _huber(residuals, problem.huber_delta))
    return jnp.where(jnp.isfinite(value), value, jnp.inf)


def _huber(residuals: jax.Array, delta: jax.Array) -> jax.Array:
    size = jnp.abs(residuals)
    inside = jnp.minimum(size, delta)
    # r^2 = inside^2 where |r| <= delta; else 2 delta |r| - delta^2 = inside (2 |r| - inside)
    return inside * (2.0 * size - inside)


def _step(linearise_fn: Linearise, problem: _Problem, state: _State) -> _State:
    """One damped step, accepted if it lowers the objective."""
    candidate, gain = _propose(problem, state)
    residuals, jacobian = linearise_fn(candidate)
    value = _objective(problem, residuals)
    better = value < state.objective
    # the Newton decrement bounds what a further step can gain; next to a bound a step may even
    # point uphill (a negative gain): that is no convergence, more damping turns it
    small = jnp.abs(gain) <= GAIN_TOLERANCE + 1e-13 * state.objective
    stuck = (state.damping > DAMPING_LIMIT) & ~better
    return _State(
        theta=jnp.where(better, candidate, state.theta),
        residuals=jnp.where(better, residuals, state.residuals),
        jacobian=jnp.where(better, jacobian, state.jacobian),
        objective=jnp.where(better, value, state.objective),
        damping=jnp.where(better, jnp.maximum(state.damping * 0.2, 1e-12), state.damping * 5.0),
        converged=(small & (state.damping < 1e3)) | stuck,
        step=state.step + 1,
    )


def _propose(problem: _Problem, state: _State) -> tuple[jax.Array, jax.Array]:
    """The next theta, and what the objective's linear part gains there."""
    lower, upper = problem.lower, problem.upper
    # Huber by reweighting: rho'(r) = 2 r min(1, delta / |r|)
    size = jnp.maximum(jnp.abs(state.residuals), 1e-300)
    w = problem.weights * jnp.minimum(1.0, problem.huber_delta / size)
    gradient = state.jacobian.T @ (w * state.residuals)
    at_lower, at_upper = state.theta <= lower, state.theta >= upper
    fixed = (at_lower & (gradient > 0)) | (at_upper & (gradient < 0)) | (lower >= upper)
    hessian = (state.jacobian * w[:, None]).T @ state.jacobian
    curvature = jnp.diagonal(hessian) * ~fixed
    scale = jnp.maximum(curvature, 1e-14 * jnp.max(curvature)) + 1e-300
    damping = state.damping * scale

    def move_with(fixed, fixed_move):
        """The damped step of the other parameters when ``fixed`` ones move as given."""
        others = (~fixed).astype(gradient.dtype)
        matrix = hessian * others[:, None] * others[None, :] + jnp.diag(damping + fixed)
        return fixed_move - _solve_positive_definite(
            matrix, (gradient + hessian @ fixed_move) * others
        )

    move = move_with(fixed, jnp.zeros_like(gradient))
    # parameters that would leave the box stop at its bound, and the others adapt to that:
    # clipping alone gives a bad step, and the run ends next to the optimum
    inside = jnp.clip(state.theta + move, lower, upper) - state.theta
    stopped = fixed | (inside != move)
    move = move_with(stopped, jnp.where(stopped, inside, 0.0))
    candidate = jnp.clip(state.theta + move, lower, upper)
    return candidate, -jnp.sum(gradient * (candidate - state.theta))


def _solve_positive_definite(matrix: jax.Array, right_side: jax.Array) -> jax.Array:
    """Cholesky solve, entry by entry: under ``vmap`` it fuses, a LAPACK call does not."""
    p = matrix.shape[0]
    lower: list[list[jax.Array]] = [[] for _ in range(p)]
    forward: list[jax.Array] = []
    for i in range(p):
        for j in range(i):
            inner = sum((lower[i][k] * lower[j][k] for k in range(j)), jnp.zeros(()))
            lower[i].append((matrix[i, j] - inner) / lower[j][j])
        diagonal = matrix[i, i] - sum((x * x for x in lower[i]), jnp.zeros(()))
        lower[i].append(jnp.sqrt(jnp.maximum(diagonal, 1e-300)))
        inner = sum((lower[i][k] * forward[k] for k in range(i)), jnp.zeros(()))
        forward.append((right_side[i] - inner) / lower[i][i])
    solution = forward
    for i in reversed(range(p)):
        inner = sum((lower[k][i] * solution[k] for k in range(i + 1, p)), jnp.zeros(()))
        solution = [*solution[:i], (solution[i] - inner) / lower[i][i], *solution[i + 1 :]]
    return jnp.stack(solution)
