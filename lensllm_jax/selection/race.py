r"""A race: fine-tunes candidates on ever larger subsets, and spends where it changes the decision.

All candidates run the first sizes together.  After each step the posterior
(:mod:`lensllm_jax.selection.selectors.posterior`) gives every candidate's log loss at the target,
:math:`\log L_i \sim (\mu_i, \sigma_i)`, and

* a candidate is dropped for good when :math:`P(i \text{ is best}) < \epsilon =
  \min(0.002, (1 - confidence) / n)` of n candidates; it keeps its evidence;
* the next fine-tune is the one that lowers the expected regret most for its cost.  On a size that
  leaves h of the H octaves from a candidate's largest size to the target, a fine-tune takes the
  share :math:`1 - (h/H)^3` off its variance (slopes walk), and moves its mean by
  :math:`s_i = \sigma_i \sqrt{1 - (h/H)^3}` standard deviations of a normal variable: with
  :math:`\mu_*` the lowest mean of the others, expected regret falls by

.. math:: v_i = s_i\,\big(\phi(z) - z\,\Phi(-z)\big), \qquad z = |\mu_i - \mu_*| / s_i;

  the largest v for its cost among all sizes within the budget names the candidate, which runs the
  first size on the way there.

Candidates that run on show what the task does to all: predictions made at a size move together.
One that stopped there takes over the mean move, since that size, of the k that ran further, times
k / (k + 1): they were not chosen at random.

It stops when the leader is best with the asked confidence, when the best fine-tune is not worth its
cost, or at the budget.  Costs are parameters times examples, a search of the rate included, as a
share of fine-tuning every candidate on the target size.

A state is immutable and depends on the losses alone: the same losses give the same race.

Example:
    >>> rule = RaceRule(target_size=6400, sizes=(100, 200, 400, 800, 1600, 3200), max_cost=0.5)
    >>> race = Race.start(("flat", "steep"), (1e6, 1e6), rule)
    >>> exponent = {"flat": 0.1, "steep": 0.2}
    >>> def measure(moves):
    ...     for move in moves:
    ...         loss = 9.0 * float(move.size) ** -exponent[move.candidate]
    ...         yield Outcome(move.candidate, move.size, loss)
    >>> *_, race = run(race, measure)
    >>> race.leader, race.stop.reason.value, race.cost < 0.2
    ('steep', 'confidence', True)
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from scipy import special

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, cost_shares
from lensllm_jax.selection.posterior import Odds, Posterior
from lensllm_jax.selection.problem import Evidence, Problem
from lensllm_jax.selection.selectors import posterior as posterior_selector
from lensllm_jax.selection.uncertainty import Probability

_MOST_EPSILON = 0.002  # of P(best): a drop is final
_DROP_WIDTH = 1.5  # times the posterior's scale: what a final decision allows for its errors
_OPENING_SHARE = 4.0  # of the budget, one part goes to sizes that all candidates run
_OPENING_SIZES = 2  # at least: two sizes give a slope
_SPREAD_POWER = 3  # of octaves: the variance of an integrated random walk
_ROUNDING = 1e-12  # of costs
_LEAST_VALUE = 5e-5  # of a fine-tune that is advised, log loss: what is shown as 0.01 %
_NUM_DRAWS = 2**14  # of odds that a drop depends on

_Rows = Float[np.ndarray, " num_candidates"]

OPENING = "one of the first sizes, which all candidates run"  # reason of a fine-tune


class StopReason(enum.StrEnum):
    """Why a race ended."""

    CONFIDENCE = "confidence"  # the leader is best with the asked probability
    WORTH = "worth"  # no fine-tune lowers the expected regret by what it costs
    BUDGET = "budget"  # none that is left can be paid
    FINISHED = "finished"  # everybody who was not dropped ran the largest size


class Stop(NamedTuple):
    """The end of a race."""

    reason: StopReason
    text: str  # one sentence


class Move(NamedTuple):
    """A fine-tune that the race asks for."""

    candidate: str
    size: int  # examples
    cost: float  # share of fine-tuning every candidate on the target size
    reason: str  # one sentence


class Outcome(NamedTuple):
    """What became of a fine-tune."""

    candidate: str
    size: int  # examples
    loss: float | None  # test loss; None if it failed
    reason: str = ""  # of the failure
    seconds: float = 0.0  # that it took
    num_searched: int = 0  # examples trained on in the search of its rate


class Dropped(NamedTuple):
    """When a candidate was dropped."""

    size: int  # the largest that it was fine-tuned on, examples
    probability_best: float  # at that time, with the wider scale of drops
    leader: str  # at that time


@dataclasses.dataclass(frozen=True)
class RaceRule:
    """What a race may spend, and when it is over."""

    target_size: int  # where candidates are compared, examples
    sizes: tuple[int, ...]  # that may be fine-tuned on, ascending, examples
    confidence: float = 0.95  # of P(best) at which it stops; 1: never
    max_cost: float = 0.1  # share of fine-tuning every candidate on the target size
    worth: float = 0.0  # log loss that fine-tuning every candidate on the target size is worth
    max_seconds: float = math.inf  # of fine-tuning
    num_searched: int = 0  # examples that the search of each rate trains on, as expected

    def __post_init__(self):
        checks.positive("target_size", self.target_size)
        checks.not_negative("num_searched", self.num_searched)
        if not self.sizes or list(self.sizes) != sorted({*self.sizes}) or self.sizes[0] <= 0:
            raise checks.UserError(
                f"`sizes` must be one or more, ascending from above 0, got {self.sizes}"
            )
        if self.sizes[-1] > self.target_size:
            raise checks.UserError(
                f"`target_size` must be at least the largest of `sizes` {self.sizes[-1]}, "
                f"got {self.target_size}"
            )
        if not 0.5 < self.confidence <= 1.0:
            raise checks.UserError(
                f"`confidence` must be above 0.5 and at most 1, got {self.confidence}"
            )
        checks.positive("max_cost", self.max_cost)
        if not self.max_seconds > 0:
            raise checks.UserError(f"`max_seconds` must be positive, got {self.max_seconds}")
        if not self.worth >= 0.0:
            raise checks.UserError(f"`worth` must be zero or more, got {self.worth}")


@dataclasses.dataclass(frozen=True, eq=False)
class Race:
    """The state of a race; every method that changes it returns the next one."""

    names: tuple[str, ...]
    num_params: tuple[float, ...]  # all count the same if one is NaN
    rule: RaceRule
    losses: Mapping[str, Mapping[int, float]]  # candidate -> size -> test loss; 0: zero-shot
    dropped: Mapping[str, Dropped] = dataclasses.field(default_factory=dict)
    failed: Mapping[str, str] = dataclasses.field(
        default_factory=dict
    )  # candidate -> reason: it runs no further
    seconds: float = 0.0  # of fine-tuning so far
    searched: Mapping[str, int] = dataclasses.field(default_factory=dict)  # candidate -> examples
    covariance_of: Callable[[LossTable], Float[np.ndarray, "s c c"]] | None = dataclasses.field(
        default=None, repr=False
    )  # of a table's test losses, see ``Evidence.loss_covariance``
    _centers: dict[bytes, _Rows] = dataclasses.field(default_factory=dict, repr=False)  # computed

    @classmethod
    def start(
        cls,
        names: Sequence[str],
        num_params: Sequence[float],
        rule: RaceRule,
        *,
        zero_shot: Mapping[str, float] | None = None,
        covariance_of: Callable[[LossTable], Float[np.ndarray, "s c c"]] | None = None,
    ) -> "Race":
        """Before the first fine-tune.

        Args:
            names: of the candidates, two or more.
            num_params: of each.
            rule: of the race.
            zero_shot: candidate -> loss before fine-tuning, as evidence.
            covariance_of: a table's test losses -> their covariance over the test records.

        Raises:
            UserError: if there is nothing to compare, or no first size within the budget.
        """
        if len(names) < 2:
            raise checks.UserError(f"`names` must be two candidates or more, got {len(names)}")
        race = cls(
            tuple(names),
            tuple(map(float, num_params)),
            rule,
            {name: {0: zero_shot[name]} if zero_shot else {} for name in names},
            covariance_of=covariance_of,
        )
        first = sum(race._cost_of_next(name, rule.sizes[0]) for name in names)
        if first > rule.max_cost:
            search, advice = "", "begin with a smaller size"
            if rule.num_searched:
                search = f" and the search of its rate on {rule.num_searched}"
                advice = "give `learning_rate`"
            raise checks.UserError(
                f"`max_cost` must pay for {rule.sizes[0]} examples of every candidate{search}, "
                f"{first:.3g} of tuning all on {rule.target_size}, got {rule.max_cost:g}: raise it "
                f"or {advice}"
            )
        return race

    def cost_of(self, name: str, num_examples: int) -> float:
        """Of training on them, as a share of fine-tuning every candidate on the target size."""
        return self._shares[name] * num_examples / self.rule.target_size

    def _cost_of_next(self, name: str, size: int) -> float:
        """Of a fine-tune that may be made next: a candidate's first one searches its rate."""
        searched = 0 if self.largest[name] else self.rule.num_searched
        return self.cost_of(name, size + searched)

    @cached_property
    def _shares(self) -> dict[str, float]:
        shares = cost_shares(np.array(self.num_params, np.float64))
        return dict(zip(self.names, shares, strict=True))

    @cached_property
    def cost(self) -> float:
        """Spent so far, as a share of fine-tuning every candidate on the target size."""
        return math.fsum(cost for name in self.names for cost in self._spendings(name))

    def spent_on(self, name: str) -> float:
        """The part of ``cost`` that went to a candidate, the search of its rate included."""
        return math.fsum(self._spendings(name))

    def _spendings(self, name: str) -> Iterator[float]:
        for num_examples in (*self.losses[name], self.searched.get(name, 0)):
            yield self.cost_of(name, num_examples)

    @cached_property
    def largest(self) -> dict[str, int]:
        """Candidate -> largest size that it was fine-tuned on; 0 if on none."""
        return {name: max(self.losses[name], default=0) for name in self.names}

    @cached_property
    def running(self) -> tuple[str, ...]:
        """Candidates that were not dropped and have not failed."""
        return tuple(n for n in self.names if n not in self.dropped and n not in self.failed)

    @cached_property
    def table(self) -> LossTable:
        """The losses measured so far."""
        sizes = sorted({size for row in self.losses.values() for size in row})
        rows = [[self.losses[name].get(size, np.nan) for size in sizes] for name in self.names]
        count = len(self.names)
        return LossTable(
            self.names, np.array(sizes), np.array(rows), np.array(self.num_params), ("",) * count
        )

    @cached_property
    def posterior(self) -> Posterior:
        """Of the losses at the target, in the order of ``names``, shifts since taken over."""
        whole = self._posterior_of(self.table)
        largest = np.array([self.largest[name] for name in self.names])
        center = whole.center.copy()
        for size in sorted({*largest[largest > 0].tolist()}, reverse=True)[1:]:
            then = self._center_at(self.table.up_to(size))
            further, here = (largest > size) & ~self.table.is_diverged, largest == size
            moved = (center - then)[further]
            center[here] = then[here] + moved.sum() / (len(moved) + 1.0)
        return dataclasses.replace(whole, center=center)

    def _center_at(self, table: LossTable) -> _Rows:
        """Of the posterior; most tables of one state are those of the state before."""
        key = table.sizes.tobytes() + table.losses.tobytes()
        if key not in self._centers:
            self._centers[key] = self._posterior_of(table).center
        return self._centers[key]

    def _posterior_of(self, table: LossTable) -> Posterior:
        covariance = None if self.covariance_of is None else self.covariance_of(table)
        evidence = Evidence(loss_covariance=covariance)
        problem = Problem(table, self.rule.target_size, evidence=evidence)
        confidence = posterior_selector.score(problem).confidence
        assert isinstance(confidence, Posterior)
        return confidence

    @cached_property
    def odds(self) -> Odds:
        """P(best) and expected regret, in the order of ``names``."""
        return self.posterior.odds()

    @cached_property
    def leader(self) -> str:
        """The candidate of the lowest expected regret."""
        return self.names[int(np.nanargmin(self.posterior.center))]

    @property
    def probability(self) -> float:
        """P(the leader is best)."""
        return float(self.odds.probability_best[self.names.index(self.leader)])

    @property
    def epsilon(self) -> float:
        """P(best) below which a candidate is dropped."""
        return min(_MOST_EPSILON, (1.0 - self.rule.confidence) / len(self.names))

    def observe(self, outcome: Outcome) -> "Race":
        """With one more loss, or without further fine-tunes of a candidate that failed.

        A candidate that failed keeps its evidence.

        Raises:
            UserError: if the loss is not positive and finite, or the size is not above the last.
        """
        name, size, loss = outcome.candidate, outcome.size, outcome.loss
        checks.one_of("name", name, self.names)
        seconds = self.seconds + outcome.seconds
        if loss is None:
            failed = {**self.failed, name: outcome.reason}
            return dataclasses.replace(self, failed=failed, seconds=seconds)
        if not (math.isfinite(loss) and loss > 0):
            raise checks.UserError(f"`loss` must be positive and finite, got {loss}")
        if size <= self.largest[name]:
            raise checks.UserError(
                f"`size` must be above the last one {self.largest[name]}, got {size}"
            )
        losses = {**self.losses, name: {**self.losses[name], size: float(loss)}}
        searched = self.searched
        if outcome.num_searched:
            searched = {**searched, name: outcome.num_searched}
        return dataclasses.replace(self, losses=losses, seconds=seconds, searched=searched)

    def with_drops(self) -> "Race":
        """Without those that cannot be best any more."""
        if self._next_opening is not None or len(self.running) < 2:
            return self
        wide = dataclasses.replace(self.posterior, log_std=_DROP_WIDTH * self.posterior.log_std)
        chances = wide.odds(num_draws=_NUM_DRAWS).probability_best
        out = {
            name: Dropped(self.largest[name], float(chances[i]), self.leader)
            for i, name in enumerate(self.names)
            if name in self.running and name != self.leader and chances[i] < self.epsilon
        }
        return dataclasses.replace(self, dropped={**self.dropped, **out}) if out else self

    def moves(self, count: int = 1) -> tuple[Move, ...]:
        """The next fine-tunes; none if the race is over.

        Args:
            count: of different candidates, at most, once the first sizes are done.
        """
        size = self._next_opening
        if size is not None:
            return tuple(
                Move(name, size, self._cost_of_next(name, size), OPENING)
                for name in self.running
                if size > self.largest[name]
            )
        return () if self.stop else self._most_valuable(count)

    @cached_property
    def stop(self) -> Stop | None:
        """Why the race is over, if it is."""
        if self._next_opening is not None:
            return None
        rule, chance = self.rule, self.probability
        if chance >= rule.confidence < 1.0:
            shown = Probability(chance).relation
            text = f"{self.leader} is best with P {shown}, of {rule.confidence:g} asked"
            return Stop(StopReason.CONFIDENCE, text)
        going = [name for name in self.running if self._ahead(name)]
        if not going or self.running == (self.leader,):
            return Stop(StopReason.FINISHED, "no other candidate that could be best is left to run")
        if not self._options:
            return Stop(StopReason.BUDGET, "the next fine-tune would cost more than is left")
        best = self._options[0]
        if best.value < rule.worth * best.cost:
            text = (
                f"the best fine-tune would lower the expected regret by {best.value:.2%} for "
                f"{best.cost:.2%} of tuning all, less than its worth"
            )
            return Stop(StopReason.WORTH, text)
        return None

    @property
    def suggestion(self) -> Move | None:
        """The next fine-tune if there were more to spend; None where none would change a thing."""
        options = [one for one in (self._option(name, math.inf) for name in self.running) if one]
        best = max(options, key=lambda one: one.rate, default=None)
        if best is None or best.value < _LEAST_VALUE:
            return None
        return Move(best.name, best.size, best.cost, str(best))

    @cached_property
    def _opening(self) -> tuple[int, ...]:
        """The sizes that all candidates run."""
        sizes, costs = self.rule.sizes, np.cumsum(self.rule.sizes) / self.rule.target_size
        max_cost = self.rule.max_cost - self.rule.num_searched / self.rule.target_size
        share = int((costs <= max_cost / _OPENING_SHARE).sum())
        paid = int((costs <= max_cost).sum())
        return sizes[: min(max(share, _OPENING_SIZES), max(paid, 1))]

    @cached_property
    def _next_opening(self) -> int | None:
        """The first of the opening sizes that is not done; None if the opening is over."""
        for size in self._opening:
            late = [name for name in self.running if self.largest[name] < size]
            cost = math.fsum(self._cost_of_next(name, size) for name in late)
            if late:
                return size if size == self._opening[0] or cost <= self._left else None
        return None

    def _ahead(self, name: str) -> tuple[int, ...]:
        """The sizes that a candidate has not reached."""
        return tuple(size for size in self.rule.sizes if size > self.largest[name])

    @property
    def _left(self) -> float:
        """What may still be spent, as a share of tuning all; seconds at the pace so far."""
        left = self.rule.max_cost - self.cost
        if self.seconds > 0 and math.isfinite(self.rule.max_seconds):
            left = min(left, (self.rule.max_seconds - self.seconds) * self.cost / self.seconds)
        return left + _ROUNDING

    @cached_property
    def _options(self) -> tuple["_Option", ...]:
        """What each running candidate could run next, the most valuable for its cost first."""
        found = (self._option(name, self._left) for name in self.running)
        return tuple(sorted((one for one in found if one), key=lambda one: -one.rate))

    def _option(self, name: str, left: float) -> "_Option | None":
        """The size ahead that lowers the expected regret most for the cost of the way there."""
        i, best, cost = self.names.index(name), None, 0.0
        center, scale = self.posterior.center, self.posterior.log_std
        rivals = np.delete(center, i)
        if np.isnan(rivals).all():  # they all failed before any loss
            return None
        others = float(np.nanmin(rivals))
        octaves = math.log2(self.rule.target_size / max(self.largest[name], 1))
        for size in self._ahead(name):
            cost += self.cost_of(name, size)
            if cost > left:
                break
            share = math.log2(self.rule.target_size / size) / octaves
            moved = float(scale[i]) * math.sqrt(1.0 - share**_SPREAD_POWER)
            value = _fall(abs(float(center[i]) - others), moved)
            if best is None or value / cost > best.rate:
                best = _Option(name, size, cost, value)
        return best

    def _most_valuable(self, count: int) -> tuple[Move, ...]:
        moves: list[Move] = []
        spent = 0.0
        for option in self._options[:count]:
            size = self._ahead(option.name)[0]
            cost = self.cost_of(option.name, size)
            if spent + cost <= self._left:
                spent += cost
                moves.append(Move(option.name, size, cost, str(option)))
        return tuple(moves)


Measure = Callable[[Sequence[Move]], Iterable[Outcome]]


def run(race: Race, measure: Measure, *, count: int = 1) -> Iterator[Race]:
    """Runs a race to its end.

    Args:
        race: at its start.
        measure: fine-tunes; of a candidate that fails, none that follows in the same call.
        count: fine-tunes at a time, at most, once the first sizes are done.

    Yields:
        The state after each step, of one fine-tune or several at a time; the last one has a stop.

    Raises:
        UserError: if every candidate's first fine-tune fails.
    """
    while moves := race.moves(count):
        for outcome in measure(moves):
            race = race.observe(outcome)
        if not any(race.largest.values()):
            name, reason = next(iter(race.failed.items()))
            raise checks.UserError(
                f"`candidates` must have one that can be fine-tuned, got none: {name}: {reason}"
            )
        race = race.with_drops()
        yield race


def replay(table: LossTable, rule: RaceRule) -> Iterator[Race]:
    """The states of a race on losses that are known.

    Args:
        table: of the rule's sizes; an empty cell is a fine-tune that fails.
        rule: of the race.
    """
    column, row = ({key: i for i, key in enumerate(of)} for of in (table.sizes, table.names))

    def measure(moves: Sequence[Move]) -> Iterator[Outcome]:
        missing = set()
        for name, size, *_ in moves:
            loss = float(table.losses[row[name], column[size]])
            if math.isnan(loss) and name not in missing:
                missing.add(name)
                yield Outcome(name, size, None, f"no loss at {size}")
            elif name not in missing:
                yield Outcome(name, size, loss)

    zero_shot = (
        table.by_name(0) if 0 in table.sizes and not np.isnan(table.losses[:, 0]).any() else None
    )
    start = Race.start(table.names, table.num_params.tolist(), rule, zero_shot=zero_shot)
    yield from run(start, measure)


class _Option(NamedTuple):
    """A size that a candidate could reach."""

    name: str
    size: int  # examples
    cost: float  # of all sizes up to it
    value: float  # by how much the expected regret falls, log loss

    @property
    def rate(self) -> float:
        return self.value / self.cost

    def __str__(self) -> str:
        return (
            f"{self.size} examples would lower the expected regret by {self.value:.2%} for "
            f"{self.cost:.2%} of tuning all"
        )


def _fall(gap: float, moved: float) -> float:
    """E[min(0, gap + moved Z)] below min(0, gap), Z normal: what a choice gains by knowing."""
    if moved <= 0.0:
        return 0.0
    z = gap / moved
    density = math.exp(-0.5 * z * z) / math.sqrt(2.0 * math.pi)
    return moved * (density - z * float(special.ndtr(-z)))
