r"""Paired differences over candidates: mean, bootstrap interval, and sign-flip p-values.

A method and its control are measured on the same candidates, so the difference of each candidate
is what counts.  The interval resamples candidates.  The p-value asks how often a mean as far from
zero comes up when each candidate's difference may as well have had the other sign.  Of many
comparisons some look good by chance: the family-wise p-value compares each t statistic with the
*largest* of all comparisons under the same flips (Westfall and Young 1993), which allows for their
dependence.  Candidates of one family resemble each other, so all of these are too sure.

Example:
    >>> better = np.array([[-0.2, -0.1, -0.3, -0.2, -0.15, -0.25]])
    >>> result = paired(better)
    >>> result.mean.round(3), bool(result.high[0] < 0), result.p_value.round(3)
    (array([-0.2]), True, array([0.031]))
"""

import itertools
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks

LEVEL = 0.95  # coverage of the intervals
NUM_RESAMPLES = 4000
MAX_EXACT = 14  # candidates up to which all sign flips are tried


class Paired(NamedTuple):
    """One entry per comparison."""

    mean: Float[np.ndarray, " c"]  # of the differences
    low: Float[np.ndarray, " c"]  # lower end of the bootstrap interval
    high: Float[np.ndarray, " c"]  # upper end
    better: Float[np.ndarray, " c"]  # share of candidates with a difference below zero
    p_value: Float[np.ndarray, " c"]  # two-sided, of this comparison alone
    p_family: Float[np.ndarray, " c"]  # two-sided, allowing for all comparisons


def paired(differences: Float[np.ndarray, "c n"], *, seed: int = 0) -> Paired:
    """Compares a method with its control.

    Args:
        differences: method minus control; a row per comparison, a column per candidate, no NaN.
        seed: of the resampling, and of the flips where there are too many to try all.

    Raises:
        UserError: for fewer than two candidates or a difference that is not finite.
    """
    checks.finite("differences", differences)
    count = differences.shape[1]
    if count < 2:
        raise checks.UserError(f"`differences` must have two or more candidates, got {count}")
    random = np.random.default_rng(seed)
    draws = random.integers(0, count, (NUM_RESAMPLES, count))
    tails = [0.5 - 0.5 * LEVEL, 0.5 + 0.5 * LEVEL]
    ends = [np.quantile(row[draws].mean(1), tails) for row in differences]
    low, high = np.array(ends).reshape(-1, 2).T
    if count <= MAX_EXACT:
        signs = np.array(list(itertools.product([1.0, -1.0], repeat=count)))
    else:
        signs = random.choice([1.0, -1.0], (2**MAX_EXACT, count))
        signs[0] = 1.0  # what was seen is one of the flips
    flipped = np.abs(_t_statistic(differences, signs))  # (flips, comparisons)
    seen = flipped[0] * (1.0 - 1e-9)  # a tie is a tie whatever the rounding
    return Paired(
        mean=differences.mean(1),
        low=low,
        high=high,
        better=(differences < 0).mean(1),
        p_value=(flipped >= seen[None]).mean(0),
        p_family=(flipped.max(1)[:, None] >= seen[None]).mean(0),
    )


def _t_statistic(differences: np.ndarray, signs: np.ndarray) -> np.ndarray:
    """Student's t of every comparison under every flip; 0 where all differences are 0."""
    count = differences.shape[1]
    mean = signs @ differences.T / count
    square = (differences**2).mean(1)  # a flip leaves squares alone
    variance = np.maximum(square[None] - mean**2, 1e-12 * square[None])
    return np.divide(mean, np.sqrt(variance / count), out=np.zeros_like(mean), where=variance > 0)
