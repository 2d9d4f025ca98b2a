r"""`posterior`: the weighted mean of three views of each curve, and how far it may be off.

Log loss at the target, by

* `pooled`'s local view (weight .6);
* the slopes model of ``_slopes.py`` (.37), plus the early-gain share as in `pooled`, but
  with .3 for .1, because nothing else in that model knows it;
* the loss at the budget (.03), which says who is better but not how far losses fall: it takes its
  level from the slopes model.

Slopes measured on few examples do not last: from a candidate's largest size on,
``_slopes.lasting_share`` says which share of the differences between the falls of the local view is
left.

A view that cannot answer for a candidate (two sizes above 0 are needed) leaves its weight to the
slopes model, which always answers.  A candidate without a loss above size 0 has no answer.
One that diverged (``LossTable.is_diverged``) moves no other's prediction.

Curves of one task converge: on every table and at every budget but one of Gigaword's, a
candidate's predicted distance from the pool's mean :math:`\bar\mu` came true by a share below 1,
the lower, the further losses fall (F, in log loss, the pool's mean from the candidate's largest
size to the target).  That share is :math:`S_i = e^{-C F_i^{3/2}}` with a C of each task: 1.2 on
Gigaword, 3.2 on FLAN, 5.3 on pydoc, 6.3 on sotu.  C is gamma distributed with mean c and shape k,
and the mean of the views, :math:`\mu_i`, becomes

.. math:: \bar\mu + E[S_i] (\mu_i - \bar\mu), \quad E[S_i] = (1 + c F_i^{3/2} / k)^{-k}, \quad
    E[S_i^2] = (1 + 2 c F_i^{3/2} / k)^{-k}, \quad c = 3.6, \; k = 2,

which changes no order of candidates that were measured on the same sizes.  A candidate far below
the others would rise by more than it is to fall: it is drawn up by .7 of its own fall at most, a
bound that 4 of 46,000 predictions on these tables meet.  The variance of :math:`S_i` widens
intervals by :math:`|\mu_i - \bar\mu|` times its root; a factor common to all changes no order, and
no probability of one.

The scale is that of a mixture, the slopes model's variance plus the weighted variance between the
views that extrapolate, relative to the pool, times .62, what the convergence leaves of it; plus,
where it is known, that of the last losses over the test records.  Student t with twelve degrees of
freedom, because that variance is itself uncertain.

The constants were chosen on FLAN, Gigaword, pydoc and sotu; ``python -m benchmarks.selection``
chooses them anew with one table left out, k excepted: it says how tables differ.

Example:
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> losses = np.array([[3.0, 2.9], [3.3, 3.0]])
    >>> table = LossTable(("a", "b"), np.array([200, 400]), losses, np.ones(2), ("", ""))
    >>> scores = score(Problem(table, target_size=12800))
    >>> near = score(Problem(table, target_size=800))  # one octave ahead, not five
    >>> bool(scores.scores[1] < scores.scores[0]), bool((scores.log_std > 5 * near.log_std).all())
    (True, True)
"""

import dataclasses
import math
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import last_measured
from lensllm_jax.selection.posterior import Posterior
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors import _slopes, pooled

_EARLY_GAIN = 0.3  # log loss per whole early-gain share, by growth x octaves
_MOST_DRAWN = 0.7  # up towards the mean, of a candidate's own fall: curves that converge still fall
_MIN_LOG_STD = 1e-4  # losses are printed with four digits or more

_Rows = Float[np.ndarray, " num_candidates"]


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is the same for every task."""

    local: float = 0.6  # weights of the views, in their order
    slopes: float = 0.37
    budget: float = 0.03
    convergence: float = 3.6  # c, per log loss to the power 3/2
    convergence_shape: float = 2.0  # k
    width: float = 0.62  # of the views' scale
    dof: float = 12.0  # of Student's t

    @property
    def weights(self) -> Float[np.ndarray, " 3"]:
        """Of the views, summing to one."""
        weights = np.array([self.local, self.slopes, self.budget])
        return weights / weights.sum()


DEFAULT = Constants()
_SLOPES, _BUDGET = 1, 2  # rows of the views
_SLOPE = "mean of its slopes, task-wide growth and its loss at the budget"
_NO_SLOPE = "ranked by its loss: two sizes above 0 are needed for a slope"
_UNSEEN = "not ranked: it has no loss above size 0"
_DIVERGED = "its last loss is far above an earlier one: the others are compared without it"


@dataclasses.dataclass(frozen=True, eq=False)
class Views:
    """What each view says of the pool, whatever the constants."""

    log_losses: Float[np.ndarray, "3 num_candidates"]  # at the target; NaN: no answer
    log_std: _Rows  # by the slopes model
    records_std: _Rows  # of the last log loss, over test records; 0 if not known
    behind: _Rows  # mean fall of log losses from its largest size to the budget
    is_measured: Bool[np.ndarray, " num_candidates"]  # at any size above 0

    @classmethod
    def of(cls, problem: Problem) -> "Views":
        """From the losses of a problem.

        Raises:
            UserError: if no loss was measured above size 0.
        """
        table = problem.table
        positive = table.sizes > 0
        octaves = np.log2(table.sizes[positive] / problem.budget_size)
        log_losses = np.log(table.losses[:, positive])
        if not np.isfinite(log_losses).any():
            raise checks.UserError(
                f"`table` must hold a loss above size 0 and up to {problem.budget_size}, got none"
            )
        slopes, log_std = _slopes.predict(octaves, log_losses, problem.octaves, problem.budget_size)
        late = pooled.early_gain_rise(problem, strength=_EARLY_GAIN)
        at_budget, behind = _at_budget(log_losses)
        share = _lasting_shares(problem)
        local = _lasting(pooled.local_view(problem), at_budget, share)
        views = np.stack([local, slopes + late, at_budget])
        is_measured = np.isfinite(log_losses).any(1)
        return cls(views, log_std, np.sqrt(_records_variance(problem)), behind, is_measured)

    def posterior(self, constants: Constants = DEFAULT) -> Posterior:
        """The mixture's mean and scale."""
        slopes, budget = self.log_losses[[_SLOPES, _BUDGET]]
        views = np.where(np.isfinite(self.log_losses), self.log_losses, slopes)
        views[_BUDGET] = budget - budget.mean() + slopes.mean()
        center = constants.weights @ views
        off = _slopes.without_shift(views - center, self.log_std**2)
        ahead = np.delete(constants.weights, _BUDGET)
        between = ahead @ np.delete(off, _BUDGET, axis=0) ** 2 / ahead.sum()
        fall = np.maximum(budget.mean() - center.mean() + self.behind, 0.0)
        share, share_std = _convergence(fall, constants)
        distance = center - center.mean()
        own_fall = np.maximum(budget + self.behind - center, 0.0)
        drawn = np.minimum((share - 1.0) * distance, _MOST_DRAWN * own_fall)
        variance = constants.width**2 * (self.log_std**2 + between) + self.records_std**2
        return Posterior(
            np.where(self.is_measured, center + drawn, np.nan),  # unseen, it could be anything
            np.maximum(np.sqrt(variance), _MIN_LOG_STD),
            constants.dof,
            share_std * np.abs(distance),
        )


def _convergence(fall: _Rows, constants: Constants) -> tuple[_Rows, _Rows]:
    """Share of a distance that comes true: its mean and standard deviation over tasks."""
    shape, rate = constants.convergence_shape, constants.convergence * fall**1.5
    mean, square = (1.0 + rate / shape) ** -shape, (1.0 + 2.0 * rate / shape) ** -shape
    return mean, np.sqrt(np.maximum(square - mean**2, 0.0))


def _lasting_shares(problem: Problem) -> _Rows:
    """Of each candidate's slope at its largest size, on the way to the target."""
    sizes = problem.table.sizes[last_measured(problem.measured)]
    sizes = np.where(sizes > 0, sizes, problem.budget_size)
    share = {
        int(size): _slopes.lasting_share(math.log2(problem.target_size / size), int(size))
        for size in np.unique(sizes)
    }
    return np.array([share[int(size)] for size in sizes])


def _lasting(view: _Rows, at_budget: _Rows, share: _Rows) -> _Rows:
    """A view in which ``share`` of the differences between candidates' falls is left."""
    falls = at_budget - view
    known = np.isfinite(falls)
    mean = float(falls[known].mean()) if known.any() else 0.0
    return view + (1.0 - share) * (falls - mean)


def _records_variance(problem: Problem) -> _Rows:
    """Of each last log loss, over test records, relative to the other candidates.

    What the records do to all candidates alike changes no order.  Who ran further than all others
    has no company there: its errors are those at its largest size where others were measured too.
    """
    losses, covariance = problem.table.losses, problem.evidence.loss_covariance
    variance = np.zeros(len(losses))
    if covariance is None:
        return variance
    known = np.isfinite(np.diagonal(covariance, axis1=1, axis2=2)) & problem.measured.T
    for column in np.flatnonzero(known.sum(1) > 1):  # a later column replaces what it knows
        rows = np.flatnonzero(known[column])
        relative = covariance[column][np.ix_(rows, rows)]
        relative = relative / np.outer(losses[rows, column], losses[rows, column])
        own = np.diag(relative) - 2.0 * relative.mean(1) + relative.mean()
        variance[rows] = np.maximum(own, 0.0)
    return variance


def _at_budget(log_losses: Float[np.ndarray, "num_candidates num_sizes"]) -> tuple[_Rows, _Rows]:
    """Log losses at the budget, from the last one measured along the pool's mean curve.

    In each octave the mean is that of the candidates measured at both ends.

    Returns:
        Log losses, and how far the mean curve falls on the way.
    """
    falls = np.diff(log_losses, axis=1)
    is_known = np.isfinite(falls)
    steps = np.where(is_known, falls, 0.0).sum(0) / np.maximum(is_known.sum(0), 1)
    mean = np.concatenate([[0.0], np.cumsum(steps)])
    is_measured = np.isfinite(log_losses)
    last = last_measured(is_measured)
    behind = mean[last] - mean[-1]
    values = log_losses[np.arange(len(last)), last] - behind
    return np.where(is_measured.any(1), values, np.nanmean(values)), behind


def score(problem: Problem) -> Scores:
    """The mean of views, and its scale; one that diverged is no company for the others."""
    scores, is_diverged = _score(problem), problem.table.is_diverged
    is_tuned = problem.measured[:, problem.table.sizes > 0].any(1)
    if not is_diverged.any() or not (is_tuned & ~is_diverged).any():
        return scores
    steady = np.flatnonzero(~is_diverged)
    alone = _score(problem.among(steady))
    merged: dict[str, Any] = {}
    for name in ("scores", "log_std", "distance_std"):
        merged[name] = np.array(getattr(scores, name))
        merged[name][steady] = getattr(alone, name)
    messages = zip(is_diverged.tolist(), scores.messages or (), strict=True)
    said = tuple(_DIVERGED if diverged else message for diverged, message in messages)
    return dataclasses.replace(scores, **merged, messages=said)


def _score(problem: Problem) -> Scores:
    """Of candidates that are compared with each other."""
    views = Views.of(problem)
    posterior = views.posterior()
    return Scores(
        np.exp(posterior.center),
        log_std=posterior.log_std,
        dof=posterior.dof,
        distance_std=posterior.distance_std,
        messages=tuple(
            _SLOPE if known else _NO_SLOPE if measured else _UNSEEN
            for known, measured in zip(
                np.isfinite(views.log_losses[0]), views.is_measured, strict=True
            )
        ),
        spent=problem.train_sizes,
    )
