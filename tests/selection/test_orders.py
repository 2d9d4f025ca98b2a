"""The orders of measuring, on made-up losses: what is measured, and what is dropped."""

import math

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.orders import (
    Drop,
    DropRule,
    measure_upwards,
)
from tests.selection.fakes import NUM_PARAMS, RULE, SIZES, SLOPES, Fake, dropped_of


@pytest.mark.parametrize(
    ("perturbed", "spent", "stops"),
    [
        (None, (3200, 1600, 800, 400, 200), False),  # never leaves the power phase
        (200, (3200, 1600, 800, 400, 200), True),
        (400, (3200, 1600, 800, 400), True),  # the first that may be refused: three are accepted
        (800, (3200, 1600, 800, 400), True),  # not tested itself; the line through it misses 400
    ],
)
def test_algorithm_1_measures_no_further_than_the_first_size_off_the_line(perturbed, spent, stops):
    fake = Fake(perturbed={("a", perturbed)})
    search = fake.downwards("a", gamma=3, tau=5.0)
    assert tuple(size for _, size in fake.calls) == search.sizes_spent == spent
    assert search.stopped == stops
    assert search.accepted_sizes == (spent[:-1] if stops else spent)


def test_gamma_and_tau_decide_where_algorithm_1_stops():
    def spent(**settings):
        return Fake(perturbed={("a", 400)}).downwards("a", **settings).sizes_spent[-1]

    assert spent(gamma=3, tau=5.0) == 400
    assert spent(gamma=4, tau=5.0) == 200  # the perturbed pair is the fourth, not tested
    assert spent(gamma=3, tau=1e9) == 200  # the control: nothing is ever off by that much


def test_upwards_a_dropped_candidate_is_never_measured_again():
    fake = Fake()
    dropped = dropped_of(fake)
    assert {name: drop.size for name, drop in dropped.items()} == {"c": 800, "d": 800}
    for name, drop in dropped.items():
        assert max(size for candidate, size in fake.calls if candidate == name) == drop.size
        assert drop.predicted > drop.cut
    assert len(fake.calls) == len(set(fake.calls)) == 4 * 3 + 2 * 2


def test_upwards_without_dropping_measures_everything():
    fake = Fake()
    assert dropped_of(fake, DropRule(target_size=6400, keep=1.0)) == {}  # the control
    assert sorted(fake.calls) == sorted((n, s) for n in NUM_PARAMS for s in SIZES)
    few = Fake()
    assert dropped_of(few, sizes=SIZES[:3]) == {}  # the budget is reached before a line is there
    assert len(few.calls) == 12


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


@pytest.mark.parametrize(("n", "num_kept"), [(1, 1), (2, 2), (3, 2), (4, 3), (13, 9)])
def test_three_quarters_continue_and_never_fewer_than_two(n, num_kept):
    assert DropRule(target_size=1).num_kept(n) == num_kept


def test_equal_predictions_are_kept_in_the_order_of_the_pool():
    row = {200: 3.0, 400: 2.0, 800: 1.5}
    assert list(RULE.drops(dict.fromkeys("abcd", row))) == ["c", "d"]


@pytest.mark.parametrize(
    "changes", [{"keep": 0.0}, {"keep": 1.5}, {"gamma": 1}, {"target_size": 0}]
)
def test_a_rule_that_is_out_of_range_is_refused_by_name(changes):
    (name,) = changes
    with pytest.raises(checks.UserError, match=f"`{name}` must"):
        DropRule(**{"target_size": 6400, **changes})


def test_the_line_is_that_of_the_last_gamma_sizes():
    sizes = np.array([200, 400, 800, 1600])
    row = dict(zip(sizes.tolist(), 5.0 * sizes**-0.2, strict=True))
    straight = DropRule(target_size=6400).predicted(row)
    assert straight == pytest.approx(5.0 * 6400**-0.2, rel=1e-12)
    assert DropRule(target_size=6400).predicted({**row, 200: 99.0}) == straight
    assert not math.isclose(DropRule(target_size=6400).predicted({**row, 400: 99.0}), straight)
    assert isinstance(next(iter(RULE.drops(dict.fromkeys("abc", row)).values())), Drop)
