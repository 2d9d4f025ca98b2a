r"""Where a loss curve passes from the pre-power to the power phase.

*Segmented*: log L against log D as two straight pieces that meet at :math:`\log D^*`, fitted by
least squares over every meeting point.  The interval holds each :math:`D^*` whose sum of squares
stays within Snedecor's quantile of the least; whether there are two pieces at all is the F test of
two pieces against one line.  The second piece must be the steeper one: a curve that flattens has
met its floor, not a power phase.

*From a law*: :math:`L = B / (F + D^\beta) + E` has excess-loss slope
:math:`\beta D^\beta / (F + D^\beta)`, which is half of :math:`\beta` at
:math:`D^* = F^{1/\beta}`; an interval comes from refits.

Example:
    >>> sizes = 100.0 * 2.0 ** np.arange(10)
    >>> noise = 0.002 * np.array([1, -1, -1, 1, 1, -1, 1, -1, -1, 1])
    >>> log_losses = 1.0 - 0.02 * np.log(sizes) - 0.3 * np.log(np.maximum(sizes / 2e3, 1.0))
    >>> kink = segmented_transition(sizes, np.exp(log_losses + noise))
    >>> kink.phase.name, kink.low < 2e3 < kink.high
    ('TRANSITION', True)
"""

import dataclasses
import enum

import numpy as np
import scipy.special
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.scaling.intervals import bootstrap_refits
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import LawFit

NUM_MEETING_POINTS = 400
MIN_SIZES = 6  # four parameters, and two degrees of freedom for their errors
MIN_RESIDUAL = 1e-12  # of log losses: below it the pieces are exact and the F test has no noise


class Phase(enum.Enum):
    """What the curve shows."""

    TRANSITION = "a pre-power phase, then a steeper power phase"
    FLATTENING = "two pieces, the second flatter: no pre-power phase, perhaps a floor"
    ONE = "one straight piece: no transition between the measured sizes"


@dataclasses.dataclass(frozen=True)
class SegmentedTransition:
    """Two straight pieces of log L against log D."""

    phase: Phase  # what they mean
    size: float  # D*, examples, where the pieces meet
    low: float  # lower end of the interval of D*; the smallest candidate if unbounded
    high: float  # upper end
    level: float  # coverage of the interval
    slope_before: float  # of log L per log D
    slope_after: float  # likewise
    p_value: float  # of the F test of two pieces against one line


def segmented_transition(
    sizes: Float[np.ndarray, " m"], losses: Float[np.ndarray, " m"], *, level: float = 0.9
) -> SegmentedTransition:
    """Finds the meeting point of two straight pieces.

    Args:
        sizes: training examples, ascending; 0 and NaN losses are left out.
        losses: test losses, nats per byte.
        level: coverage of the interval, and one less the size of the F test.

    Raises:
        UserError: with fewer than six usable sizes, or losses that are not positive.
    """
    if not 0.0 < level < 1.0:
        raise checks.UserError(f"`level` must lie between 0 and 1, got {level}")
    x, y = _logarithms(sizes, losses)
    line, _ = _least_squares(np.column_stack([np.ones_like(x), x]), y)
    # two sizes or more on each side
    points = np.linspace(x[1], x[-2], NUM_MEETING_POINTS)
    fits = [_least_squares(_pieces(x, point), y) for point in points]
    squares = np.array([value for value, _ in fits])
    best = int(np.argmin(squares))
    least = max(float(squares[best]), len(x) * MIN_RESIDUAL**2)
    degrees = len(x) - 4
    gain = max(line - float(squares[best]), 0.0) / 2 / (least / degrees)
    p_value = float(scipy.special.fdtrc(2, degrees, gain))
    limit = least * (1 + scipy.special.fdtri(1, degrees, level) / degrees)
    inside = np.exp(points[squares <= limit])
    _, before, after = fits[best][1]
    if p_value > 1 - level:
        phase = Phase.ONE
    else:
        phase = Phase.TRANSITION if after < before else Phase.FLATTENING
    return SegmentedTransition(
        phase=phase,
        size=float(np.exp(points[best])),
        low=float(inside.min()),
        high=float(inside.max()),
        level=level,
        slope_before=float(before),
        slope_after=float(after),
        p_value=p_value,
    )


def _logarithms(sizes: np.ndarray, losses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    checks.shape("losses", losses, sizes.shape)
    measured = (sizes > 0) & ~np.isnan(losses)
    sizes, losses = sizes[measured], losses[measured]
    if len(sizes) < MIN_SIZES or np.any(np.diff(sizes) <= 0):
        raise checks.UserError(
            f"`sizes` must be {MIN_SIZES} or more ascending sizes above 0, got {sizes.tolist()}"
        )
    if not np.all(np.isfinite(losses) & (losses > 0)):
        raise checks.UserError(f"`losses` must be positive and finite, got {losses.tolist()}")
    return np.log(sizes), np.log(losses)


def _pieces(x: np.ndarray, point: float) -> np.ndarray:
    """Columns: level at the meeting point, slope before it, slope after it."""
    return np.column_stack(
        [np.ones_like(x), np.minimum(x - point, 0.0), np.maximum(x - point, 0.0)]
    )


def _least_squares(design: np.ndarray, y: np.ndarray) -> tuple[float, np.ndarray]:
    """Least sum of squares, and the coefficients."""
    coefficients = np.linalg.lstsq(design, y, rcond=None)[0]
    return float(np.sum((design @ coefficients - y) ** 2)), coefficients


@dataclasses.dataclass(frozen=True)
class LawTransition:
    """D* of a fitted law; below every measured size it says that no pre-power phase was seen."""

    size: float  # D* = F^(1/beta), examples
    low: float  # lower end of the interval
    high: float  # upper end
    level: float  # coverage of the interval


def law_transition(fit: LawFit, *, num_resamples: int = 200, level: float = 0.9) -> LawTransition:
    """D* of a fitted rectified law, with the quantile range of bootstrap refits.

    Args:
        fit: of the rectified law, usable, with more sizes than parameters.
        num_resamples: refits; those that are not usable are left out.
        level: coverage of the interval.

    Raises:
        UserError: if the fit is not usable, or of a law without D_l.
    """
    if fit.law is not Law.RECTIFIED:
        raise checks.UserError(f"`fit` must be of law rectified, got {fit.law.value}")
    refits = bootstrap_refits(fit.solution, num_resamples=num_resamples)
    refits = refits.take(np.flatnonzero(refits.usable))
    logs = np.log(refits.params["D_l"]) / refits.params["beta"]
    low, high = np.exp(np.quantile(logs, [0.5 - 0.5 * level, 0.5 + 0.5 * level]))
    size = fit.params["D_l"] ** (1.0 / fit.params["beta"])
    return LawTransition(float(size), float(low), float(high), level)
