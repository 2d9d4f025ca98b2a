r"""Order of measuring: from the budget downwards, from small sizes upwards, or every size.

Downwards, each candidate by itself, is Algorithm 1 (:mod:`lensllm_jax.selection.halving`): the
budget first, then half of it, until the loss leaves the power phase.  Every candidate pays for
the budget, so that a pool costs between one and two times its fine-tunes there.

Upwards, the pool together, is successive halving (Jamieson and Talwalkar 2016, arXiv 1502.07943),
the sizes doubling and the candidates becoming fewer.  Once ``gamma`` losses of each are known, a
straight line of log L on log D through its last ``gamma`` predicts its loss at the target,

.. math:: \log\hat L(D_{target}) = a + b \log D_{target},

and of n candidates the best :math:`\max(\lfloor keep \cdot n \rfloor, 2)` go on; two always reach
the budget, where the law compares them.  A dropped candidate is never measured again.  The loss at
a small size itself is no ground to drop: curves cross.  ``keep`` = 3/4 is the smallest share of
those tried that never dropped the best of FLAN or Gigaword (benchmarks/LOG.md).

Example:
    >>> measure = lambda name, size: {"a": 9.0, "b": 10.0, "c": 12.0}[name] * size**-0.2
    >>> rule = Dropping(target_size=6400)
    >>> dropped = measure_upwards("abc", (200, 400, 800, 1600), measure, rule)
    >>> [(name, drop.size) for name, drop in dropped.items()]
    [('c', 800)]
    >>> measure_downwards((200, 400), lambda size: 9.0 * size**-0.2).sizes_spent
    (400, 200)
"""

import dataclasses
import enum
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lensllm_jax import checks, linalg
from lensllm_jax.selection.halving import Halving

MIN_KEPT = 2  # one candidate alone is no comparison


class Order(enum.StrEnum):
    """Which sizes of which candidates are measured, and when."""

    DOWNWARDS = "downwards"  # Algorithm 1: from the budget, until the power phase is left
    UPWARDS = "upwards"  # successive halving: from the smallest, hopeless candidates dropped
    ALL = "all"  # every size of every candidate


@dataclasses.dataclass(frozen=True)
class Drop:
    """Why a candidate was given up."""

    size: int  # the last that it was fine-tuned on, examples
    predicted: float  # its loss at the target by its line, nats per token
    cut: float  # the worst prediction of those that went on, nats per token


@dataclasses.dataclass(frozen=True)
class Dropping:
    """Who goes on to the next larger size."""

    target_size: int  # where candidates are compared, examples
    keep: float = 0.75  # share of the candidates that goes on
    gamma: int = 3  # losses that a line goes through

    def __post_init__(self):
        if not 0 < self.keep <= 1:
            raise checks.UserError(f"`keep` must be above 0 and at most 1, got {self.keep}")
        Halving(gamma=self.gamma)  # its own check: both fit a line
        checks.positive("target_size", self.target_size)

    def num_kept(self, num_candidates: int) -> int:
        """How many of ``num_candidates`` go on."""
        return min(num_candidates, max(math.floor(self.keep * num_candidates), MIN_KEPT))

    def predicted(self, losses: Mapping[int, float]) -> float:
        """The loss at the target by the line through the ``gamma`` largest sizes measured."""
        pairs = sorted(losses.items())[-self.gamma :]
        return linalg.extrapolate_power(pairs, self.target_size)

    def drops(self, losses: Mapping[str, Mapping[int, float]]) -> dict[str, Drop]:
        """Who is given up, of candidates that were measured up to the same size.

        Args:
            losses: candidate -> size -> loss, nats per token; ``gamma`` sizes or more each.

        Returns:
            Candidate -> why; the best predicted are not in it.
        """
        predicted = {name: self.predicted(row) for name, row in losses.items()}
        best_first = sorted(losses, key=predicted.__getitem__)  # stable: ties in the pool's order
        kept = self.num_kept(len(best_first))
        cut = predicted[best_first[kept - 1]]
        return {name: Drop(max(losses[name]), predicted[name], cut) for name in best_first[kept:]}


def measure_downwards(
    sizes: Iterable[int], measure: Callable[[int], float], *, gamma: int = 3, tau: float = 5.0
) -> Halving:
    """Algorithm 1 on one candidate; a size is measured only if it is asked for.

    Args:
        sizes: training examples, in any order.
        measure: size -> test loss, nats per token.
        gamma: pairs before the test begins.
        tau: residuals' standard deviations that a pair may be off.

    Returns:
        The search at its end.
    """
    search = Halving(gamma=gamma, tau=tau)
    for size in sorted(sizes, reverse=True):
        search = search.observe(size, measure(size))
        if search.stopped:
            break
    return search


def measure_upwards(
    names: Sequence[str], sizes: Iterable[int], measure: Callable[[str, int], float],
    rule: Dropping, *, on_drop: Callable[[str, Drop], None] | None = None,
) -> dict[str, Drop]:  # fmt: skip
    """Successive halving of a pool; a dropped candidate is never measured again.

    Args:
        names: the pool.
        sizes: training examples, in any order.
        measure: candidate, size -> test loss, nats per token.
        rule: who goes on.
        on_drop: told of each candidate that is given up.

    Returns:
        Candidate -> why it was dropped; the others were measured on every size.
    """
    ascending = sorted(sizes)
    # nobody can be dropped before: one candidate after the other is loaded once
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
