r"""Which parameters of a fit the measured sizes do not identify.

With log residuals' Jacobian J at the optimum and residual variance :math:`s^2` (from m - p
degrees of freedom), a parameter's standard error is
:math:`\sqrt{[s^2 (J^\top J)^{-1}]_{ii}}`.  A parameter is not identified if it stands at
a bound, or if its standard error exceeds what would make it meaningful: a factor e for
:math:`D_l`, F (hence t) and B, the smallest loss for E, itself for beta and alpha.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
    >>> fit_law("rectified", sizes, 9.0 * sizes**-0.3).warnings[0]
    'D_l is not identified: it stands at its lower bound 9e-14 (no pre-power phase seen)'
"""

import numpy as np

from lensllm_jax.scaling._theta import MIN_LOG_F, Theta, log_losses
from lensllm_jax.scaling.kernel import Measured
from lensllm_jax.scaling.solution import Solution

STEP = 1e-6  # of central differences: cube root of float64's epsilon, rounded
ORDER = ("a", "beta", "E", "delta", "alpha")  # of the sentences


def unidentified(solution: Solution) -> tuple[str, ...]:
    """One sentence per parameter of a usable fit of one curve that the sizes do not identify."""
    problem, theta = solution.problem, Theta(*solution.theta[0])
    free = _free(solution)
    ntk = problem.ntk
    names = {"beta": "beta", "E": "E", "delta": ntk.parameter if ntk else "D_l", "alpha": "alpha"}
    sentences = {}
    if "delta" in free and (at_bound := _at_bound(names["delta"], solution)):
        sentences["delta"] = at_bound
    if "E" not in free:
        sentences["E"] = "E was fixed at 0: too few sizes to fit a floor"
    elif theta.E == 0.0:
        sentences["E"] = "E stands at its bound 0: the sizes do not show a floor"
    if problem.degrees_of_freedom[0] <= 0:
        nothing_left = "as many parameters as sizes: no error bar is possible"
        return (*sentences.values(), nothing_left)
    errors = _standard_errors(solution)._asdict()
    smallest = float(np.min(problem.losses[0][problem.used[0]])) ** (1.0 / theta.alpha)
    limits = {"beta": abs(theta.beta), "E": smallest, "delta": 1.0, "alpha": abs(theta.alpha)}
    for key in free:
        if key in limits and errors[key] > limits[key] and key not in sentences:
            sentences[key] = (
                f"{names[key]} is not identified: its standard error is {errors[key]:.2g}"
            )
    return tuple(sentences.values())


def _free(solution: Solution) -> list[str]:
    free = solution.problem.box.free._asdict()
    return [name for name in ORDER if free[name][0]]


def _at_bound(name: str, solution: Solution) -> str | None:
    """The sentence on a delta that stands at a bound."""
    delta = Theta(*solution.theta[0]).delta
    if delta <= MIN_LOG_F + 1e-9:
        return (
            f"{name} is not identified: it stands at its lower bound "
            f"{np.exp(MIN_LOG_F):.0e} (no pre-power phase seen)"
        )
    bound = float(solution.problem.f_bounds[1][0])
    if np.exp(delta) >= bound * (1 - 1e-9):
        return f"{name} stands at its bound F = {bound:.4g}"
    return None


def _standard_errors(solution: Solution) -> Theta:
    """Of theta; infinite where a direction is not identified, 0 where fixed."""
    problem, free = solution.problem, _free(solution)
    jacobian = np.sqrt(problem.weights[problem.used])[:, None] * _jacobian(solution, free)
    if not np.isfinite(jacobian).all():  # losses of 1e-300: nothing can be told
        return Theta(*[0.0] * len(Theta._fields))._replace(**dict.fromkeys(free, np.inf))
    variance = max(float(solution.objective[0]), 1e-30) / problem.degrees_of_freedom[0]
    # singular values below STEP are noise of the differences: that direction is unidentified
    _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
    spread = np.where(values > STEP * values[0], 1.0 / np.maximum(values, 1e-300), np.inf)
    with np.errstate(invalid="ignore"):
        parts = np.where(np.abs(directions.T) > 1e-3, directions.T * spread[None], 0.0)
    errors = np.sqrt(variance * (parts**2).sum(1))
    return Theta(*[0.0] * len(Theta._fields))._replace(**dict(zip(free, errors, strict=True)))


def _jacobian(solution: Solution, free: list[str]) -> np.ndarray:
    """Of the log losses at the sizes used, in the free parameters, by central differences."""
    problem, theta = solution.problem, Theta(*solution.theta[0])
    measured = problem.ntk.loss if isinstance(problem.ntk, Measured) else None
    reference = None if measured is None else solution.ntk_loss_reference

    def at(point: Theta) -> np.ndarray:
        values = log_losses(
            point.stack()[None],
            problem.sizes,
            problem.reference,
            ntk_loss=measured,
            ntk_loss_reference=reference,
        )
        return values[problem.used]

    with np.errstate(over="ignore"):
        # E may stand at 0 where the law's bracket is far below 1
        smallest = float(np.exp(np.min(at(theta)) / theta.alpha))
    columns = []
    for name in free:
        value = getattr(theta, name)
        step = STEP * (smallest if name == "E" else max(1.0, abs(value)))
        ends = (theta._replace(**{name: value + sign * step}) for sign in (1, -1))
        above, below = (at(end) for end in ends)
        with np.errstate(invalid="ignore"):
            columns.append((above - below) / (2 * step))
    return np.stack(columns, axis=1)
