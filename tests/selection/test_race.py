"""A race: what it runs, drops and spends, when it stops, and that losses alone decide it."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection import race as racing
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.race import Outcome, Race, RaceRule, StopReason, replay
from lensllm_jax.selection.selectors import posterior

SIZES = tuple(100 * 2**k for k in range(9))
TARGET = SIZES[-1]


def table_of(exponents, *, noise=0.0, levels=None, params=None, sizes=SIZES):
    """Power laws, their log losses off by a normal error."""
    count, rng = len(exponents), np.random.default_rng(0)
    levels = np.full(count, 9.0) if levels is None else levels
    logs = np.log(levels)[:, None] - np.outer(exponents, np.log(sizes))
    losses = np.exp(logs + noise * rng.standard_normal(logs.shape))
    names = tuple("abcdefghij"[:count])
    params = np.ones(count) if params is None else np.array(params)
    return LossTable(names, np.array(sizes), losses, params, ("",) * count)


CLEAR = table_of([0.1, 0.2, 0.3], noise=1e-3)
CLOSE = table_of([0.199, 0.2, 0.201], noise=2e-2)


def rule_of(**changes):
    return RaceRule(**{"target_size": TARGET, "sizes": SIZES, "max_cost": 0.5, **changes})


def end_of(table, **changes):
    *_, race = replay(table, rule_of(**changes))
    return race


def test_a_clear_race_ends_early_with_the_best_and_never_runs_the_hopeless_on():
    race = end_of(CLEAR)
    assert race.leader == "c"
    assert race.stop.reason in (StopReason.CONFIDENCE, StopReason.FINISHED)
    assert race.probability >= 0.95
    assert race.cost < 0.2
    assert race.largest["a"] < SIZES[-2]
    close = end_of(CLOSE)  # the control: nothing is certain there
    assert close.cost > race.cost


@pytest.mark.parametrize("max_cost", [0.02, 0.05, 0.3])
def test_a_race_spends_no_more_than_it_may_and_says_that_it_stopped_for_that(max_cost):
    race = end_of(CLOSE, max_cost=max_cost, confidence=1.0)
    assert race.cost <= max_cost + 1e-9
    assert race.cost > 0.5 * max_cost
    assert race.stop.reason is StopReason.BUDGET


def test_cost_is_parameters_times_examples_of_tuning_all():
    table = table_of([0.1, 0.2], params=[1.0, 3.0])
    race = Race.start(table.names, (1.0, 3.0), rule_of())
    assert race.cost_of("b", TARGET) == 0.75
    race = race.observe(Outcome("b", TARGET // 2, 2.0)).observe(Outcome("a", TARGET // 4, 2.0))
    assert race.cost == pytest.approx(0.75 / 2 + 0.25 / 4)
    assert Race.start("ab", (1.0, np.nan), rule_of()).cost_of("b", TARGET) == 0.5


def test_the_searches_of_rates_are_paid_from_the_same_budget():
    rule = rule_of(num_searched=300, max_cost=0.05, confidence=1.0)
    race = Race.start(CLOSE.names, (1.0,) * 3, rule)
    assert [move.cost for move in race.moves()] == pytest.approx([400 / TARGET / 3] * 3)
    losses = {name: dict(zip(SIZES, map(float, row), strict=True))
              for name, row in zip(CLOSE.names, CLOSE.losses, strict=True)}  # fmt: skip

    def measure(moves):
        for name, size, *_ in moves:  # a rung more than expected
            yield Outcome(name, size, losses[name][size], num_searched=400)

    *_, race = racing.run(race, measure)
    sizes = sum(size for row in race.losses.values() for size in row)
    assert race.cost == pytest.approx((sizes + 3 * 400) / TARGET / 3)
    assert race.cost <= 0.05
    given = end_of(CLOSE, max_cost=0.05, confidence=1.0)  # the control: rates were given
    assert sum(map(sum, given.losses.values())) >= sizes + 2 * 400


def test_the_same_losses_give_the_same_race_in_whatever_order_they_came():
    states = [*replay(CLOSE, rule_of(max_cost=0.2))]
    again = [*replay(CLOSE, rule_of(max_cost=0.2))]
    assert [one.losses for one in states] == [one.losses for one in again]
    late = states[-1]
    shuffled = Race.start(CLOSE.names, (1.0,) * 3, rule_of(max_cost=0.2))
    for name in reversed(CLOSE.names):
        for size in sorted(late.losses[name]):
            shuffled = shuffled.observe(Outcome(name, size, late.losses[name][size]))
    assert shuffled.odds.probability_best.tolist() == late.odds.probability_best.tolist()
    assert shuffled.stop == late.stop


def test_several_at_a_time_are_of_different_candidates_within_the_budget():
    rule = rule_of(max_cost=0.3, confidence=1.0)
    race = Race.start(CLOSE.names, (1.0,) * 3, rule)
    measure = {name: dict(zip(SIZES, row, strict=True))
               for name, row in zip(CLOSE.names, CLOSE.losses, strict=True)}  # fmt: skip
    counts = []
    while moves := race.moves(3):
        if counts:  # after the first sizes
            assert len({move.candidate for move in moves}) == len(moves)
        counts.append(len(moves))
        for move in moves:
            loss = measure[move.candidate][move.size]
            race = race.observe(Outcome(move.candidate, move.size, float(loss)))
    assert max(counts[1:]) > 1
    assert race.cost <= 0.3 + 1e-9


def test_a_candidate_that_fails_keeps_its_evidence_and_the_others_go_on():
    losses = CLEAR.losses.copy()
    losses[2, 3:] = np.nan
    table = LossTable(CLEAR.names, CLEAR.sizes, losses, CLEAR.num_params, CLEAR.family)
    race = end_of(table, confidence=1.0)
    assert set(race.failed) == {"c"}
    assert max(race.losses["c"]) == SIZES[2]
    assert race.largest["b"] > SIZES[2]
    assert race.odds.probability_best[2] > 0.0


def test_a_candidate_that_never_ran_does_not_lead_and_a_hopeless_one_is_not_advised():
    rule, losses = rule_of(), dict(zip("ab", CLEAR.losses, strict=False))

    def measure(moves):
        for move in moves:
            loss = None if move.candidate == "c" else losses[move.candidate][SIZES.index(move.size)]
            yield Outcome(move.candidate, move.size, loss, "no memory")

    *_, race = racing.run(Race.start("abc", (1.0,) * 3, rule), measure)
    assert (race.leader, race.failed) == ("b", {"c": "no memory"})
    assert np.isnan(race.posterior.center[2])
    assert "with P > 0.99" in race.stop.text
    assert "a" in race.dropped
    # the best ran all sizes, the others were dropped
    ahead = end_of(CLEAR, confidence=1.0, max_cost=2.0)
    assert ahead.suggestion is None
    # the control: of two that are close, one more fine-tune would tell
    assert end_of(CLOSE, max_cost=0.05).suggestion is not None


def test_drops_are_final_and_need_a_chance_far_below_that_of_a_pair():
    race = end_of(table_of([0.05, 0.3, 0.3], noise=1e-2), confidence=0.99)
    assert "a" in race.dropped
    assert race.dropped["a"].probability_best < race.epsilon <= 0.002
    assert race.largest["a"] == race.dropped["a"].size
    assert race.leader not in race.dropped
    assert not end_of(CLOSE, max_cost=0.1, confidence=0.99).dropped  # the control


def test_regret_that_is_not_worth_its_cost_ends_a_race():
    race = end_of(CLOSE, worth=10.0, confidence=1.0)
    assert race.stop.reason is StopReason.WORTH
    assert race.cost < end_of(CLOSE, worth=1e-6, confidence=1.0).cost


def test_seconds_end_a_race_at_its_own_pace():
    race = Race.start(CLOSE.names, (1.0,) * 3, rule_of(max_seconds=50.0, confidence=1.0))
    losses = {name: dict(zip(SIZES, map(float, row), strict=True))
              for name, row in zip(CLOSE.names, CLOSE.losses, strict=True)}  # fmt: skip

    def measure(moves):
        for name, size, *_ in moves:
            yield Outcome(name, size, losses[name][size], seconds=size / 100)

    *_, race = racing.run(race, measure)
    assert 25.0 < race.seconds <= 50.0
    assert race.stop.reason is StopReason.BUDGET


def test_the_fall_of_expected_regret_is_what_draws_say():
    rng = np.random.default_rng(3)
    for gap, moved in ((0.0, 0.1), (0.1, 0.1), (0.3, 0.1)):
        own = gap + moved * rng.standard_normal(2**20)
        drawn = min(gap, 0.0) - np.minimum(own, 0.0).mean()
        assert racing._fall(gap, moved) == pytest.approx(drawn, abs=2e-4)
    assert racing._fall(0.1, 0.0) == 0.0


def test_who_has_run_further_is_known_better():
    """In one pool one candidate has reached the target and another has far to go."""
    losses = CLOSE.losses.copy()
    losses[0, 4:] = np.nan
    losses[1, 6:] = np.nan
    table = LossTable(CLOSE.names, CLOSE.sizes, losses, CLOSE.num_params, CLOSE.family)
    far, nearer, there = posterior.score(Problem(table, TARGET)).log_std
    assert far > nearer > there
    assert there <= 1e-3


@pytest.mark.parametrize("count", [2, 3, 10])
def test_equal_candidates_run_until_the_budget_ends_and_share_the_probability(count):
    race = end_of(table_of([0.2] * count), max_cost=0.1)
    assert race.stop is not None
    np.testing.assert_allclose(race.odds.probability_best, 1.0 / count, atol=0.05)


def test_one_first_size_is_enough_to_start_and_none_is_refused():
    race = end_of(CLOSE, sizes=(100, 200), max_cost=0.004, confidence=1.0)
    assert race.cost == pytest.approx(100 / TARGET)
    with pytest.raises(checks.UserError, match="`max_cost` must pay for 100 examples"):
        end_of(CLOSE, max_cost=0.003)


def test_who_stopped_takes_over_what_those_that_ran_on_show_of_the_task():
    """A task that bends at 1,600: from before it, all predictions are too high."""
    losses = CLOSE.losses.copy()
    losses[:, 4:] *= 0.8 ** np.arange(1, 6)
    ragged = np.where(np.arange(9) > np.array([3, 6, 6])[:, None], np.nan, losses)
    race = Race(
        CLOSE.names, (1.0,) * 3, rule_of(),
        {n: {s: float(x) for s, x in zip(SIZES, row, strict=True) if np.isfinite(x)}
         for n, row in zip(CLOSE.names, ragged, strict=True)},
    )  # fmt: skip
    alone = posterior.score(Problem(race.table.up_to(SIZES[3]), TARGET)).scores
    moved = np.log(alone) - race.posterior.center
    assert moved[0] > 0.2
    assert moved[0] == pytest.approx(moved[1:].sum() / 3)


def test_a_race_ends_whose_only_candidate_with_losses_diverged():
    losses = np.array([[2.0, *[3.0] * 8], [np.nan] * 9])
    table = LossTable(("a", "b"), np.array(SIZES), losses, np.ones(2), ("", ""))
    *_, race = replay(table, rule_of())
    assert race.leader == "a"
    assert set(race.failed) == {"b"}
    assert race.stop is not None


def test_who_stopped_takes_nothing_over_from_one_that_diverged():
    ragged = np.where(np.arange(9) > np.array([3, 6, 6])[:, None], np.nan, CLOSE.losses)
    diverged = ragged.copy()
    diverged[2, 6] *= 9.0

    def center_of_a(losses):
        rows = {n: {s: float(x) for s, x in zip(SIZES, row, strict=True) if np.isfinite(x)}
                for n, row in zip(CLOSE.names, losses, strict=True)}  # fmt: skip
        return Race(CLOSE.names, (1.0,) * 3, rule_of(), rows).posterior.center[0]

    assert abs(center_of_a(diverged) - center_of_a(ragged)) < 0.1  # a third of log 9 is 0.7
