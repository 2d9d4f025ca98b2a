"""A ranking: what a selector says of a pool, how sure it is, and how good it turned out."""

import dataclasses
import math
from collections.abc import Mapping
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.posterior import Concordance, Odds, Posterior
from lensllm_jax.selection.uncertainty import NextMeasurement, Probability

LEVEL = 0.9  # of the intervals in tables and figures


class RankingMetrics(NamedTuple):
    """How good a ranking was, in percent; NaN where nothing is known."""

    pearson: float  # of scores and losses; of log N and losses for model_size
    relative_accuracy: float  # 100 where the best candidate was selected, 0 where the worst


@dataclasses.dataclass(frozen=True, repr=False)
class Ranking:
    """A selector's answer on a table."""

    selector: str  # its name
    budget_size: int  # examples, largest subset within the budget
    target_size: int  # examples
    scores: dict[str, float]  # as PearCorr takes them: a loss, or log N for model_size
    predicted: dict[str, float]  # loss at the target, nats per byte; empty if none is predicted
    order: tuple[str, ...]  # candidates, best first; those without a usable fit last
    messages: dict[str, str]  # how each candidate's fit ended
    confidence: Posterior | Concordance  # in the table's order
    advice: NextMeasurement | None  # what to measure next, when the first two overlap
    ledger: FlopsLedger  # what was spent, or what the selector would have spent
    fits: LawFits | None  # of the law behind the scores, rows in the table's order, if there is one
    seconds: float  # of the selector and of its backtest

    def __repr__(self) -> str:
        sizes = f"from {self.budget_size:,} to {self.target_size:,} examples"
        first = ", ".join(self.order[:3]) + (", ..." if len(self.order) > 3 else "")
        return f"<Ranking by {self.selector} {sizes}: {first}>"

    @property
    def flops(self) -> float:
        """Total of the ledger; NaN if a candidate's number of parameters is unknown."""
        return self.ledger.total

    @property
    def has_scores(self) -> bool:
        """Whether any candidate has a score: those without a usable fit come last."""
        return math.isfinite(self.scores[self.order[0]])

    @property
    def selected(self) -> str:
        """The candidate to fine-tune.

        Raises:
            UserError: if no candidate has a score, which leaves nothing but the order of names.
        """
        first = self.order[0]
        if not self.has_scores:
            raise checks.UserError(
                f"`selector` must score a candidate to select one, got {self.selector}, which has "
                f"no score here ({first}: {self.messages[first]})"
            )
        return first

    def by(self, posterior: Posterior) -> "Ranking":
        """The same candidates by another posterior of their losses, in the table's order."""
        losses = self._by_name(np.exp(posterior.center))
        order = tuple(sorted(losses, key=lambda name: (math.isnan(losses[name]), losses[name])))
        return dataclasses.replace(
            self, scores=losses, predicted=losses, order=order, confidence=posterior
        )

    def evaluate(self, losses: Mapping[str, float]) -> RankingMetrics:
        """Both metrics, given the measured loss of every candidate at the target size."""
        truth = np.array([losses[name] for name in self.scores])
        if not self.has_scores:
            return RankingMetrics(math.nan, math.nan)
        scores = np.array([*self.scores.values()])
        known = np.isfinite(scores)
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
        self._check_spread(name, level)
        assert isinstance(self.confidence, Posterior)
        return self.confidence.interval(self._row_of(name), level=level)

    def _check_spread(self, name: str, level: float) -> None:
        if not 0.0 < level < 1.0:
            raise checks.UserError(f"`level` must be between 0 and 1, got {level}")
        if name not in self.log_std:
            raise checks.UserError(
                f"`name` must be a candidate with a known spread, got {name!r}: selector "
                f"{self.selector} has none here (four sizes above 0 are needed)"
            )

    @cached_property
    def intervals(self) -> dict[str, tuple[float, float]]:
        """The 90% intervals that are known."""
        ends = {name: self.interval(name) for name in self.log_std}
        return {name: pair for name, pair in ends.items() if np.isfinite(pair).all()}

    def probability(self, first: str, second: str) -> float:
        """Probability that ``first`` has the lower loss at the target size."""
        return float(self.confidence.beats(self._row_of(first), self._row_of(second)))

    @cached_property
    def win_probability(self) -> Float[np.ndarray, "n n"]:
        """P(row beats column), in the table's order."""
        rows = np.arange(len(self.scores))
        return self.confidence.beats(rows[:, None], rows[None])

    @cached_property
    def probability_best(self) -> dict[str, float]:
        """P(lowest loss of the pool at the target size); empty if no losses are predicted."""
        return self._by_name(self._odds.probability_best) if self._odds else {}

    @cached_property
    def expected_regret(self) -> dict[str, float]:
        """Expected log loss above the pool's lowest, were this candidate picked.

        0.01 means a loss about 1 % above the best one; empty if no losses are predicted.
        """
        return self._by_name(self._odds.expected_regret) if self._odds else {}

    def rank_interval(self, name: str, *, level: float = LEVEL) -> tuple[int, int]:
        """Range of the place of ``name`` by true loss, 1 the best.

        Raises:
            UserError: if the selector predicts no loss, or has no past to take its errors from.
        """
        self._check_spread(name, level)
        assert isinstance(self.confidence, Posterior)
        low, high = self.confidence.rank_intervals(level=level)[self._row_of(name)]
        return int(low), int(high)

    @cached_property
    def _odds(self) -> Odds | None:
        return self.confidence.odds() if isinstance(self.confidence, Posterior) else None

    @cached_property
    def log_std(self) -> dict[str, float]:
        """Scale of the log predicted losses; empty if not known."""
        if not isinstance(self.confidence, Posterior):
            return {}
        return self._by_name(self.confidence.log_std)

    def _by_name(self, values: Float[np.ndarray, " n"]) -> dict[str, float]:
        return dict(zip(self.scores, map(float, values), strict=True))

    @cached_property
    def _rows(self) -> dict[str, int]:
        return {name: row for row, name in enumerate(self.scores)}

    def _row_of(self, name: str) -> int:
        return self._rows[checks.one_of("name", name, self._rows)]

    def rows(self) -> list[dict[str, Any]]:
        """Place, candidate, score, interval, P(beats the next), P(the first beats it)."""
        rows = []
        for place, name in enumerate(self.order, start=1):
            row: dict[str, Any] = {"rank": place, "candidate": name, "score": self.scores[name]}
            if self.log_std:
                row["low_90"], row["high_90"] = self.intervals.get(name, (None, None))
            following = self.order[place] if place < len(self.order) else None
            row["p_beats_next"] = None if following is None else self._shown(name, following)
            row["p_first_beats_it"] = None if place == 1 else self._shown(self.order[0], name)
            rows.append(row)
        return rows

    def _shown(self, first: str, second: str) -> Probability | None:
        """P(first beats second), if known; where it is a share of pairs, their number limits it."""
        value = self.probability(first, second)
        if math.isnan(value):
            return None
        if self.log_std:
            return Probability(value)
        count = len(self.order)
        return Probability(value, limit=Probability.limit_of(count * (count - 1) // 2))
