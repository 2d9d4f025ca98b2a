r"""Cost of an order of measuring: what was spent, what another order would have asked for.

The order that was run is measured: its FLOPs are those of the ledger.  Any other is counted: its
decisions are replayed on the losses that were measured, and each of its fine-tunes costs what it
cost, or, if it was not made, :math:`6N` times the tokens that its size means by the nearest size of
the same candidate that was measured.  Where a decision hangs on a loss that nobody measured, the
cost is known between two ends: the cheapest and the dearest way in which it can go.

Full tuning, what all this is to save, fine-tunes every candidate once on ``target_size`` examples.

Example:
    >>> losses = {"a": {400: 2.0, 200: 2.2}, "b": {400: 2.1, 200: 2.3}}
    >>> replay = Replay(losses, flops=lambda name, size: 1e9 * size, kernel=lambda name: 0.0)
    >>> replay.downwards((200, 400), gamma=3, tau=5.0)
    (1200000000000.0, 1200000000000.0)
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lensllm_jax.selection.flops import FlopsLedger, training_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.orders import Dropping, Order

FULL_TUNING = "full tuning"

Ends = tuple[float, float]  # least and most, FLOPs


@dataclasses.dataclass(frozen=True)
class OrderCost:
    """What one order costs."""

    order: str  # a value of Order, or "full tuning"
    measured: bool  # its fine-tunes were made; else it is counted
    low: float  # FLOPs, at least
    high: float  # FLOPs, at most; the same as ``low`` where all is known


def tokens_of(size: int, counted: Mapping[int, int]) -> float:
    """Tokens that a fine-tune on ``size`` examples trains on.

    Args:
        size: training examples.
        counted: size -> tokens of the fine-tunes that were made, one or more.

    Returns:
        The count, or ``size`` times the tokens an example of the nearest size.

    Example:
        >>> tokens_of(400, {400: 900}), tokens_of(800, {100: 300, 400: 900})
        (900.0, 1800.0)
    """
    nearest = min(counted, key=lambda known: abs(math.log(known / size)))
    return float(counted[nearest]) * (size / nearest)


def cell_flops(num_params: float, size: int, counted: Mapping[int, int]) -> float:
    """FLOPs of a fine-tune: 6 N a token of :func:`tokens_of`."""
    return training_flops(num_params, tokens_of(size, counted))


def ends(costs: Iterable[float], count: int) -> Ends:
    """Least and most that ``count`` of some costs can sum to."""
    ascending = sorted(costs)
    return math.fsum(ascending[:count]), math.fsum(ascending[len(ascending) - count :])


def total(parts: Iterable[Ends]) -> Ends:
    """Sum of what is known between two ends."""
    low, high = zip(*parts, strict=True)
    return math.fsum(low), math.fsum(high)


@dataclasses.dataclass(frozen=True)
class Replay:
    """Orders run again on losses that are there, and counted.

    Attributes:
        losses: candidate -> size above 0 -> loss, nats per token.
        flops: candidate, size -> FLOPs of that fine-tune.
        kernel: candidate -> FLOPs of its kernel, which a ranked candidate needs.
    """

    losses: Mapping[str, Mapping[int, float]]
    flops: Callable[[str, int], float]
    kernel: Callable[[str], float]

    def downwards(self, sizes: Sequence[int], *, gamma: int, tau: float) -> Ends:
        """Algorithm 1 on every candidate, and every kernel."""
        descending = sorted(sizes, reverse=True)
        parts = []
        for name, row in self.losses.items():
            each = [self.flops(name, size) for size in descending]
            asked = self._num_downwards(row, descending, gamma=gamma, tau=tau)
            low, high = (math.fsum(each[:count]) + self.kernel(name) for count in asked)
            parts.append((low, high))
        return total(parts)

    @staticmethod
    def _num_downwards(
        row: Mapping[int, float], descending: Sequence[int], *, gamma: int, tau: float
    ) -> tuple[int, int]:
        """Least and most number of sizes that Algorithm 1 asks of a candidate."""
        search, count = Halving(gamma=gamma, tau=tau), len(descending)
        for done, size in enumerate(descending):
            if size not in row:  # the test needs gamma pairs before the one that it refuses
                return min(max(done, gamma) + 1, count), count
            search = search.observe(size, row[size])
            if search.stopped:
                return done + 1, done + 1
        return count, count

    def upwards(self, sizes: Sequence[int], rule: Dropping) -> Ends:
        """Successive halving, and the kernels of those that reach the budget."""
        ascending = sorted(sizes)
        alive, count = list(self.losses), len(self.losses)
        parts = []
        for done, size in enumerate(ascending):
            recent = ascending[max(done - rule.gamma, 0) : done]
            if len(recent) == rule.gamma:
                seen = {
                    n: {s: self.losses[n][s] for s in recent if s in self.losses[n]} for n in alive
                }
                whole = all(len(row) == rule.gamma for row in seen.values())
                if whole and count == len(alive):
                    dropped = rule.drops(seen)
                    alive = [name for name in alive if name not in dropped]
                    count = len(alive)
                else:  # how many go on is known, who is not
                    count = rule.num_kept(count)
            parts.append(ends((self.flops(name, size) for name in alive), count))
        parts.append(ends((self.kernel(name) for name in alive), count))
        return total(parts)

    def all(self, sizes: Sequence[int]) -> Ends:
        """Every size and kernel of every candidate."""
        each = [self.flops(n, s) for n in self.losses for s in sizes]
        cost = math.fsum([*each, *map(self.kernel, self.losses)])
        return cost, cost


def order_costs(
    ran: Order, ledger: FlopsLedger, replay: Replay, sizes: Sequence[int], rule: Dropping,
    *, tau: float,
) -> tuple[OrderCost, ...]:  # fmt: skip
    """Every order beside full tuning.

    Args:
        ran: the order that was run.
        ledger: what it spent.
        replay: of its losses.
        sizes: that the budget allows, examples, above 0.
        rule: who goes on, upwards; its gamma and target are Algorithm 1's too.
        tau: Algorithm 1: residuals' standard deviations that a pair may be off.

    Returns:
        One an order, and full tuning last.
    """
    counted = {
        Order.DOWNWARDS: replay.downwards(sizes, gamma=rule.gamma, tau=tau),
        Order.UPWARDS: replay.upwards(sizes, rule),
        Order.ALL: replay.all(sizes),
    }
    costs = [
        OrderCost(order.value, True, ledger.total, ledger.total)
        if order is ran
        else OrderCost(order.value, False, *counted[order])
        for order in Order
    ]
    full = math.fsum(replay.flops(name, rule.target_size) for name in replay.losses)
    return (*costs, OrderCost(FULL_TUNING, False, full, full))
