"""A ranking: what a selector says of a pool, how sure it is, and how good it turned out."""

import dataclasses
import math
import statistics
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.uncertainty import NextMeasurement, Probability

LEVEL = 0.9  # of the intervals in tables and figures


class RankingMetrics(NamedTuple):
    """How good a ranking was, in percent; NaN where nothing is known."""

    pearson: float  # of scores and losses; of log N and losses for model_size
    relative_accuracy: float  # 100 where the best candidate was selected, 0 where the worst


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A selector's answer on a table."""

    selector: str  # its name
    budget_size: int  # examples, largest subset within the budget
    target_size: int  # examples
    scores: dict[str, float]  # as PearCorr takes them: a loss, or log N for model_size
    predicted: dict[str, float]  # loss at the target, nats per token; empty if none is predicted
    order: tuple[str, ...]  # candidates, best first; those without a usable fit last
    messages: dict[str, str]  # how each candidate's fit ended
    win_probability: Float[np.ndarray, "n n"]  # P(row beats column), rows in the table's order
    log_std: dict[str, float]  # of the log predicted losses, from the selector's own past
    advice: NextMeasurement | None  # what to measure next, when the first two overlap
    ledger: FlopsLedger  # what was spent, or what the selector would have spent
    fits: LawFits | None  # of the law behind the scores, rows in the table's order, if there is one
    seconds: float  # of the selector and of its backtest

    @property
    def flops(self) -> float:
        """Total of the ledger; NaN if a candidate's number of parameters is unknown."""
        return self.ledger.total

    @property
    def selected(self) -> str:
        """The candidate to fine-tune."""
        return self.order[0]

    def evaluate(self, losses: Mapping[str, float]) -> RankingMetrics:
        """Both metrics, given the measured loss of every candidate at the target size."""
        truth = np.array([losses[name] for name in self.scores])
        scores = np.array([*self.scores.values()])
        known = np.isfinite(scores)
        if not known.any():  # the first of an order without scores is no pick
            return RankingMetrics(math.nan, math.nan)
        try:
            pearson = pearson_correlation(scores[known], truth[known])
        except checks.UserError:  # too few, or all equal
            pearson = math.nan
        return RankingMetrics(pearson, relative_accuracy(losses[self.selected], truth))

    def interval(self, name: str, *, level: float = LEVEL) -> tuple[float, float]:
        """Range of the predicted loss of ``name`` relative to the other candidates'.

        A shift common to all candidates is left out: it changes no order.

        Raises:
            UserError: if the selector predicts no loss, or has no past to take its errors from.
        """
        if name not in self.log_std:
            raise checks.UserError(
                f"`name` must be a candidate with a known spread, got {name!r}: selector "
                f"{self.selector} has none here (four sizes above 0 are needed)"
            )
        half = statistics.NormalDist().inv_cdf(0.5 + 0.5 * level) * self.log_std[name]
        return self.predicted[name] * math.exp(-half), self.predicted[name] * math.exp(half)

    @property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 90% intervals that are known."""
        ends = {name: self.interval(name) for name in self.log_std}
        return {name: pair for name, pair in ends.items() if np.isfinite(pair).all()}

    def probability(self, first: str, second: str) -> float:
        """Probability that ``first`` has the lower loss at the target size."""
        names = list(self.scores)
        row, column = (names.index(checks.one_of("name", n, names)) for n in (first, second))
        return float(self.win_probability[row, column])

    def rows(self) -> list[dict[str, Any]]:
        """Place, candidate, score, interval, P(beats the next), P(the first beats it)."""
        rows = []
        for place, name in enumerate(self.order, start=1):
            row: dict[str, Any] = {"rank": place, "candidate": name, "score": self.scores[name]}
            if self.log_std:
                row["low_90"], row["high_90"] = self.intervals.get(name, (None, None))
            following = self.order[place] if place < len(self.order) else None
            row["p_beats_next"] = None if following is None else self._shown(name, following)
            row["p_first_beats_it"] = None if place == 1 else self._shown(self.selected, name)
            rows.append(row)
        return rows

    def _shown(self, first: str, second: str) -> Probability:
        """P(first beats second); where it is a share of pairs, their number limits it."""
        value = self.probability(first, second)
        if self.log_std:
            return Probability(value)
        count = len(self.order)
        return Probability(value, limit=Probability.limit_of(count * (count - 1) // 2))
