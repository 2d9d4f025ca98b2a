"""The orders of measuring, on made-up losses: who is asked for what, and what it costs."""

import math

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.order_cost import (
    OrderCost,
    Replay,
    _range_of_sum,
    estimated_tokens,
    fine_tune_flops,
    order_costs,
)
from lensllm_jax.selection.orders import (
    Drop,
    DropRule,
    Order,
    measure_downwards,
    measure_upwards,
)

SIZES = (200, 400, 800, 1600, 3200)
NUM_PARAMS = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}
SLOPES = {"a": 0.30, "b": 0.25, "c": 0.20, "d": 0.10}  # of four lines with one start: a is best
# log losses off a line by 1e-3: a residual that sigma can be measured from
WIGGLE = {3200: 1.000, 1600: 1.001, 800: 0.999, 400: 1.000, 200: 1.001}
RULE = DropRule(target_size=6400, keep=0.5)


class Fake:
    """Measures by formula and remembers what it was asked."""

    def __init__(self, spoilt=()):
        self.spoilt, self.asked = set(spoilt), []

    def __call__(self, name, size):
        self.asked.append((name, size))
        off = 1.5 if (name, size) in self.spoilt else 1.0
        return 9.0 * off * WIGGLE[size] * size ** -SLOPES[name]

    def downwards(self, name, **settings):
        return measure_downwards(SIZES, lambda size: self(name, size), Halving(**settings))

    def losses(self):
        """What was asked for so far, as a replay takes it."""
        rows = {name: {} for name in NUM_PARAMS}
        for name, size in list(self.asked):
            rows[name][size] = Fake(self.spoilt)(name, size)
        return rows


def replay(losses):
    return Replay(
        losses, flops=lambda name, size: NUM_PARAMS[name] * size, kernel=lambda name: 1000.0
    )


@pytest.mark.parametrize(
    ("spoilt", "spent", "stops"),
    [
        (None, (3200, 1600, 800, 400, 200), False),  # never leaves the power phase
        (200, (3200, 1600, 800, 400, 200), True),
        (400, (3200, 1600, 800, 400), True),  # the first that may be refused: three are accepted
        (800, (3200, 1600, 800, 400), True),  # not tested itself; the line through it misses 400
    ],
)
def test_algorithm_1_stops_at_the_first_size_off_the_line_and_asks_no_further(spoilt, spent, stops):
    fake = Fake(spoilt={("a", spoilt)})
    search = fake.downwards("a", gamma=3, tau=5.0)
    assert tuple(size for _, size in fake.asked) == search.sizes_spent == spent
    assert search.stopped == stops
    assert search.accepted_sizes == (spent[:-1] if stops else spent)


def test_gamma_and_tau_decide_where_algorithm_1_stops():
    def spent(**settings):
        return Fake(spoilt={("a", 400)}).downwards("a", **settings).sizes_spent[-1]

    assert spent(gamma=3, tau=5.0) == 400
    assert spent(gamma=4, tau=5.0) == 200  # the spoilt pair is the fourth, not tested
    assert spent(gamma=3, tau=1e9) == 200  # the control: nothing is ever off by that much


def dropped_of(fake, rule=RULE, sizes=SIZES):
    return measure_upwards(tuple(NUM_PARAMS), sizes, fake, rule)


def test_upwards_a_dropped_candidate_is_never_measured_again():
    fake = Fake()
    dropped = dropped_of(fake)
    assert {name: drop.size for name, drop in dropped.items()} == {"c": 800, "d": 800}
    for name, drop in dropped.items():
        assert max(size for who, size in fake.asked if who == name) == drop.size
        assert drop.predicted > drop.cut
    assert len(fake.asked) == len(set(fake.asked)) == 4 * 3 + 2 * 2


def test_upwards_without_dropping_measures_everything():
    fake = Fake()
    assert dropped_of(fake, DropRule(target_size=6400, keep=1.0)) == {}  # the control
    assert sorted(fake.asked) == sorted((n, s) for n in NUM_PARAMS for s in SIZES)
    few = Fake()
    assert dropped_of(few, sizes=SIZES[:3]) == {}  # the budget is reached before a line is there
    assert len(few.asked) == 12


def test_upwards_looks_at_the_line_and_not_at_the_last_loss():
    """One that is ahead at every size but falls slower is dropped; its lead would be gone."""
    start = {"a": 37.1, "b": 26.1, "c": 18.3, "d": 7.8}

    def measure(name, size):
        return start[name] * size ** -SLOPES[name]

    at_800 = sorted(NUM_PARAMS, key=lambda name: measure(name, 800))
    assert at_800[0] == "d"
    far = DropRule(target_size=10**7, keep=0.5)
    assert sorted(measure_upwards("abcd", SIZES, measure, far)) == ["c", "d"]
    near = DropRule(target_size=801, keep=0.5)
    assert sorted(measure_upwards("abcd", SIZES, measure, near)) == ["a", "b"]


@pytest.mark.parametrize(("n", "kept"), [(1, 1), (2, 2), (3, 2), (4, 3), (13, 9)])
def test_three_quarters_go_on_and_never_fewer_than_two(n, kept):
    assert DropRule(target_size=1).num_kept(n) == kept


def test_equal_predictions_are_kept_in_the_order_of_the_pool():
    row = {200: 3.0, 400: 2.0, 800: 1.5}
    assert list(RULE.drops(dict.fromkeys("abcd", row))) == ["c", "d"]


@pytest.mark.parametrize(
    "changes", [{"keep": 0.0}, {"keep": 1.5}, {"gamma": 1}, {"target_size": 0}]
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(checks.UserError, match=f"`{name}` must"):
        DropRule(**{"target_size": 6400, **changes})


# By hand: sizes 200 ... 3200 add up to 6200, parameters to 10.
ALL_SIZES, ALL_PARAMS, ALL_KERNELS = 6200, 10, 4000


def test_flops_of_both_orders_are_those_of_a_count_by_hand():
    fake = Fake(spoilt={("d", 400)})
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
    fake = Fake(spoilt={("b", 400)})
    dropped_of(fake)
    spent = sum(NUM_PARAMS[name] * size for name, size in fake.asked)
    low, high = replay(fake.losses()).upwards(SIZES, RULE)
    assert low == high == spent + 2 * 1000
    down = Fake(spoilt={("b", 400)})
    for name in NUM_PARAMS:
        down.downwards(name)
    spent = sum(NUM_PARAMS[name] * size for name, size in down.asked)
    low, high = replay(down.losses()).downwards(SIZES, Halving(gamma=3, tau=5.0))
    assert low == high == spent + ALL_KERNELS


def test_what_hangs_on_losses_that_were_not_measured_lies_between_two_ends():
    fake = Fake()
    dropped_of(fake)  # c and d end at 800
    low, high = replay(fake.losses()).downwards(SIZES, Halving(gamma=3, tau=5.0))
    whole = ALL_SIZES * ALL_PARAMS + ALL_KERNELS
    assert (low, high) == (whole - (3 + 4) * 200, whole)  # either may stop at its fourth size
    down = Fake(spoilt={("a", 400)})
    for name in NUM_PARAMS:
        down.downwards(name)  # a lacks 200: which two are dropped at 800 is not known
    low, high = replay(down.losses()).upwards(SIZES, RULE)
    first = ALL_PARAMS * 1400 + 2 * 1000
    assert (low, high) == (first + (1 + 2) * 4800, first + (3 + 4) * 4800)
    everything = Fake(spoilt={("a", 400)})
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
    assert estimated_tokens(400, counted) == 900
    assert estimated_tokens(800, counted) == 800 * 900 / 400
    assert estimated_tokens(50, counted) == 50 * 300 / 100
    assert fine_tune_flops(10.0, 800, counted) == 6 * 10 * 1800


def test_a_range_runs_from_the_least_to_the_most_expensive():
    assert _range_of_sum([3.0, 1.0, 2.0], 2) == (3.0, 5.0)
    assert _range_of_sum([3.0, 1.0, 2.0], 0) == (0.0, 0.0)
    assert _range_of_sum([3.0, 1.0, 2.0], 3) == (6.0, 6.0)


def test_the_line_is_that_of_the_last_gamma_sizes():
    sizes = np.array([200, 400, 800, 1600])
    row = dict(zip(sizes.tolist(), 5.0 * sizes**-0.2, strict=True))
    straight = DropRule(target_size=6400).predicted(row)
    assert straight == pytest.approx(5.0 * 6400**-0.2, rel=1e-12)
    assert DropRule(target_size=6400).predicted({**row, 200: 99.0}) == straight
    assert not math.isclose(DropRule(target_size=6400).predicted({**row, 400: 99.0}), straight)
    assert isinstance(next(iter(RULE.drops(dict.fromkeys("abc", row)).values())), Drop)
