r"""Order of measuring: a race, from the budget downwards, from small sizes upwards, or all sizes.

A race (:mod:`lensllm_jax.selection.race`) spends where it changes the decision.

Downwards, each candidate by itself, is Algorithm 1 (:mod:`lensllm_jax.selection.halving`): the
budget first, then half of it, until the loss leaves the power phase.  Every candidate is
fine-tuned on the budget, so that a pool costs one to two times its fine-tunes there.

Upwards, the pool together, is successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943):
the sizes double while the candidates become fewer.  Once ``gamma`` losses of each are known, a
straight line of log L on log D through its last ``gamma`` predicts its loss at the target,

.. math:: \log\hat L(D_{target}) = a + b \log D_{target},

and of n candidates the best :math:`\max(\lfloor keep \cdot n \rfloor, 2)` continue; two always
reach the budget, where the law compares them.  A dropped candidate is never measured again.  The
loss at a small size itself is no reason to drop: curves cross.  ``keep`` = 3/4 is the smallest
share of those tried that never dropped the best of FLAN or Gigaword (benchmarks/LOG.md).

Example:
    >>> measure = lambda name, size: {"a": 9.0, "b": 10.0, "c": 12.0}[name] * size**-0.2
    >>> rule = DropRule(target_size=6400)
    >>> dropped = measure_upwards("abc", (200, 400, 800, 1600), measure, rule)
    >>> [(name, drop.size) for name, drop in dropped.items()]
    [('c', 800)]
    >>> measure_downwards((200, 400), lambda size: 9.0 * size**-0.2, Halving()).sizes_spent
    (400, 200)
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lensllm_jax import checks, linalg
from lensllm_jax.selection.halving import Halving, check_gamma

_MIN_KEPT = 2  # one candidate alone is no comparison


class Order(enum.StrEnum):
    """Which sizes of which candidates are measured, and when."""

    RACE = "race"  # the fine-tune that lowers expected regret most for its cost
    DOWNWARDS = "downwards"  # Algorithm 1: from the budget, until the power phase is left
    UPWARDS = "upwards"  # successive halving: from the smallest, the worst predicted dropped
    ALL = "all"  # every size of every candidate


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a candidate was dropped."""

    size: int  # the last that it was fine-tuned on, examples
    predicted: float  # its loss at the target by its line, nats per byte
    cut: float  # the worst prediction of those that continue, nats per byte


@dataclasses.dataclass(frozen=True)
class DropRule:
    """Which candidates continue to the next larger size."""

    target_size: int  # where candidates are compared, examples
    keep: float = 0.75  # share of the candidates that continues
    gamma: int = 3  # losses that a line goes through

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise checks.UserError(f"`keep` must be above 0 and at most 1, got {self.keep}")
        check_gamma(self.gamma)
        checks.positive("target_size", self.target_size)

    def num_kept(self, num_candidates: int) -> int:
        """How many of ``num_candidates`` continue."""
        return min(num_candidates, max(math.floor(self.keep * num_candidates), _MIN_KEPT))

    def predicted(self, losses: Mapping[int, float]) -> float:
        """The loss at the target by the line through the ``gamma`` largest sizes measured."""
        pairs = sorted(losses.items())[-self.gamma :]
        return linalg.extrapolate_power(pairs, self.target_size)

    def drops(self, losses: Mapping[str, Mapping[int, float]]) -> dict[str, Drop]:
        """The candidates that do not continue, and why.

        Args:
            losses: candidate -> size -> nats per byte; the same ``gamma`` or more sizes each.
        """
        predicted = {name: self.predicted(row) for name, row in losses.items()}
        best_first = sorted(losses, key=predicted.__getitem__)  # stable: ties in the pool's order
        num_kept = self.num_kept(len(best_first))
        cut = predicted[best_first[num_kept - 1]]
        return {
            name: Drop(max(losses[name]), predicted[name], cut) for name in best_first[num_kept:]
        }


def measure_downwards(
    sizes: Iterable[int], measure: Callable[[int], float], search: Halving
) -> Halving:
    """Algorithm 1 on one candidate, which measures no size beyond the stop.

    Args:
        sizes: training examples, in any order.
        measure: size -> test loss, nats per byte.
        search: its start, which holds gamma and tau.

    Returns:
        The search at its end.
    """
    for size in sorted(sizes, reverse=True):
        search = search.observe(size, measure(size))
        if search.stopped:
            break
    return search


def measure_upwards(
    names: Sequence[str], sizes: Iterable[int], measure: Callable[[str, int], float],
    rule: DropRule, *, on_drop: Callable[[str, Drop], None] | None = None,
) -> dict[str, Drop]:  # fmt: skip
    """Successive halving of a pool; a dropped candidate is never measured again.

    Args:
        names: the pool.
        sizes: training examples, in any order.
        measure: candidate, size -> test loss, nats per byte.
        rule: which candidates continue.
        on_drop: called with each candidate that is dropped.

    Returns:
        Candidate -> why it was dropped; the others were measured on every size.
    """
    ascending = sorted(sizes)
    # none can be dropped before: by candidate, so that each is loaded once
    losses = {
        name: {size: measure(name, size) for size in ascending[: rule.gamma]} for name in names
    }
    dropped: dict[str, Drop] = {}
    for size in ascending[rule.gamma :]:
        for name, drop in rule.drops(losses).items():
            dropped[name] = drop
            del losses[name]
            if on_drop is not None:
                on_drop(name, drop)
        for name, row in losses.items():
            row[size] = measure(name, size)
    return dropped
