r"""How sure a ranking is, and which fine-tune would make it surer.

A selector's own past is the evidence: it predicts today's budget from budgets one, two and three
halvings earlier, and its errors there, in log loss and minus their mean over candidates (a shift
of all candidates changes no order), grow with the h octaves extrapolated as for a slope that is a
random walk:

.. math:: e_{ih} \sim N(0, c_i^2 h^3), \qquad
    c_i^2 = \tfrac12 \big(\overline{e_{jh}^2 / h^3}^{\,all\ j} + \overline{e_{ih}^2/h^3}\big),

each candidate's variance half its own and half that of all, because three errors alone say little.
At the target :math:`\sigma_i = c_i H^{3/2}`, and with normal errors

.. math:: P(A \text{ beats } B) = \Phi\big((\log\hat L_B - \log\hat L_A) /
    \sqrt{\sigma_A^2 + \sigma_B^2}\big).

For scores that predict no loss, P is the share of pairs at the budget that the score, taken as
far before the budget as the target lies behind it (or at the smallest size), puts in right order.

Example:
    >>> first = Contender("a", predicted=1.0, log_std=0.1, num_params=1e6)
    >>> second = Contender("b", predicted=1.01, log_std=0.1, num_params=1e9)
    >>> advice = next_measurement(
    ...     first, second, budget_size=3200, target_size=12800, cost=TrainingCost())
    >>> advice.candidate, advice.size, round(advice.probability, 2)
    ('a', 6400, 0.53)
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.posterior import cdf
from lensllm_jax.selection.problem import Problem, Scores, Selector

_NUM_ORIGINS = 3
_SPREAD_POWER = 1.5  # of octaves: the standard deviation of an integrated random walk
_MIN_SIZES = 3  # above 0 that a selector needs before it is backtested
_MIN_LOG_STD = 1e-4  # losses are printed with four digits or more


class Probability(float):
    """A probability, shown only as far as the evidence behind it can tell.

    Args:
        value: in [0, 1], or NaN.
        limit: above it, and below one minus it, the text is a bound.

    Example:
        >>> print(Probability(0.625), Probability(0.999999), Probability(0.0), sep=", ")
        0.62, > 0.99, < 0.01
        >>> print(Probability(1.0, limit=Probability.limit_of(6)))
        > 0.87
    """

    _limit: float

    def __new__(cls, value: float, *, limit: float = 0.99) -> "Probability":
        """A float that knows its limit."""
        probability = super().__new__(cls, value)
        probability._limit = limit
        return probability

    @staticmethod
    def limit_of(count: int) -> float:
        """The next outcome's chance after ``count`` equal ones (Laplace's rule of succession)."""
        return 1.0 - 1.0 / (count + 2)

    def __str__(self) -> str:
        if self > self._limit:
            return f"> {math.floor(100 * self._limit + 1e-9) / 100:.2f}"
        if self < 1.0 - self._limit:
            return f"< {math.ceil(100 * (1.0 - self._limit) - 1e-9) / 100:.2f}"
        return f"{float(self):.2f}"

    @property
    def relation(self) -> str:
        """What follows the P: "= 0.62", or the bound."""
        shown = str(self)
        return shown if shown[0] in "<>" else f"= {shown}"


def with_uncertainty(problem: Problem, selector: Selector) -> Scores:
    """The selector's scores, with its own spread, or spread or concordance from its own past."""
    scores = selector(problem)
    if scores.log_std is not None:
        return scores
    if scores.predicts:
        return dataclasses.replace(scores, log_std=_backtest_log_std(problem, selector))
    concordance = _backtest_concordance(problem, selector, scores)
    return dataclasses.replace(scores, concordance=concordance)


def _origins(problem: Problem) -> list[int]:
    """Budgets before this one, latest first."""
    positive = [int(size) for size in problem.table.sizes if size > 0]
    return positive[_MIN_SIZES - 1 : -1][::-1][:_NUM_ORIGINS]


def _backtest_log_std(
    problem: Problem, selector: Selector
) -> Float[np.ndarray, " num_candidates"] | None:
    """Standard deviations of log predicted losses at the target; None without a past."""
    truth = np.log(problem.table.losses[:, -1])
    scaled = []
    for origin in _origins(problem):
        past = problem.at_budget(origin, problem.budget_size)
        with np.errstate(invalid="ignore"):
            errors = np.log(selector(past).scores) - truth
        if np.isfinite(errors).sum() > 1:
            errors = errors - np.nanmean(errors)
        scaled.append(errors / past.octaves**_SPREAD_POWER)
    if not scaled or not np.isfinite(scaled).any():
        return None
    squares = np.array(scaled) ** 2
    pooled = float(np.nanmean(squares))
    known = np.isfinite(squares)
    own = np.where(known, squares, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    own = np.where(known.any(0), own, pooled)
    return np.maximum(np.sqrt(0.5 * (pooled + own)) * problem.octaves**_SPREAD_POWER, _MIN_LOG_STD)


def _backtest_concordance(problem: Problem, selector: Selector, scores: Scores) -> float | None:
    """Share of pairs in right order; None without two candidates and an earlier size."""
    truth, sizes = problem.table.losses[:, -1], problem.table.sizes[:-1]
    if scores.reads_losses:  # some selectors read the losses of all at the budget
        sizes = sizes[problem.measured[:, :-1].all(0)]
    earlier = [int(size) for size in sizes if size > 0]
    if not earlier or len(truth) < 2:
        return None
    if scores.reads_losses:
        wanted = problem.budget_size / 2.0**problem.octaves
        origin = min(earlier, key=lambda size: abs(math.log2(size / wanted)))
        scores = selector(problem.at_budget(origin, problem.budget_size))
    values = scores.ranks_by()
    first, second = np.triu_indices(len(truth), 1)
    agree = (values[second] - values[first]) * (truth[second] - truth[first])
    decided = np.isfinite(agree) & (agree != 0)
    return float(np.mean(agree[decided] > 0)) if decided.any() else None


class Contender(NamedTuple):
    """One of the two candidates that lead a ranking."""

    name: str
    predicted: float  # loss at the target, nats per byte
    log_std: float  # of its logarithm
    num_params: float  # NaN if unknown


@dataclasses.dataclass(frozen=True)
class NextMeasurement:
    """The fine-tune that would separate two candidates best per FLOP."""

    candidate: str  # to fine-tune
    size: int  # examples
    flops: float  # of that fine-tune; NaN if a number of parameters is unknown
    probability: float  # that the leader beats the runner-up, as known now
    gap_std_before: float  # of the difference of log losses, now
    gap_std_after: float  # expected once measured

    def __str__(self) -> str:
        price = f" ({self.flops:.2g} FLOPs)" if math.isfinite(self.flops) else ""
        return (
            f"need more data to tell (P = {self.probability:.2f}): fine-tune {self.candidate} on "
            f"{self.size} examples{price}"
        )


def next_measurement(
    leader: Contender,
    runner_up: Contender,
    *,
    budget_size: int,
    target_size: int,
    cost: TrainingCost,
    dof: float = math.inf,
) -> NextMeasurement:
    r"""The (candidate, size) that removes most variance of the gap per FLOP.

    After a fine-tune on :math:`2^k` times the budget, :math:`H - k` octaves are left to
    extrapolate, so the candidate's variance falls from :math:`\sigma^2` to
    :math:`\sigma^2 (1 - k/H)^3`.  Where a number of parameters is unknown, both count the same.
    """
    pair = (leader, runner_up)
    octaves = math.log2(target_size / budget_size)
    is_known = all(math.isfinite(one.num_params) for one in pair)
    variance = sum(one.log_std**2 for one in pair)
    z = math.log(runner_up.predicted / leader.predicted) / math.sqrt(variance)
    probability = float(cdf(z, dof))
    options: list[tuple[float, NextMeasurement]] = []
    for one in pair:
        for k in range(1, math.ceil(octaves) + 1):
            size = min(budget_size * 2**k, target_size)
            left = 1.0 - math.log2(size / budget_size) / octaves
            removed = one.log_std**2 * (1.0 - left ** (2 * _SPREAD_POWER))
            rate = removed / cost.flops(one.num_params if is_known else 1.0, size)
            after = math.sqrt(max(variance - removed, 0.0))
            flops = cost.flops(one.num_params, size)
            option = NextMeasurement(one.name, size, flops, probability, math.sqrt(variance), after)
            options.append((rate, option))
    return max(options, key=lambda option: option[0])[1]  # the first of equals
