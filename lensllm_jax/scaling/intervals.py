r"""How far a fit's predictions can be trusted: two intervals and an honest held-out error.

*Bootstrap over residuals*: the log residuals, inflated by :math:`\sqrt{m/(m-p)}` for the p
parameters that were fitted to m sizes, are drawn with replacement onto the fitted curve and the law
is refitted; the interval is the quantile range of the refits' predictions.

*Profile likelihood*: the predicted log loss is held at c while the law is refitted; the interval is
every c with

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
from collections.abc import Sequence

import numpy as np
import scipy.stats
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import FREE_PARAMETERS, LawFit, LawFits, NtkSource

HOLD_WEIGHT = 1e6  # of the held prediction beside weights near 1: it moves by 1e-6 of a residual
NUM_HELD = 41  # values of c on each side of the optimum
WIDEST = 3.0  # of log loss: beyond a factor of 20 the data say nothing

Ends = tuple[Float[np.ndarray, " num_targets"], Float[np.ndarray, " num_targets"]]


def interval(
    fit: LawFit,
    sizes: Float[np.ndarray, " num_targets"],
    *,
    level: float = 0.9,
    method: str = "profile",
    num_resamples: int = 200,
    seed: int = 0,
) -> Ends:
    """Lower and upper end of the predicted loss at each size, nats per token.

    Args:
        fit: a usable fit with fewer parameters than sizes.
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
    if not fit.status.usable:
        raise checks.UserError(f"`fit` must be usable, got: {fit.message}")
    if fit.ntk_source in (NtkSource.MEASURED, NtkSource.SCALED):
        raise checks.UserError(
            "`fit` must not have F measured at each size, got one: no F is known where it "
            "predicts; fit with `spectrum` (t free)"
        )
    if degrees_of_freedom(fit) < 1:
        raise checks.UserError(
            "`fit` must have more sizes than free parameters for an interval, got as many; "
            "measure more sizes"
        )
    targets = np.asarray(sizes, np.float64)
    if method == "bootstrap":
        return _bootstrap(fit, targets, level, num_resamples, seed)
    ends = [_profile(fit, float(size), level) for size in targets]
    low, high = np.array(ends).T
    return low, high


def degrees_of_freedom(fit: LawFit) -> int:
    """Sizes used less free parameters."""
    fits = fit.alone()
    held = 0 if fits.zero_floor is None else int(fits.zero_floor[0])
    free = FREE_PARAMETERS[fit.law] - (fit.ntk_source is NtkSource.MEASURED) - held
    return int((fits.weights[0] > 0).sum()) - free


def _refit(fits: LawFits, sizes, losses, weights) -> LawFits:
    """The same law under the same bounds on other data, each started at the old optimum too."""
    count = len(losses)

    def repeat(array):
        return None if array is None else np.repeat(array, count, axis=0)

    bound = None
    if fits.ntk_source is NtkSource.PROFILED and fits.max_ntk_loss is not None:
        bound = float(fits.max_ntk_loss[0])
    return fit_laws(
        fits.law,
        sizes,
        losses,
        spectra=None if fits.spectra is None else list(fits.spectra) * count,
        max_ntk_loss=bound,
        weights=weights,
        huber_delta=None if np.isinf(fits.huber_delta) else fits.huber_delta,
        zero_floor=repeat(fits.zero_floor),
        start=repeat(fits.theta),
    )


def bootstrap_refits(fit: LawFit, *, num_resamples: int = 200, seed: int = 0) -> LawFits:
    """Refits of the law to its own curve with resampled residuals.

    Args:
        fit: a usable fit with fewer parameters than sizes.
        num_resamples: how many.
        seed: of the draws; the same seed gives the same refits.

    Returns:
        One fit a resample: of parameters, or of anything made from them, an interval.

    Raises:
        UserError: if the fit leaves no degree of freedom.
    """
    checks.positive("num_resamples", num_resamples)
    if not fit.status.usable or degrees_of_freedom(fit) < 1:
        raise checks.UserError(f"`fit` must be usable with sizes to spare, got: {fit.message}")
    fits = fit.alone()
    used = fits.weights[0] > 0
    fitted = fits.fitted_log_losses()[0]
    residuals = np.log(fits.losses[0][used]) - fitted[used]
    inflated = (residuals - residuals.mean()) * np.sqrt(used.sum() / degrees_of_freedom(fit))
    draws = np.random.default_rng(seed).choice(inflated, (num_resamples, len(fitted)))
    losses = np.exp(np.where(used, fitted + draws, 0.0))
    return _refit(fits, fits.sizes, losses, np.repeat(fits.weights, num_resamples, axis=0))


def _bootstrap(fit: LawFit, targets, level: float, num_resamples: int, seed: int) -> Ends:
    refits = bootstrap_refits(fit, num_resamples=num_resamples, seed=seed)
    predicted = refits.predict(targets)
    tails = [0.5 * (1.0 - level), 0.5 * (1.0 + level)]
    low, high = np.quantile(predicted, tails, axis=0)
    return low, high


def _profile(fit: LawFit, target: float, level: float) -> tuple[float, float]:
    fits = fit.alone()
    center = float(np.log(fits.predict(np.array([target]))[0, 0]))
    freedom = degrees_of_freedom(fit)
    limit = 1.0 + float(scipy.stats.f.ppf(level, 1, freedom)) / freedom
    # a perfect fit has no residuals; 1e-12 keeps its interval a point of that width
    allowed = limit * max(float(fits.objective[0]), 1e-24)
    steps = np.geomspace(1e-5, WIDEST, NUM_HELD)
    held = center + np.concatenate([-steps[::-1], steps])
    rises = _held_objective(fits, target, held) - allowed
    below, above = rises[:NUM_HELD][::-1], rises[NUM_HELD:]
    low, high = center - _crossing(steps, below), center + _crossing(steps, above)
    return float(np.exp(low)), float(np.exp(high))


def _held_objective(fits: LawFits, target: float, held: np.ndarray) -> np.ndarray:
    """Sum of squared log residuals of refits whose prediction at ``target`` is held."""
    sizes = np.append(fits.sizes, target)
    order = np.argsort(sizes, kind="stable")
    if np.any(np.diff(sizes[order]) == 0):  # a size that was measured: nudge it off its double
        sizes[-1] *= 1.0 + 1e-9
        order = np.argsort(sizes, kind="stable")
    count = len(held)
    losses = np.column_stack([np.repeat(fits.losses, count, axis=0), np.exp(held)])
    weights = np.column_stack([np.repeat(fits.weights, count, axis=0), np.full(count, HOLD_WEIGHT)])
    refits = _refit(fits, sizes[order], losses[:, order], weights[:, order])
    residuals = refits.fitted_log_losses() - np.log(losses[:, order])
    kept = np.where(weights[:, order] == HOLD_WEIGHT, 0.0, weights[:, order])
    return (kept * residuals**2).sum(1)


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
    log_errors: Float[np.ndarray, "num_curves num_origins"]  # log predicted less log measured
    log_rmse: Float[np.ndarray, " num_curves"]  # over origins with a usable fit; NaN if none


def rolling_origin(
    law: str | Law,
    sizes: Float[np.ndarray, " num_sizes"],
    losses: Float[np.ndarray, "num_curves num_sizes"],
    *,
    min_sizes: int | None = None,
    horizon: int = 1,
    spectra: Sequence[NtkSpectrum] | None = None,
) -> RollingOrigin:
    """Predicts each size from the smaller ones and compares with what was measured.

    Args:
        law: "power", "vanilla", "rectified" or "lensllm".
        sizes: training examples.
        losses: test losses, one row a curve, all measured.
        min_sizes: sizes of the first fit; default one more than the law's parameters.
        horizon: how many sizes ahead to predict.
        spectra: for "lensllm": one kernel spectrum a curve, with one free t each.

    Returns:
        Errors in log loss.

    Raises:
        UserError: if there are too few sizes for one origin.
    """
    law = law if isinstance(law, Law) else Law(checks.one_of("law", law, [x.value for x in Law]))
    checks.positive("horizon", horizon)
    if min_sizes is None:
        # D = 0 tells the power and vanilla laws nothing
        unread = int(law in (Law.POWER, Law.VANILLA) and sizes[0] == 0)
        min_sizes = FREE_PARAMETERS[law] + 1 + unread
    targets = np.arange(min_sizes - 1 + horizon, len(sizes))
    if not len(targets):
        raise checks.UserError(
            f"`sizes` must number at least {min_sizes + horizon} for one held-out prediction, "
            f"got {len(sizes)}"
        )
    count = len(losses)
    weights = (np.arange(len(sizes))[None] <= (targets - horizon)[:, None]).astype(np.float64)
    fits = fit_laws(
        law,
        sizes,
        np.repeat(losses, len(targets), axis=0),
        weights=np.tile(weights, (count, 1)),
        spectra=None if spectra is None else [s for s in spectra for _ in targets],
    )
    predicted = fits.predict(np.asarray(sizes, np.float64)).reshape(count, len(targets), -1)
    ahead = np.take_along_axis(predicted, targets[None, :, None], axis=2)[..., 0]
    errors = np.log(ahead) - np.log(losses[:, targets])
    known = np.isfinite(errors)
    total = np.where(known, errors, 0.0) ** 2
    number = known.sum(1)
    rmse = np.where(number > 0, np.sqrt(total.sum(1) / np.maximum(number, 1)), np.nan)
    return RollingOrigin(np.asarray(sizes, np.float64)[targets], errors, rmse)
