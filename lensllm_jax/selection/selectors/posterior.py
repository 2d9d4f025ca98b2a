r"""`posterior`: the mean of independent views of each curve, and how far it was off in the past.

Log loss at the target: the weighted mean of four views,

* `pooled`'s local view (weight 3) and its warped view (1);
* the rectified law (1/2), from nine sizes above 0 on: with fewer it is no evidence;
* the loss at the budget (1/4): orders persist.

The last two take their level from the first two, so that they say who is better and no more.

Scale, relative to the pool: the geometric mean of two estimates.  The views' own past: they predict
today's budget from up to four earlier budgets, :math:`h_o` octaves away, with errors
:math:`e_{io}` (minus their mean over candidates) that grow like a slope which is a random walk,

.. math:: c_i^2 = \tfrac12\Big(\frac{\sum_o e_{io}^2}{\sum_o h_o^3}
    + \overline{\frac{\sum_o e_{jo}^2}{\sum_o h_o^3}}^{\,all\ j}\Big), \qquad
    \sigma_i = c_i H^{3/2};

and the walks of slopes in ``_walks.py``, which alone answers before there is a past.  Student t
with eight degrees of freedom, because either estimate is itself uncertain.

All constants were chosen on FLAN, Gigaword, pydoc and sotu by leaving one table out
(``python -m benchmarks.selection``).

Example:
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> losses = np.array([[3.0, 2.9], [3.3, 3.0]])
    >>> table = LossTable(("a", "b"), np.array([200, 400]), losses, np.ones(2), ("", ""))
    >>> scores = score(Problem(table, target_size=12800))
    >>> bool(scores.scores[1] < scores.scores[0]), bool((scores.log_std > 0.05).all())
    (True, True)
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.posterior import Posterior
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors import pooled
from lensllm_jax.selection.selectors._walks import log_std_of_walks


@dataclasses.dataclass(frozen=True)
class Constants:
    """What is the same for every task."""

    local: float = 3.0  # weights of the views
    warped: float = 1.0
    rectified: float = 0.5
    budget: float = 0.25
    own_errors: float = 0.5  # weight of a candidate's own past; the rest is everybody's
    walks: float = 0.5  # exponent of the walks' scale; the rest is the past's
    dof: float = 8.0  # of Student t


DEFAULT = Constants()
_MIN_SIZES_OF_LAW = 9  # above 0
_MAX_CANDIDATES_OF_LAW = 1000  # a fit takes milliseconds, everything else microseconds
_NUM_ORIGINS = 4
_MIN_LOG_STD = 1e-4  # losses are printed with four digits or more

_Rows = Float[np.ndarray, " num_candidates"]


class Curves:
    """The curves of a pool above size 0: what every view reads, computed once."""

    def __init__(self, problem: Problem):
        table = problem.table
        positive = table.sizes > 0
        self.octaves = np.log2(table.sizes[positive] / problem.budget_size)
        self.log_losses = np.log(table.losses[:, positive])
        self.is_measured = np.isfinite(self.log_losses)
        if not self.is_measured.any():
            raise checks.UserError(
                f"`table` must hold a loss above size 0 and up to {problem.budget_size}, got none"
            )

    @property
    def last(self) -> Int[np.ndarray, " num_candidates"]:
        """The column of each candidate's largest size, the last one's where it has none."""
        return len(self.octaves) - 1 - self.is_measured[:, ::-1].argmax(1)

    @property
    def mean(self) -> Float[np.ndarray, " num_sizes"]:
        """The pool's mean curve from 0 on: in each octave, of the candidates measured at both ends.

        Where no candidate was measured at both, it is flat.
        """
        falls = np.diff(self.log_losses, axis=1)
        is_known = np.isfinite(falls)
        steps = np.where(is_known, falls, 0.0).sum(0) / np.maximum(is_known.sum(0), 1)
        return np.concatenate([[0.0], np.cumsum(steps)])

    @property
    def at_budget(self) -> _Rows:
        """Log losses at the budget, from the last one measured along the pool's mean curve."""
        mean, last = self.mean, self.last
        rows = np.arange(len(last))
        values = self.log_losses[rows, last] + mean[-1] - mean[last]
        return np.where(self.is_measured.any(1), values, np.nanmean(values))


def origins_of(problem: Problem) -> list[int]:
    """Earlier budgets that the views are tried from, latest first; two sizes give a slope."""
    return [int(size) for size in problem.table.sizes if size > 0][1:-1][::-1][:_NUM_ORIGINS]


def views(
    problem: Problem,
) -> tuple[Float[np.ndarray, "4 num_candidates"], Float[np.ndarray, "num_origins 4 n"]]:
    """Log losses by each view (local, warped, rectified, budget): at the target, and in the past.

    The past is today's budget from each of ``origins_of``; NaN where a view predicts nothing.
    """
    origins = origins_of(problem)
    pasts = [problem.at_budget(origin, problem.budget_size) for origin in origins]
    laws = _laws(problem, [problem.budget_size, *origins])
    at_target, *in_past = (
        np.stack([*pooled.views(one), law, Curves(one).at_budget])
        for one, law in zip([problem, *pasts], laws, strict=True)
    )
    return at_target, np.array(in_past).reshape(len(origins), *at_target.shape)


def _laws(
    problem: Problem, budgets: Sequence[int]
) -> Float[np.ndarray, "num_budgets num_candidates"]:
    """The rectified law on the sizes up to each budget, in one compiled call.

    Log losses at the target by today's budget, the first, and at today's budget by the others.
    """
    table, count = problem.table, len(problem.table.names)
    logs = np.full((len(budgets), count), np.nan)
    used = [problem.measured & (table.sizes <= budget) for budget in budgets]
    is_fit = [int((u & (table.sizes > 0)).sum(1).min()) >= _MIN_SIZES_OF_LAW for u in used]
    if count > _MAX_CANDIDATES_OF_LAW or not any(is_fit):
        return logs
    weights = np.concatenate([u for u, fit in zip(used, is_fit, strict=True) if fit])
    losses = np.tile(table.losses, (sum(is_fit), 1))
    fits = fit_laws(Law.RECTIFIED, table.sizes, losses, weights=weights.astype(np.float64))
    with np.errstate(divide="ignore"):
        ahead = np.log(fits.predict(np.array([problem.target_size, problem.budget_size], float)))
    logs[is_fit] = ahead[:, 1].reshape(-1, count)
    if is_fit[0]:
        logs[0] = ahead[:count, 0]
    # all or none: do not compare cautious predictions with bold ones
    return np.where(np.isfinite(logs).all(1, keepdims=True), logs, np.nan)


def mean_of(
    values: Float[np.ndarray, "4 num_candidates"], *, constants: Constants = DEFAULT
) -> _Rows:
    """The weighted mean of the views; a candidate without slopes keeps its place at the budget."""
    local, warped, law, budget = values
    slopes = np.where(
        np.isfinite(local),
        (constants.local * local + constants.warped * warped)
        / (constants.local + constants.warped),
        np.nan,
    )
    total = weight = np.zeros(len(local))
    for view, share in (
        (slopes, constants.local + constants.warped),
        (_leveled(law, slopes), constants.rectified),
        (_leveled(budget, slopes), constants.budget),
    ):
        is_known = np.isfinite(view)
        total = total + np.where(is_known, share * view, 0.0)
        weight = weight + np.where(is_known, share, 0.0)
    return total / weight


def _leveled(view: _Rows, reference: _Rows) -> _Rows:
    """The view, shifted to the mean of the reference where both are known."""
    both = np.isfinite(view) & np.isfinite(reference)
    return view + np.mean((reference - view)[both]) if both.any() else view


@dataclasses.dataclass(frozen=True, eq=False)
class Evidenced:
    """What the posterior reads of a problem, whatever its constants."""

    views: Float[np.ndarray, "4 num_candidates"]  # log losses at the target
    past_octaves: Float[np.ndarray, " num_origins"]  # from each earlier budget to today's
    past_views: Float[np.ndarray, "num_origins 4 num_candidates"]  # log losses at today's budget
    truth: _Rows  # log losses at today's budget; NaN where not measured
    walks: _Rows  # scale at the target by the walks of slopes
    octaves: _Rows  # from each candidate's largest size to the target

    @classmethod
    def of(cls, problem: Problem) -> "Evidenced":
        """From the losses of a problem."""
        curves = Curves(problem)
        now, past = views(problem)
        walks = log_std_of_walks(curves.octaves, curves.log_losses, curves.mean, problem.octaves)
        octaves = [math.log2(problem.budget_size / origin) for origin in origins_of(problem)]
        truth = np.log(problem.table.losses[:, -1])
        left = problem.octaves - curves.octaves[curves.last]
        return cls(now, np.array(octaves), past, truth, walks, left)

    def posterior(self, constants: Constants = DEFAULT) -> Posterior:
        """The mean of views, with a scale from the past and from the walks."""
        log_std = self.walks
        past = self._scale_of_past(constants)
        if past is not None:
            log_std = log_std**constants.walks * past ** (1.0 - constants.walks)
        center = mean_of(self.views, constants=constants)
        return Posterior(center, np.maximum(log_std, _MIN_LOG_STD), constants.dof)

    def _scale_of_past(self, constants: Constants) -> _Rows | None:
        errors = [
            _relative(mean_of(past, constants=constants) - self.truth) for past in self.past_views
        ]
        is_known = np.isfinite(errors)
        if not is_known.any():
            return None
        squares = (np.where(is_known, errors, 0.0) ** 2).sum(0)
        cubes = np.where(is_known, self.past_octaves[:, None] ** 3, 0.0).sum(0)
        everybody = squares.sum() / cubes.sum()
        own = np.where(cubes > 0, squares / np.where(cubes > 0, cubes, 1.0), everybody)
        share = constants.own_errors
        return np.sqrt(((1.0 - share) * everybody + share * own) * self.octaves**3)


def _relative(errors: _Rows) -> _Rows:
    """Minus their mean over candidates, if there are two; NaN stays."""
    return errors - np.nanmean(errors) if np.isfinite(errors).sum() > 1 else errors


def score(problem: Problem) -> Scores:
    """The mean of views, and its scale."""
    evidence = Evidenced.of(problem)
    posterior = evidence.posterior()
    return Scores(
        np.exp(posterior.center),
        log_std=posterior.log_std,
        dof=posterior.dof,
        messages=tuple(map(_message, np.isfinite(evidence.views).T)),
        spent=problem.train_sizes,
    )


def _message(is_known: Bool[np.ndarray, " 4"]) -> str:
    if not is_known[0]:
        return "ranked by its loss: two sizes above 0 are needed for a slope"
    return "own slope, task-wide growth, " + ("rectified law, " if is_known[2] else "") + "budget"
