r"""`pooled`: each candidate's own slope, and one growth of slopes shared by the whole task.

On log-log axes fine-tuning curves bend: the candidates of one task steepen together, at a rate
that differs from task to task.  One candidate's curve is too short and too noisy to show its own
bend; all candidates together show the task's.  With x = log2 D, slope
:math:`s_i(x) = -d\log L_i/dx` and task-wide growth r,

.. math:: s_i(x) = s_i\,e^{r (x - x_b)}, \qquad
    \log L_i(x_T) = \log L_i(x_b) - \int_{x_b}^{x_T} s_i(x)\,dx .

* r: the median over candidates of the slope in each octave, its logarithm regressed on x (ridge,
  half-life ``growth_half_life`` octaves), clipped to [0, ``max_growth``];
* local view: :math:`s_i` is the age-weighted Huber mean of the candidate's octave slopes (one
  octave's jump must not count), times ``reliability`` because a noisy slope regresses to the mean;
* warped view: Accept-then-Stop in the time :math:`w = (e^{r x} - 1)/r`, in which the shared bend is
  straight, averaged over ``taus``;
* early-gain share: of two candidates on a bending task, the one that made more of its fall so far
  on the very first examples bends less.  With :math:`h_i = \log(L_i(0) / L_i(D_1)) /
  \log(L_i(0) / L_i(D_b))`, the share of the fall by the smallest size, the log loss at the target
  rises by ``early_gain`` :math:`r (x_T - x_b)(h_i - \bar h)`;
* the predicted log loss is the average of both views, plus that.

The constants were chosen on FLAN and Gigaword where scores are flat in all of them
(benchmarks/LOG.md, "Selectors", lists what else was tried); ``python -m
benchmarks.leave_one_task_out`` chooses them on one table and scores them on the other.

Example:
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> x = np.arange(7.0)
    >>> losses = np.exp(1.0 - np.array([[0.02], [0.03]]) * np.expm1(0.1 * x) / 0.1)
    >>> table = LossTable(("a", "b"), 200 * 2 ** np.arange(7), losses, np.ones(2), ("", ""))
    >>> predicted = score(Problem(table, target_size=200 * 2**9)).scores
    >>> bool(predicted[1] < predicted[0])
    True
"""

import dataclasses
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import linalg
from lensllm_jax.selection.halving import MIN_SIGMA, Halving
from lensllm_jax.selection.loss_table import last_measured
from lensllm_jax.selection.problem import Problem, Scores


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is the same for every task."""

    slope_half_life: float = 1.5  # octaves
    growth_half_life: float = 8.0  # octaves
    growth_ridge: float = 1.0  # squared octaves
    max_growth: float = 0.15  # per octave: a factor 3.3 over the seven octaves of longest curves
    reliability: float = 0.8  # of a measured slope
    huber_scale: float = 1.5  # robust standard deviations
    taus: tuple[float, ...] = (3.0, 5.0)  # residual standard deviations, one line each
    early_gain: float = 0.1  # log loss per whole early-gain share, by r x octaves


DEFAULT = Constants()
_ROUNDING = 1e-12  # of slopes of log losses

_Rows = Float[np.ndarray, "num_candidates num_octaves"]


class _Octaves(NamedTuple):
    """Slopes between neighbouring measured sizes; rows padded with NaN slopes of zero span."""

    slopes: _Rows  # loss falling counts positive
    centers: _Rows  # octaves
    spans: _Rows  # octaves


def _same_sizes(
    log_losses: Float[np.ndarray, "num_candidates num_sizes"],
) -> Iterator[tuple[Int[np.ndarray, " m"], Int[np.ndarray, " rows"]]]:
    """The columns measured, and the candidates with a loss in just these."""
    patterns, pattern_of = np.unique(~np.isnan(log_losses), axis=0, return_inverse=True)
    order = np.argsort(pattern_of.reshape(-1), kind="stable")
    counts = np.bincount(pattern_of.reshape(-1), minlength=len(patterns))
    for pattern, rows in zip(patterns, np.split(order, np.cumsum(counts)[:-1]), strict=True):
        yield np.flatnonzero(pattern), rows


def _octaves_of(
    octaves: Float[np.ndarray, " num_sizes"],
    log_losses: Float[np.ndarray, "num_candidates num_sizes"],
) -> _Octaves:
    """Slopes of log losses (NaN where not measured) at sizes of given log2."""
    count = len(octaves) - 1
    slopes = np.full((len(log_losses), count), np.nan)
    centers, spans = np.zeros_like(slopes), np.zeros_like(slopes)
    for measured, rows in _same_sizes(log_losses):
        x, y = octaves[measured], log_losses[np.ix_(rows, measured)]
        where = np.ix_(rows, np.arange(count - max(len(x) - 1, 0), count))
        slopes[where] = -np.diff(y) / np.diff(x)
        centers[where] = 0.5 * (x[1:] + x[:-1])
        spans[where] = np.diff(x)
    return _Octaves(slopes, centers, spans)


def _task_growth(octaves: _Octaves, constants: Constants) -> float:
    """The task-wide growth r of slopes per octave; 0 if fewer than three octaves show it."""
    slopes, all_centers, spans = octaves
    centers = np.unique(all_centers[spans > 0])
    if len(centers) < 3:
        return 0.0
    medians = np.array([np.median(slopes[(all_centers == c) & (spans > 0)]) for c in centers])
    falling = medians > 0  # a rising octave has no logarithm; it is noise of a flat task
    if falling.sum() < 3:
        return 0.0
    x, y = centers[falling], np.log(medians[falling])
    w = 0.5 ** ((x[-1] - x) / constants.growth_half_life)
    dx, dy = x - np.average(x, weights=w), y - np.average(y, weights=w)
    growth = (w * dx * dy).sum() / ((w * dx**2).sum() + constants.growth_ridge)
    return float(np.clip(growth, 0.0, constants.max_growth))


def _robust_slopes(
    octaves: _Octaves, *, budget: float, growth: float, constants: Constants
) -> Float[np.ndarray, " num_candidates"]:
    """Each candidate's slope at the budget: age-weighted Huber mean, extended by ``growth``."""
    slopes, centers, spans = octaves
    ages = budget - centers
    weights = spans * 0.5 ** (ages / constants.slope_half_life)
    values = np.where(spans > 0, slopes, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weights * values).sum(1) / weights.sum(1)
        age = (weights * ages).sum(1) / weights.sum(1)
        for _ in range(10):
            off = np.abs(values - mean[:, None])
            scale = 1.4826 * np.median(off[spans > 0]) if np.any(spans > 0) else 0.0
            # with one octave each, nothing is off by more than rounding: all count in full
            limit = max(constants.huber_scale * scale, _ROUNDING)
            pull = np.minimum(1.0, limit / np.maximum(off, _ROUNDING))
            mean = (weights * pull * values).sum(1) / (weights * pull).sum(1)
    return mean * np.exp(growth * age)


def warped_octaves(octaves: np.ndarray, growth: float) -> np.ndarray:
    """Time in which a slope growing by ``growth`` per octave is constant; 0 at 0."""
    return np.asarray(np.expm1(growth * octaves) / growth if growth > 1e-9 else octaves)


def _deviations(
    xs: Float[np.ndarray, " m"], ys: Float[np.ndarray, "rows m"], x: float, y: np.ndarray
) -> Float[np.ndarray, " rows"]:
    """`halving.deviation_from_line` of many rows at the same sizes."""
    dx = xs - xs.mean()
    slopes, means = ys @ dx / (dx @ dx), ys.mean(1)
    residuals = ys - means[:, None] - np.outer(slopes, dx)
    sigma = np.maximum(residuals.std(1), MIN_SIGMA)
    return np.abs(y - means - slopes * (x - xs.mean())) / sigma


def _warped_lines(
    octaves: np.ndarray, log_losses: np.ndarray, growth: float, target: float, search: Halving
) -> Float[np.ndarray, " num_candidates"]:
    """Accept-then-Stop in warped time; the log losses that its lines predict at ``target``."""
    clock = warped_octaves(octaves - octaves[-1], growth)
    goal = float(warped_octaves(np.array(target - octaves[-1]), growth))
    predicted = np.full(len(log_losses), np.nan)
    for measured, rows in _same_sizes(log_losses):
        if len(measured) < 2:
            continue
        x, y = clock[measured], log_losses[np.ix_(rows, measured)]
        first = np.full(len(rows), max(len(x) - search.gamma, 0))
        for start in range(int(first[0]), 0, -1):
            going = np.flatnonzero(first == start)
            off = _deviations(x[start:], y[going, start:], x[start - 1], y[going, start - 1])
            first[going[off <= search.tau]] = start - 1
        for row, values, start in zip(rows, y, first, strict=True):
            slope, intercept = linalg.fit_line(x[start:], values[start:])
            predicted[row] = intercept + slope * goal
    return predicted


def _early_gain_shares(
    losses: Float[np.ndarray, "num_candidates num_sizes"], sizes: Int[np.ndarray, " num_sizes"]
) -> Float[np.ndarray, " num_candidates"]:
    """Share of each candidate's fall in log loss made by the smallest size, minus the mean.

    Args:
        losses: NaN where not measured.
        sizes: ascending.

    Returns:
        Differences from the mean; 0 where the share is not known: no zero-shot loss, no loss at
        the smallest size, or none lower than the zero-shot loss.
    """
    if sizes[0] != 0 or len(sizes) < 3:
        return np.zeros(len(losses))
    zero_shot, early, latest = (np.log(losses[:, column]) for column in (0, 1, -1))
    known = zero_shot > latest  # false where one is NaN
    known &= ~np.isnan(early)
    if not known.any():
        return np.zeros(len(losses))
    share = np.clip((zero_shot - early) / np.where(known, zero_shot - latest, 1.0), 0.0, 1.0)
    return np.where(known, share - np.mean(share, where=known), 0.0)


def early_gain_rise(problem: Problem, *, strength: float) -> Float[np.ndarray, " num_candidates"]:
    """What early gains add to log losses at the target, ``strength`` instead of ``early_gain``."""
    growth = _task_growth(_octaves_of(*_curves_of(problem)), DEFAULT)
    return _late_gain(problem, growth, strength)


def _curves_of(problem: Problem) -> tuple[np.ndarray, np.ndarray]:
    """log2 of the sizes above 0, and the log losses there."""
    positive = problem.table.sizes > 0
    octaves = np.log2(problem.table.sizes[positive].astype(np.float64))
    return octaves, np.log(problem.table.losses[:, positive])


def _late_gain(problem: Problem, growth: float, strength: float) -> Float[np.ndarray, " n"]:
    shares = _early_gain_shares(problem.table.losses, problem.table.sizes)
    return strength * growth * problem.octaves * shares


def local_view(
    problem: Problem, *, constants: Constants = DEFAULT
) -> Float[np.ndarray, " num_candidates"]:
    """Log losses at the target by each candidate's own slope; NaN: two sizes are needed."""
    octaves, log_losses = _curves_of(problem)
    by_octave = _octaves_of(octaves, log_losses)
    growth = _task_growth(by_octave, constants)
    slopes = _robust_slopes(
        by_octave, budget=float(octaves[-1]), growth=growth, constants=constants
    )
    is_measured = np.isfinite(log_losses)
    last = last_measured(is_measured)
    goal = warped_octaves(np.array(problem.octaves), growth)
    way = goal - warped_octaves(octaves[last] - octaves[-1], growth)
    late = _late_gain(problem, growth, constants.early_gain)
    ends = log_losses[np.arange(len(last)), last] - constants.reliability * slopes * way
    return np.where(is_measured.sum(1) >= 2, ends + late, np.nan)


def _warped_view(problem: Problem, constants: Constants) -> Float[np.ndarray, " num_candidates"]:
    """Log losses at the target by lines in warped time."""
    octaves, log_losses = _curves_of(problem)
    growth = _task_growth(_octaves_of(octaves, log_losses), constants)
    target = float(np.log2(problem.target_size))
    searches = [Halving(problem.halving.gamma, tau) for tau in constants.taus]
    lines = [_warped_lines(octaves, log_losses, growth, target, search) for search in searches]
    return np.mean(lines, axis=0) + _late_gain(problem, growth, constants.early_gain)


def views(
    problem: Problem, *, constants: Constants = DEFAULT
) -> Float[np.ndarray, "2 num_candidates"]:
    """Log losses at the target by the local view and by the warped view."""
    return np.stack([local_view(problem, constants=constants), _warped_view(problem, constants)])


def score(problem: Problem) -> Scores:
    """The average of both views."""
    predicted = views(problem).mean(0)
    messages = tuple(
        "two sizes above 0 are needed" if np.isnan(value) else "own slope, task-wide growth"
        for value in predicted
    )
    return Scores(np.exp(predicted), messages=messages, spent=problem.train_sizes)
