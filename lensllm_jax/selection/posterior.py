r"""How sure a ranking is: the joint distribution of all candidates' losses at the target.

Given the evidence, log losses are a multivariate Student t with one scale for the whole pool,

.. math:: \log L_i = \mu_i + \sigma_i \epsilon_i \sqrt{\nu / \chi^2_\nu}, \qquad
    P(A \text{ beats } B) = T_\nu\big((\mu_B - \mu_A) / \sqrt{\sigma_A^2 + \sigma_B^2}\big),

normal for :math:`\nu = \infty`.  A shift that is common to all candidates changes no order and is
left out; so is, of everything but intervals, an uncertain factor common to all distances.  Draws
give what no formula does: P(best), and the expected regret of picking i,
:math:`E[\log L_i - \min_j \log L_j]`, about the share by which its loss exceeds the best one's.
The regret is lowest where :math:`\mu_i` is.

Scores that predict no loss have a :class:`Concordance`: the share of pairs in right order.

Example:
    >>> posterior = Posterior(np.log([1.0, 1.02, 1.5]), np.array([0.02, 0.02, 0.1]))
    >>> float(posterior.beats(0, 1).round(3))
    0.758
    >>> odds = posterior.odds()
    >>> odds.probability_best.round(2), odds.expected_regret.round(3)
    (array([0.76, 0.24, 0.  ]), array([0.004, 0.024, 0.41 ]))
    >>> posterior.rank_intervals()
    array([[1, 2],
           [1, 2],
           [3, 3]])
"""

import dataclasses
import math
import statistics
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from scipy import special

_NUM_DRAWS = 4096
_VALUES_AT_ONCE = 2**21  # draws x candidates, 16 MiB
_SEED = 0

_Index = int | np.ndarray


class Odds(NamedTuple):
    """What draws say of picking each candidate; NaN where nothing is predicted."""

    probability_best: Float[np.ndarray, " num_candidates"]  # the known ones sum to one
    expected_regret: Float[np.ndarray, " num_candidates"]  # of its log loss


@dataclasses.dataclass(frozen=True, eq=False)
class Posterior:
    """Predictive distribution of log losses; NaN centers are candidates without a prediction."""

    center: Float[np.ndarray, " num_candidates"]  # log loss, nats per byte
    log_std: Float[np.ndarray, " num_candidates"]  # scale of the log loss
    dof: float = math.inf  # degrees of freedom
    # of the log loss, by a factor common to the distances of all candidates: it changes no order
    distance_std: Float[np.ndarray, " num_candidates"] | float = 0.0

    @property
    def interval_std(self) -> Float[np.ndarray, " num_candidates"]:
        """Scale of the log loss within the pool, the distances' common factor included."""
        return np.hypot(self.log_std, self.distance_std)

    def beats(self, first: _Index, second: _Index) -> np.ndarray:
        """P(the loss of ``first`` is lower than that of ``second``), by index."""
        gap = self.center[second] - self.center[first]
        spread = np.sqrt(self.log_std[first] ** 2 + self.log_std[second] ** 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(np.equal(gap, 0.0), 0.0, gap / spread)
        return cdf(z, self.dof)

    def quantile(self, share: float) -> float:
        """Of a standardized log loss."""
        if math.isinf(self.dof):
            return statistics.NormalDist().inv_cdf(share)
        return float(special.stdtrit(self.dof, share))

    def interval(self, index: int, *, level: float) -> tuple[float, float]:
        """Range of a candidate's loss, relative to the other candidates'."""
        half = self.quantile(0.5 + 0.5 * level) * float(self.interval_std[index])
        loss = math.exp(self.center[index])
        return loss * math.exp(-half), loss * math.exp(half)

    @cached_property
    def _known(self) -> Int[np.ndarray, " num_known"]:
        return np.flatnonzero(np.isfinite(self.center) & np.isfinite(self.log_std))

    def _draws(self, num_draws: int) -> Iterator[Float[np.ndarray, "chunk num_known"]]:
        """Log losses of the candidates with a prediction, the same in every call."""
        rng, known = np.random.default_rng(_SEED), self._known
        step = max(_VALUES_AT_ONCE // max(len(known), 1), 1)
        for start in range(0, num_draws, step):
            count = min(step, num_draws - start)
            draws = rng.standard_normal((count, len(known)))
            if math.isfinite(self.dof):
                draws *= np.sqrt(self.dof / rng.chisquare(self.dof, (count, 1)))
            yield self.center[known] + self.log_std[known] * draws

    def odds(self, *, num_draws: int = _NUM_DRAWS) -> Odds:
        """P(best) and expected regret of every candidate; NaN without a prediction."""
        best, regret = np.full((2, len(self.center)), np.nan)
        known = self._known
        if not len(known):
            return Odds(best, regret)
        best[known] = 0.0
        leader, excess = int(np.argmin(self.center[known])), 0.0
        for draws in self._draws(num_draws):
            best[known] += np.bincount(draws.argmin(1), minlength=len(known))
            excess += float((draws[:, leader] - draws.min(1)).sum())
        # the leader's regret from draws, the others' exactly that much above it
        regret[known] = self.center[known] - self.center[known][leader] + excess / num_draws
        return Odds(best / num_draws, regret)

    def rank_intervals(
        self, *, level: float = 0.9, num_draws: int = 1024
    ) -> Int[np.ndarray, "num_candidates 2"]:
        """Range of each candidate's place, 1 the best; without a prediction, the last place."""
        known, count = self._known, len(self.center)
        ends = np.full((count, 2), count)
        if len(known):
            shares = (0.5 - 0.5 * level, 0.5 + 0.5 * level)
            places = np.concatenate([d.argsort(1).argsort(1) for d in self._draws(num_draws)])
            ends[known] = 1 + np.quantile(places, shares, axis=0, method="nearest").T
        return ends


@dataclasses.dataclass(frozen=True, eq=False)
class Concordance:
    """Scores that predict no loss, and how often a pair of them is in right order."""

    values: Float[np.ndarray, " num_candidates"]  # the lower, the better
    share: float  # of pairs; NaN if nothing is known

    def beats(self, first: _Index, second: _Index) -> np.ndarray:
        """P(the loss of ``first`` is lower than that of ``second``), by index."""
        one, other = self.values[first], self.values[second]
        wins = np.where(one < other, self.share, 1.0 - self.share)
        return np.where(one == other, 0.5, wins)


def cdf(z: np.ndarray | float, dof: float) -> np.ndarray:
    """P(a standard Student t variable is below z); normal for infinite ``dof``."""
    if math.isinf(dof):
        erf = np.vectorize(math.erf, otypes=[float])(np.asarray(z) / math.sqrt(2.0))
        return np.asarray(0.5 * (1.0 + erf))
    return np.asarray(special.stdtr(dof, z))
