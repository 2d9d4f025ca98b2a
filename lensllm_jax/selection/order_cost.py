r"""Cost of an order of measuring: what was spent, what another order would have cost.

The order that was run is measured: its FLOPs are those of the ledger.  Any other is counted: its
decisions are replayed on the losses that were measured, and each of its fine-tunes costs what it
cost, or, if it was not made, :math:`6N` times the tokens estimated from the nearest size of the
same candidate that was measured.  Where a decision depends on a loss that was not measured, the
cost is a range: the least and the most expensive way in which it can go.

Full tuning, what all this is to save, fine-tunes every candidate once on ``target_size`` examples.

Example:
    >>> losses = {"a": {400: 2.0, 200: 2.2}, "b": {400: 2.1, 200: 2.3}}
    >>> replay = Replay(losses, flops=lambda name, size: 1e9 * size, kernel=lambda name: 0.0)
    >>> replay.downwards((200, 400), Halving())
    (1200000000000.0, 1200000000000.0)
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence

from lensllm_jax.selection.flops import FlopsLedger, training_flops
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.orders import DropRule, Order

FULL_TUNING = "full tuning"

_Range = tuple[float, float]  # least and most, FLOPs


@dataclasses.dataclass(frozen=True)
class OrderCost:
    """What one order costs."""

    order: str  # a value of Order, or "full tuning"
    measured: bool  # its fine-tunes were made; else it is counted
    low: float  # FLOPs, at least
    high: float  # FLOPs, at most; equal to ``low`` where all is known


def _estimated_tokens(size: int, counted: Mapping[int, int]) -> float:
    """Tokens that a fine-tune on ``size`` examples trains on.

    Args:
        size: training examples.
        counted: size -> tokens of the fine-tunes that were made, one or more.

    Returns:
        The count, or ``size`` times the tokens per example of the nearest size.
    """
    nearest = min(counted, key=lambda known: abs(math.log(known / size)))
    return float(counted[nearest]) * (size / nearest)


def fine_tune_flops(
    num_params: float, size: int, counted: Mapping[int, int], *, num_frozen: float = 0.0
) -> float:
    """FLOPs of a fine-tune: :func:`training_flops` of its estimated tokens."""
    return training_flops(num_params, _estimated_tokens(size, counted), num_frozen=num_frozen)


def _range_of_sum(costs: Iterable[float], count: int) -> _Range:
    """Least and most that ``count`` of the costs can sum to."""
    ascending = sorted(costs)
    return math.fsum(ascending[:count]), math.fsum(ascending[len(ascending) - count :])


def _sum(ranges: Iterable[_Range]) -> _Range:
    low, high = zip(*ranges, strict=True)
    return math.fsum(low), math.fsum(high)


@dataclasses.dataclass(frozen=True)
class Replay:
    """Orders replayed on measured losses, and counted."""

    losses: Mapping[str, Mapping[int, float]]  # candidate -> size above 0 -> nats per byte
    flops: Callable[[str, int], float]  # candidate, size -> FLOPs of that fine-tune
    kernel: Callable[[str], float]  # candidate -> FLOPs of its kernel, if it is ranked

    def downwards(self, sizes: Sequence[int], search: Halving) -> _Range:
        """Algorithm 1 on every candidate, and every kernel."""
        descending = sorted(sizes, reverse=True)
        costs = []
        for name, row in self.losses.items():
            flops = [self.flops(name, size) for size in descending]
            counts = self._num_downwards(row, descending, search)
            low, high = (math.fsum(flops[:count]) + self.kernel(name) for count in counts)
            costs.append((low, high))
        return _sum(costs)

    @staticmethod
    def _num_downwards(
        row: Mapping[int, float], descending: Sequence[int], search: Halving
    ) -> tuple[int, int]:
        """Least and most number of sizes that Algorithm 1 measures of a candidate."""
        count = len(descending)
        for done, size in enumerate(descending):
            if size not in row:  # the test needs gamma pairs before the one that it rejects
                return min(max(done, search.gamma) + 1, count), count
            search = search.observe(size, row[size])
            if search.stopped:
                return done + 1, done + 1
        return count, count

    def upwards(self, sizes: Sequence[int], rule: DropRule) -> _Range:
        """Successive halving, and the kernels of the candidates that reach the budget."""
        ascending = sorted(sizes)
        alive, count = list(self.losses), len(self.losses)
        costs = []
        for done, size in enumerate(ascending):
            recent = ascending[max(done - rule.gamma, 0) : done]
            if len(recent) == rule.gamma:
                losses = {
                    n: {s: self.losses[n][s] for s in recent if s in self.losses[n]} for n in alive
                }
                complete = all(len(row) == rule.gamma for row in losses.values())
                if complete and count == len(alive):
                    dropped = rule.drops(losses)
                    alive = [name for name in alive if name not in dropped]
                    count = len(alive)
                else:  # how many continue is known, which ones is not
                    count = rule.num_kept(count)
            costs.append(_range_of_sum((self.flops(name, size) for name in alive), count))
        costs.append(_range_of_sum((self.kernel(name) for name in alive), count))
        return _sum(costs)

    def all(self, sizes: Sequence[int]) -> _Range:
        """Every size and kernel of every candidate."""
        fine_tunes = [self.flops(n, s) for n in self.losses for s in sizes]
        cost = math.fsum([*fine_tunes, *map(self.kernel, self.losses)])
        return cost, cost


def order_costs(
    ran: Order, ledger: FlopsLedger, replay: Replay, sizes: Sequence[int],
    *, search: Halving, rule: DropRule,
) -> tuple[OrderCost, ...]:  # fmt: skip
    """Every order next to full tuning.

    Args:
        ran: the order that was run.
        ledger: what it spent.
        replay: of its losses.
        sizes: within the budget, examples, above 0.
        search: Algorithm 1 at its start.
        rule: which candidates continue, upwards; its target is that of full tuning.

    Returns:
        One per order, and full tuning last.
    """
    counted = {
        Order.DOWNWARDS: replay.downwards(sizes, search),
        Order.UPWARDS: replay.upwards(sizes, rule),
        Order.ALL: replay.all(sizes),
    }
    costs = [
        OrderCost(order.value, True, ledger.total, ledger.total)
        if order is ran
        else OrderCost(order.value, False, *counted[order])
        for order in Order
        if order is ran or order in counted  # where a race goes depends on losses all the way
    ]
    full = math.fsum(replay.flops(name, rule.target_size) for name in replay.losses)
    return (*costs, OrderCost(FULL_TUNING, False, full, full))
