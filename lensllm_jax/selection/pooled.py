r"""`pooled`: each candidate's own slope, and one growth of slopes shared by the whole task.

On log-log axes fine-tuning curves bend: the candidates of one task steepen together, at a rate
that differs from task to task.  One candidate's curve is too short and too noisy to show its own
bend; all candidates together show the task's.  With x = log2 D, slope
:math:`s_i(x) = -d\log L_i/dx` and task-wide growth r,

.. math:: s_i(x) = s_i\,e^{r (x - x_b)}, \qquad
    \log L_i(x_T) = \log L_i(x_b) - \int_{x_b}^{x_T} s_i(x)\,dx .

* r: the median over candidates of the slope in each octave, its logarithm regressed on x (ridge,
  half-life ``growth_half_life`` octaves), kept in [0, ``max_growth``];
* local view: :math:`s_i` is the age-weighted Huber mean of the candidate's octave slopes (one
  octave's jump must not count), times ``reliability`` because a noisy slope regresses to the mean;
* warped view: Accept-then-Stop in the time :math:`w = (e^{r x} - 1)/r`, in which the shared bend is
  straight, averaged over ``taus``;
* head starts: of two candidates on a bending task, the one that owes more of its fall so far to
  the very first examples bends less.  With :math:`h_i = \log(L_i(0) / L_i(D_1)) /
  \log(L_i(0) / L_i(D_b))`, the share of the fall by the smallest size, the log loss at the target
  rises by ``head_start`` :math:`r (x_T - x_b)(h_i - \bar h)`;
* the predicted log loss is the average of both views, plus that.

One candidate is picked, and the lowest of many extrapolations is the most flattered one.  The
pick therefore leans on the rectified law, whose free floor E extrapolates with more caution:
``pick_caution`` of its log loss against the rest of the views'.  With fewer sizes than twice its
parameters that law is no evidence, and the views pick alone.  The candidate so picked comes first;
the others follow by predicted loss.

The constants were chosen on FLAN and Gigaword where scores are flat in all of them
(benchmarks/LOG.md, "Selectors", lists what else was tried); ``python -m
benchmarks.leave_one_task_out`` chooses them on one table and scores them on the other.

Example:
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> x = np.arange(7.0)
    >>> losses = np.exp(1.0 - np.array([[0.02], [0.03]]) * np.expm1(0.1 * x) / 0.1)
    >>> table = LossTable(("a", "b"), 200 * 2 ** np.arange(7), losses, np.ones(2), ("", ""))
    >>> scores = pooled(Problem(table, target_size=200 * 2**9))
    >>> bool(scores.scores[1] < scores.scores[0])
    True
"""

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import linalg
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import FREE_PARAMETERS
from lensllm_jax.selection.halving import deviation_from_line
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors import rectified

MIN_SIZES_OF_CAUTION = 2 * FREE_PARAMETERS[Law.RECTIFIED]


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
    head_start: float = 0.1  # log loss for one whole share of head start, by r x octaves
    pick_caution: float = 2.0 / 3.0  # the rectified law's part in the pick


DEFAULT = Constants()
ROUNDING = 1e-12  # of slopes of log losses

Rows = Float[np.ndarray, "num_candidates num_octaves"]


def octave_slopes(
    octaves: Float[np.ndarray, " num_sizes"],
    log_losses: Float[np.ndarray, "num_candidates num_sizes"],
) -> tuple[Rows, Rows, Rows]:
    """Slopes between neighbouring measured sizes of each candidate.

    Args:
        octaves: log2 of the sizes.
        log_losses: NaN where not measured.

    Returns:
        Slopes (loss falling counts positive), where they are centred (octaves), and how many
        octaves they span; rows padded with NaN slopes of zero span.
    """
    count = len(octaves) - 1
    slopes = np.full((len(log_losses), count), np.nan)
    middles, spans = np.zeros_like(slopes), np.zeros_like(slopes)
    for row, values in enumerate(log_losses):
        measured = np.flatnonzero(~np.isnan(values))
        x, y = octaves[measured], values[measured]
        where = slice(count - max(len(x) - 1, 0), count)
        slopes[row, where] = -np.diff(y) / np.diff(x)
        middles[row, where] = 0.5 * (x[1:] + x[:-1])
        spans[row, where] = np.diff(x)
    return slopes, middles, spans


def task_growth(
    slopes: Rows, middles: Rows, spans: Rows, *, constants: Constants = DEFAULT
) -> float:
    """The task-wide growth r of slopes per octave; 0 if fewer than three octaves show it."""
    centers = np.unique(middles[spans > 0])
    if len(centers) < 3:
        return 0.0
    medians = np.array([np.median(slopes[(middles == c) & (spans > 0)]) for c in centers])
    kept = medians > 0  # a rising octave has no logarithm; it is noise of a flat task
    if kept.sum() < 3:
        return 0.0
    x, y = centers[kept], np.log(medians[kept])
    w = 0.5 ** ((x[-1] - x) / constants.growth_half_life)
    dx, dy = x - np.average(x, weights=w), y - np.average(y, weights=w)
    growth = (w * dx * dy).sum() / ((w * dx**2).sum() + constants.growth_ridge)
    return float(np.clip(growth, 0.0, constants.max_growth))


def robust_slopes(
    slopes: Rows,
    middles: Rows,
    spans: Rows,
    *,
    budget: float,
    growth: float,
    constants: Constants = DEFAULT,
) -> Float[np.ndarray, " num_candidates"]:
    """Each candidate's slope at the budget: age-weighted Huber mean, carried on by ``growth``."""
    ages = budget - middles
    weights = spans * 0.5 ** (ages / constants.slope_half_life)
    values = np.where(spans > 0, slopes, 0.0)
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = (weights * values).sum(1) / weights.sum(1)
        age = (weights * ages).sum(1) / weights.sum(1)
        for _ in range(10):
            off = np.abs(values - mean[:, None])
            scale = 1.4826 * np.median(off[spans > 0]) if np.any(spans > 0) else 0.0
            # with one octave each, nothing is off by more than rounding: all are kept
            limit = max(constants.huber_scale * scale, ROUNDING)
            pull = np.minimum(1.0, limit / np.maximum(off, ROUNDING))
            mean = (weights * pull * values).sum(1) / (weights * pull).sum(1)
    return mean * np.exp(growth * age)


def warped(octaves: np.ndarray, growth: float) -> np.ndarray:
    """Time in which a slope growing by ``growth`` an octave is constant; 0 at 0."""
    return np.asarray(np.expm1(growth * octaves) / growth if growth > 1e-9 else octaves)


def warped_lines(
    octaves: np.ndarray,
    log_losses: np.ndarray,
    growth: float,
    target: float,
    *,
    gamma: int,
    tau: float,
) -> Float[np.ndarray, " num_candidates"]:
    """Accept-then-Stop in warped time; the log losses that its lines predict at ``target``."""
    clock = warped(octaves - octaves[-1], growth)
    goal = float(warped(np.array(target - octaves[-1]), growth))
    predicted = np.full(len(log_losses), np.nan)
    for row, values in enumerate(log_losses):
        measured = np.flatnonzero(~np.isnan(values))
        if len(measured) < 2:
            continue
        x, y = clock[measured], values[measured]
        first = max(len(x) - gamma, 0)
        while first > 0:
            off = deviation_from_line(
                x[first:], y[first:], float(x[first - 1]), float(y[first - 1])
            )
            if off > tau:
                break
            first -= 1
        slope, intercept = linalg.fit_line(x[first:], y[first:])
        predicted[row] = intercept + slope * goal
    return predicted


def head_starts(
    losses: Float[np.ndarray, "num_candidates num_sizes"], sizes: Int[np.ndarray, " num_sizes"]
) -> Float[np.ndarray, " num_candidates"]:
    """Share of each candidate's fall in log loss that the smallest size made, less the mean.

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


def views(
    problem: Problem, *, constants: Constants = DEFAULT
) -> Float[np.ndarray, "2 num_candidates"]:
    """Log losses at the target by the local view and by the warped view."""
    table = problem.table
    positive = table.sizes > 0
    octaves = np.log2(table.sizes[positive].astype(np.float64))
    log_losses = np.log(table.losses[:, positive])
    target = float(np.log2(problem.target_size))
    parts = octave_slopes(octaves, log_losses)
    growth = task_growth(*parts, constants=constants)
    slopes = robust_slopes(*parts, budget=float(octaves[-1]), growth=growth, constants=constants)
    last = [np.flatnonzero(~np.isnan(row)) for row in log_losses]
    usable = np.array([len(where) >= 2 for where in last])
    ends = np.array([where[-1] if len(where) else 0 for where in last])
    start = octaves[ends] - octaves[-1]
    way = warped(np.array(target - octaves[-1]), growth) - warped(start, growth)
    local = log_losses[np.arange(len(ends)), ends] - constants.reliability * slopes * way
    lines = [
        warped_lines(octaves, log_losses, growth, target, gamma=problem.gamma, tau=tau)
        for tau in constants.taus
    ]
    rise = constants.head_start * growth * problem.octaves
    late = rise * head_starts(table.losses, table.sizes)
    return np.where(usable[None], np.stack([local, np.mean(lines, axis=0)]) + late[None], np.nan)


def picks_by(
    predicted: Float[np.ndarray, " num_candidates"],
    cautious: Float[np.ndarray, " num_candidates"],
    num_measured: Int[np.ndarray, " num_candidates"],
    *,
    constants: Constants = DEFAULT,
) -> Float[np.ndarray, " num_candidates"]:
    """What the pick minimises: the rectified law's log losses against the views'.

    Args:
        predicted: log losses by the views.
        cautious: log losses by the rectified law; NaN where it has no fit.
        num_measured: sizes, 0 included.
        constants: how much caution.

    Returns:
        The mixture, or ``predicted`` where the law has too few sizes to be evidence.
    """
    # all or none: a pick must not compare careful predictions with bold ones
    if not np.all(np.isfinite(cautious) & (num_measured >= MIN_SIZES_OF_CAUTION)):
        return predicted
    return constants.pick_caution * cautious + (1.0 - constants.pick_caution) * predicted


def pooled(problem: Problem) -> Scores:
    """The average of both views; picks with the rectified law's caution."""
    predicted = views(problem).mean(0)
    cautious = rectified(problem)
    with np.errstate(divide="ignore"):
        caution = np.log(cautious.scores)
    num_measured = (~np.isnan(problem.table.losses)).sum(1)
    messages = tuple(
        "two sizes above 0 are needed" if np.isnan(value) else "own slope, task-wide growth"
        for value in predicted
    )
    return Scores(
        np.exp(predicted),
        picks=picks_by(predicted, caution, num_measured),
        messages=messages,
        spent=cautious.spent,
    )
