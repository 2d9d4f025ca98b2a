"""What orders cost, on made-up losses: counted by hand, replayed, and between two ends."""

from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.order_cost import (
    OrderCost,
    Replay,
    _estimated_tokens,
    _range_of_sum,
    fine_tune_flops,
    order_costs,
)
from lensllm_jax.selection.orders import (
    DropRule,
    Order,
)
from tests.selection.fakes import NUM_PARAMS, RULE, SIZES, Fake, dropped_of


def replay(losses):
    return Replay(
        losses, flops=lambda name, size: NUM_PARAMS[name] * size, kernel=lambda name: 1000.0
    )


# By hand: sizes 200 ... 3200 add up to 6200, parameters to 10.
ALL_SIZES, ALL_PARAMS, ALL_KERNELS = 6200, 10, 4000


def test_flops_of_both_orders_are_those_of_a_count_by_hand():
    fake = Fake(perturbed={("d", 400)})
    for name in NUM_PARAMS:
        for size in SIZES:
            fake(name, size)
    counted = replay(fake.losses())
    downwards = ALL_SIZES * ALL_PARAMS - 4 * 200 + ALL_KERNELS  # d stops at 400
    assert counted.downwards(SIZES, Halving(gamma=3, tau=5.0)) == (downwards, downwards)
    upwards = ALL_PARAMS * (200 + 400 + 800) + (1 + 2) * (1600 + 3200) + 2 * 1000
    assert counted.upwards(SIZES, RULE) == (upwards, upwards)
    assert counted.all(SIZES) == (ALL_SIZES * ALL_PARAMS + ALL_KERNELS,) * 2
    # the control: another rule costs something else
    assert counted.upwards(SIZES, DropRule(target_size=6400, keep=1.0)) == counted.all(SIZES)
    assert counted.downwards(SIZES, Halving(gamma=3, tau=1e9)) == counted.all(SIZES)


def test_a_run_costs_what_its_own_replay_counts():
    fake = Fake(perturbed={("b", 400)})
    dropped_of(fake)
    spent = sum(NUM_PARAMS[name] * size for name, size in fake.calls)
    low, high = replay(fake.losses()).upwards(SIZES, RULE)
    assert low == high == spent + 2 * 1000
    down = Fake(perturbed={("b", 400)})
    for name in NUM_PARAMS:
        down.downwards(name)
    spent = sum(NUM_PARAMS[name] * size for name, size in down.calls)
    low, high = replay(down.losses()).downwards(SIZES, Halving(gamma=3, tau=5.0))
    assert low == high == spent + ALL_KERNELS


def test_what_depends_on_losses_that_were_not_measured_lies_between_two_ends():
    fake = Fake()
    dropped_of(fake)  # c and d end at 800
    low, high = replay(fake.losses()).downwards(SIZES, Halving(gamma=3, tau=5.0))
    whole = ALL_SIZES * ALL_PARAMS + ALL_KERNELS
    assert (low, high) == (whole - (3 + 4) * 200, whole)  # either may stop at its fourth size
    down = Fake(perturbed={("a", 400)})
    for name in NUM_PARAMS:
        down.downwards(name)  # a lacks 200: which two are dropped at 800 is not known
    low, high = replay(down.losses()).upwards(SIZES, RULE)
    first = ALL_PARAMS * 1400 + 2 * 1000
    assert (low, high) == (first + (1 + 2) * 4800, first + (3 + 4) * 4800)
    everything = Fake(perturbed={("a", 400)})
    for name in NUM_PARAMS:
        for size in SIZES:
            everything(name, size)
    exact, same = replay(everything.losses()).upwards(SIZES, RULE)
    assert low <= exact == same < high


def test_costs_name_what_was_measured_and_what_was_counted():
    fake = Fake()
    dropped_of(fake)
    ledger = FlopsLedger().kernel("a", flops=7.0)  # what was spent, whatever it was
    costs = order_costs(
        Order.UPWARDS, ledger, replay(fake.losses()), SIZES, search=Halving(), rule=RULE
    )
    assert [cost.order for cost in costs] == ["downwards", "upwards", "all", "full tuning"]
    assert [cost.measured for cost in costs] == [False, True, False, False]
    assert costs[1] == OrderCost("upwards", True, 7.0, 7.0)
    assert costs[3].low == costs[3].high == 6400 * ALL_PARAMS


def test_tokens_are_counted_where_they_were_and_else_proportional_to_the_nearest_size():
    counted = {100: 300, 400: 900}
    assert _estimated_tokens(400, counted) == 900
    assert _estimated_tokens(800, counted) == 800 * 900 / 400
    assert _estimated_tokens(50, counted) == 50 * 300 / 100
    assert fine_tune_flops(10.0, 800, counted) == 6 * 10 * 1800


def test_a_range_runs_from_the_least_to_the_most_expensive():
    assert _range_of_sum([3.0, 1.0, 2.0], 2) == (3.0, 5.0)
    assert _range_of_sum([3.0, 1.0, 2.0], 0) == (0.0, 0.0)
    assert _range_of_sum([3.0, 1.0, 2.0], 3) == (6.0, 6.0)
