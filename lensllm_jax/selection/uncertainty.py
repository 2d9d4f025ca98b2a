r"""How sure a ranking is, and which fine-tune would make it surer.

A selector's own past is the evidence: it is asked to predict today's budget from budgets one,
two and three halvings earlier, and its errors there, in log loss and less their mean over
candidates (a shift of all candidates changes no order), grow with the h octaves extrapolated as
for a slope that wanders at random:

.. math:: e_{ih} \sim N(0, c_i^2 h^3), \qquad
    c_i^2 = \tfrac12 \big(\overline{e_{jh}^2 / h^3}^{\,all\ j} + \overline{e_{ih}^2/h^3}\big),

each candidate's variance half its own and half everyone's, because three errors alone say little.
At the target :math:`\sigma_i = c_i H^{3/2}`, and with normal errors

.. math:: P(A \text{ beats } B) = \Phi\big((\log\hat L_B - \log\hat L_A) /
    \sqrt{\sigma_A^2 + \sigma_B^2}\big).

For scores that predict no loss, P is the share of pairs at the budget that the score, taken as
far before the budget as the target lies behind it (or at the smallest size), puts in right order.

Example:
    >>> advice = next_measurement("a", "b", np.array([1.0, 1.01]), np.array([0.1, 0.1]),
    ...     np.array([1e6, 1e9]), budget_size=3200, target_size=12800, cost=TrainingCost())
    >>> advice.candidate, advice.size, round(advice.probability, 2)
    ('a', 6400, 0.53)
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np
from jaxtyping import Float

from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.problem import Problem, Scores

NUM_ORIGINS = 3
SPREAD_POWER = 1.5  # of octaves: the standard deviation of an integrated random walk
MIN_SIZES = 3  # above 0 that a selector needs before its past is asked
MIN_LOG_STD = 1e-4  # losses are printed with four digits or more

Select = Callable[[Problem], Scores]


def _origins(problem: Problem) -> list[int]:
    """Budgets before this one, latest first."""
    positive = [int(size) for size in problem.table.sizes if size > 0]
    return positive[MIN_SIZES - 1 : -1][::-1][:NUM_ORIGINS]


def backtest_log_std(
    problem: Problem, select: Select
) -> Float[np.ndarray, " num_candidates"] | None:
    """Standard deviations of log predicted losses at the target, from the selector's past.

    Args:
        problem: what was measured.
        select: a selector that predicts losses.

    Returns:
        One a candidate; None if fewer than four sizes above 0 leave no past.
    """
    truth = np.log(problem.table.losses[:, -1])
    scaled = []
    for origin in _origins(problem):
        past = problem.at_budget(origin, problem.budget_size)
        with np.errstate(invalid="ignore"):
            errors = np.log(select(past).scores) - truth
        if np.isfinite(errors).sum() > 1:
            errors = errors - np.nanmean(errors)
        scaled.append(errors / past.octaves**SPREAD_POWER)
    if not scaled or not np.isfinite(scaled).any():
        return None
    squares = np.array(scaled) ** 2
    everyone = float(np.nanmean(squares))
    known = np.isfinite(squares)
    own = np.where(known, squares, 0.0).sum(0) / np.maximum(known.sum(0), 1)
    own = np.where(known.any(0), own, everyone)
    return np.maximum(np.sqrt(0.5 * (everyone + own)) * problem.octaves**SPREAD_POWER, MIN_LOG_STD)


def backtest_concordance(problem: Problem, select: Select, scores: Scores) -> float | None:
    """Share of pairs at the budget that the score put in right order as long before.

    Args:
        problem: what was measured.
        select: a selector whose scores are no losses at the target.
        scores: what it says today.

    Returns:
        A share in [0, 1]; None without two candidates and an earlier size.
    """
    truth = problem.table.losses[:, -1]
    positive = [int(size) for size in problem.table.sizes if size > 0]
    if len(positive) < 2 or len(truth) < 2:
        return None
    wanted = problem.budget_size / 2.0**problem.octaves
    origin = min(positive[:-1], key=lambda size: abs(math.log2(size / wanted)))
    if scores.reads_losses:
        scores = select(problem.at_budget(origin, problem.budget_size))
    values = scores.ranks_by()
    first, second = np.triu_indices(len(truth), 1)
    agree = (values[second] - values[first]) * (truth[second] - truth[first])
    decided = np.isfinite(agree) & (agree != 0)
    return float(np.mean(agree[decided] > 0)) if decided.any() else None


def with_uncertainty(problem: Problem, select: Select) -> Scores:
    """The selector's scores, with spread or concordance from its own past."""
    scores = select(problem)
    if scores.predicts:
        return dataclasses.replace(scores, log_std=backtest_log_std(problem, select))
    return dataclasses.replace(scores, concordance=backtest_concordance(problem, select, scores))


@dataclasses.dataclass(frozen=True)
class NextMeasurement:
    """The fine-tune that would separate two candidates best per FLOP."""

    candidate: str  # whom to fine-tune
    size: int  # on how many examples
    flops: float  # what it costs
    probability: float  # that the leader beats the runner-up, as known now
    gap_std_before: float  # of the difference of log losses, now
    gap_std_after: float  # expected once measured

    def __str__(self) -> str:
        return (
            f"need more data to tell (P = {self.probability:.2f}): fine-tune {self.candidate} on "
            f"{self.size} examples ({self.flops:.2g} FLOPs)"
        )


def next_measurement(
    leader: str,
    runner_up: str,
    predicted: Float[np.ndarray, "2"],
    log_std: Float[np.ndarray, "2"],
    num_params: Float[np.ndarray, "2"],
    *,
    budget_size: int,
    target_size: int,
    cost: TrainingCost,
) -> NextMeasurement:
    r"""The (candidate, size) that removes most variance of the gap per FLOP.

    After a fine-tune on :math:`2^k` times the budget, :math:`H - k` octaves are left to
    extrapolate, so the candidate's variance falls from :math:`\sigma^2` to
    :math:`\sigma^2 (1 - k/H)^3`.

    Args:
        leader: first candidate.
        runner_up: second candidate.
        predicted: their predicted losses.
        log_std: standard deviations of the logarithms.
        num_params: their sizes; if unknown, both count the same.
        budget_size: largest size measured so far.
        target_size: size that matters.
        cost: of a fine-tune.

    Returns:
        The best next fine-tune.
    """
    octaves = math.log2(target_size / budget_size)
    known = num_params if np.isfinite(num_params).all() else np.ones(2)
    variance = float((log_std**2).sum())
    best: tuple[float, NextMeasurement] | None = None
    z = math.log(predicted[1] / predicted[0]) / math.sqrt(variance)
    probability = 0.5 * (1.0 + math.erf(z / math.sqrt(2.0)))
    for i, name in enumerate((leader, runner_up)):
        for k in range(1, math.ceil(octaves) + 1):
            size = min(budget_size * 2**k, target_size)
            left = 1.0 - math.log2(size / budget_size) / octaves
            removed = float(log_std[i] ** 2) * (1.0 - left ** (2 * SPREAD_POWER))
            rate = removed / cost.flops(float(known[i]), size)
            after = math.sqrt(max(variance - removed, 0.0))
            flops = cost.flops(float(num_params[i]), size)
            measurement = NextMeasurement(
                name, size, flops, probability, math.sqrt(variance), after
            )
            if best is None or rate > best[0]:
                best = rate, measurement
    assert best is not None  # the target lies above the budget, so k = 1 was tried
    return best[1]
