r"""How far a fit's predictions can be trusted: two intervals and an honest held-out error.

*Bootstrap over residuals*: the log residuals, inflated by :math:`\sqrt{m/(m-p)}` for the p
parameters that were fitted to m sizes, are drawn with replacement onto the fitted curve and the law
is refitted; the interval is the quantile range of the refits' predictions.

*Profile likelihood*: the predicted log loss is fixed at c while the law is refitted; the interval
is every c with

.. math:: S(c) \le S_{min}\Big(1 + \frac{F_{1, m-p}(level)}{m - p}\Big),

S the sum of squared log residuals and F Snedecor's quantile: Student's interval, without
linearisation.  Both say what the law and these sizes allow, not whether the law holds beyond them:
that is what ``rolling_origin`` measures, by predicting each size from the smaller ones.

Example:
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = 100.0 * 2.0 ** np.arange(8)
    >>> noise = np.exp(0.003 * np.array([1, -1, 0.5, 1, -1, -0.5, 1, -1]))
    >>> fit = fit_law("power", sizes, (5.0 * sizes**-0.3 + 1.0) * noise)
    >>> low, high = fit.interval(np.array([51200.0]))
    >>> bool(low[0] < fit.predict(np.array([51200.0]))[0] < high[0])
    True
"""

import dataclasses

import numpy as np
import scipy.special  # importing scipy.stats takes half a second
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.scaling.kernel import KernelLoss, Measured
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.problem import WITHOUT_ZERO, FitProblem
from lensllm_jax.scaling.solution import Solution, solve

FIXED_WEIGHT = 1e6  # of a fixed prediction, others are near 1: it moves by 1e-6 of a residual
NUM_FIXED = 41  # values of c on each side of the optimum
WIDEST = 3.0  # of log loss: beyond a factor of 20 the data say nothing

Ends = tuple[Float[np.ndarray, " num_targets"], Float[np.ndarray, " num_targets"]]


def interval(
    solution: Solution,
    sizes: Float[np.ndarray, " num_targets"],
    *,
    level: float = 0.9,
    method: str = "profile",
    num_resamples: int = 200,
    seed: int = 0,
) -> Ends:
    """Lower and upper end of the predicted loss at each size, nats per byte.

    Args:
        solution: a usable fit of one curve, with fewer parameters than sizes.
        sizes: training examples to predict at.
        level: coverage, in (0, 1).
        method: "profile" or "bootstrap".
        num_resamples: refits of the bootstrap.
        seed: of the bootstrap's draws; the same seed gives the same interval.

    Returns:
        Lower ends and upper ends; an infinite or zero end where the data set no bound.

    Raises:
        UserError: if the fit is not usable or leaves no degree of freedom.
    """
    checks.one_of("method", method, ("profile", "bootstrap"))
    if not 0.0 < level < 1.0:
        raise checks.UserError(f"`level` must lie between 0 and 1, got {level}")
    _check_usable(solution)
    _check_not_measured(solution)
    targets = np.asarray(sizes, np.float64)
    if method == "profile":
        ends = [_profile(solution, float(size), level) for size in targets]
        low, high = np.array(ends).reshape(-1, 2).T
        return low, high
    refits = bootstrap_refits(solution, num_resamples=num_resamples, seed=seed)
    tails = [0.5 * (1.0 - level), 0.5 * (1.0 + level)]
    low, high = np.quantile(refits.predict(targets), tails, axis=0)
    return low, high


def _check_usable(solution: Solution) -> None:
    if not solution.usable[0]:
        raise checks.UserError(f"`fit` must be usable, got: {solution.statuses[0].value}")
    if solution.problem.degrees_of_freedom[0] < 1:
        raise checks.UserError(
            "`fit` must have more sizes than free parameters for an interval, got as many; "
            "measure more sizes"
        )


def _check_not_measured(solution: Solution) -> None:
    if isinstance(solution.problem.ntk, Measured):
        raise checks.UserError(
            "`fit` must not have F measured at each size, got one: no F is known where it "
            "predicts; fit with `Spectrum` (t free)"
        )


def bootstrap_refits(solution: Solution, *, num_resamples: int = 200, seed: int = 0) -> Solution:
    """Refits of the law to its own curve with resampled residuals, one per resample.

    Args:
        solution: a usable fit of one curve, with fewer parameters than sizes.
        num_resamples: how many.
        seed: of the draws; the same seed gives the same refits.

    Raises:
        UserError: if the fit is not usable or leaves no degree of freedom.
    """
    checks.positive("num_resamples", num_resamples)
    _check_usable(solution)
    problem = solution.problem
    used, fitted = problem.used[0], solution.fitted_log_losses()[0]
    residuals = np.log(problem.losses[0][used]) - fitted[used]
    inflation = np.sqrt(used.sum() / problem.degrees_of_freedom[0])
    inflated = (residuals - residuals.mean()) * inflation
    draws = np.random.default_rng(seed).choice(inflated, (num_resamples, len(fitted)))
    losses = np.exp(np.where(used, fitted + draws, 0.0))
    return _refit(solution, dataclasses.replace(_repeated(problem, num_resamples), losses=losses))


def _repeated(problem: FitProblem, count: int) -> FitProblem:
    """The problem of one curve, ``count`` times."""
    return problem.take(np.zeros(count, int))


def _refit(solution: Solution, problem: FitProblem) -> Solution:
    """Fits to the problem's curves, each started at the old optimum too."""
    return solve(problem, np.repeat(solution.theta, len(problem), axis=0))


def _profile(solution: Solution, target: float, level: float) -> tuple[float, float]:
    center = float(np.log(solution.predict(np.array([target]))[0, 0]))
    degrees = int(solution.problem.degrees_of_freedom[0])
    limit = 1.0 + float(scipy.special.fdtri(1, degrees, level)) / degrees
    # a perfect fit has no residuals; 1e-12 keeps its interval a point of that width
    allowed = limit * max(float(solution.objective[0]), 1e-24)
    steps = np.geomspace(1e-5, WIDEST, NUM_FIXED)
    fixed = center + np.concatenate([-steps[::-1], steps])
    rises = _profiled_squares(solution, target, fixed) - allowed
    below, above = rises[:NUM_FIXED][::-1], rises[NUM_FIXED:]
    low, high = center - _crossing(steps, below), center + _crossing(steps, above)
    return float(np.exp(low)), float(np.exp(high))


def _profiled_squares(solution: Solution, target: float, fixed: np.ndarray) -> np.ndarray:
    """Sums of squared log residuals of refits whose log prediction at ``target`` is fixed."""
    problem = _repeated(solution.problem, len(fixed))
    sizes = np.append(problem.sizes, target)
    order = np.argsort(sizes, kind="stable")
    if np.any(np.diff(sizes[order]) == 0):  # a size that was measured: nudge it off its double
        sizes[-1] *= 1.0 + 1e-9
        order = np.argsort(sizes, kind="stable")
    losses = np.column_stack([problem.losses, np.exp(fixed)])[:, order]
    weights = np.column_stack([problem.weights, np.full(len(fixed), FIXED_WEIGHT)])[:, order]
    refits = _refit(
        solution,
        dataclasses.replace(problem, sizes=sizes[order], losses=losses, weights=weights),
    )
    residuals = refits.fitted_log_losses() - np.log(losses)
    measured = np.where(weights == FIXED_WEIGHT, 0.0, weights)
    return (measured * residuals**2).sum(1)


def _crossing(steps: np.ndarray, rises: np.ndarray) -> float:
    """First step at which the objective passes the limit; infinite if it never does."""
    passed = np.flatnonzero(rises > 0)
    if not len(passed):
        return float("inf")
    i = int(passed[0])
    if i == 0:
        return float(steps[0])
    share = -rises[i - 1] / (rises[i] - rises[i - 1])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


@dataclasses.dataclass(frozen=True)
class RollingOrigin:
    """Held-out errors: each size predicted from the smaller ones."""

    sizes: Float[np.ndarray, " num_origins"]  # the size predicted
    log_errors: Float[np.ndarray, "num_curves num_origins"]  # log predicted minus log measured
    log_rmse: Float[np.ndarray, " num_curves"]  # over origins with a usable fit; NaN if none


def rolling_origin(
    law: str | Law,
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_curves num_sizes"],
    *,
    min_sizes: int | None = None,
    horizon: int = 1,
    ntk: KernelLoss | None = None,
) -> RollingOrigin:
    """Predicts each size from the smaller ones and compares with what was measured.

    Args:
        law: "power", "vanilla", "rectified" or "lensllm".
        sizes: training examples.
        losses: test losses, one row per curve, all measured.
        min_sizes: sizes of the first fit; default one more than the law's parameters.
        horizon: how many sizes ahead to predict.
        ntk: for "lensllm": one kernel spectrum per curve, or a bound.

    Raises:
        UserError: if there are too few sizes for one origin.
    """
    checks.positive("horizon", horizon)
    whole = FitProblem.checked(law, sizes, losses, ntk=ntk)
    if min_sizes is None:
        unread = int(whole.law in WITHOUT_ZERO and sizes[0] == 0)
        min_sizes = len(whole.law.parameters) + 1 + unread
    targets = np.arange(min_sizes - 1 + horizon, len(sizes))
    if not len(targets):
        raise checks.UserError(
            f"`sizes` must number at least {min_sizes + horizon} for one held-out prediction, "
            f"got {len(sizes)}"
        )
    count = len(losses)
    smaller = np.arange(len(sizes))[None] <= (targets - horizon)[:, None]
    problem = whole.take(np.repeat(np.arange(count), len(targets)))
    weights = problem.weights * np.tile(smaller, (count, 1))
    losses_used = np.where(weights > 0, problem.losses, 1.0)
    fits = solve(dataclasses.replace(problem, weights=weights, losses=losses_used))
    predicted = fits.predict(whole.sizes).reshape(count, len(targets), -1)
    ahead = np.take_along_axis(predicted, targets[None, :, None], axis=2)[..., 0]
    errors = np.log(ahead) - np.log(losses[:, targets])
    known = np.isfinite(errors)
    total = np.where(known, errors, 0.0) ** 2
    number = known.sum(1)
    rmse = np.where(number > 0, np.sqrt(total.sum(1) / np.maximum(number, 1)), np.nan)
    return RollingOrigin(whole.sizes[targets], errors, rmse)


def held_out_log_rmse(solution: Solution, *, horizon: int = 1) -> float:
    """That of :func:`rolling_origin` for the law and the sizes of a fit of one curve."""
    _check_not_measured(solution)
    problem = solution.problem
    used = problem.used[0]
    origins = rolling_origin(
        problem.law,
        problem.sizes[used],
        problem.losses[:, used],
        horizon=horizon,
        ntk=problem.ntk,
    )
    return float(origins.log_rmse[0])
