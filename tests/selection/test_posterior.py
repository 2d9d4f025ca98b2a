"""The joint distribution of losses: its draws agree with its formulas, and never answer NaN."""

import numpy as np
import pytest
from scipy import stats

from lensllm_jax.selection.posterior import Concordance, Posterior

CENTER = np.log([1.0, 1.02, 0.99, 1.3])
LOG_STD = np.array([0.02, 0.05, 0.03, 0.1])


@pytest.mark.parametrize("dof", [np.inf, 8.0])
def test_two_candidates_have_one_probability_by_formula_and_by_draws(dof):
    posterior = Posterior(CENTER[:2], LOG_STD[:2], dof)
    odds = posterior.odds(num_draws=2**16)
    error = 5.0 * 0.5 / 2**8  # five standard errors of a share
    assert abs(odds.probability_best[0] - posterior.beats(0, 1)) < error
    wider = Posterior(CENTER[:2], 2.0 * LOG_STD[:2], dof)
    assert abs(wider.odds().probability_best[0] - posterior.beats(0, 1)) > error  # the control


def test_probabilities_add_up_and_regret_is_lowest_at_the_lowest_center():
    posterior = Posterior(CENTER, LOG_STD, 8.0)
    rows = np.arange(4)
    wins = posterior.beats(rows[:, None], rows[None])
    np.testing.assert_allclose(wins + wins.T, 1.0, atol=1e-12)
    best, regret = posterior.odds()
    assert best.sum() == pytest.approx(1.0)
    assert regret.argmin() == CENTER.argmin()
    np.testing.assert_allclose(regret - regret.min(), CENTER - CENTER.min(), atol=1e-12)
    assert 0.0 < regret.min() < 0.05
    certain = Posterior(CENTER, 1e-9 * LOG_STD).odds()
    assert certain.probability_best.tolist() == [0.0, 0.0, 1.0, 0.0]
    assert certain.expected_regret.min() == pytest.approx(0.0, abs=1e-8)


def test_draws_are_the_same_every_time_and_those_of_a_large_pool_come_in_pieces(monkeypatch):
    posterior = Posterior(CENTER, LOG_STD, 8.0)
    np.testing.assert_array_equal(posterior.odds(), posterior.odds())
    whole = posterior.odds(num_draws=2**15).probability_best
    monkeypatch.setattr("lensllm_jax.selection.posterior._VALUES_AT_ONCE", 64)
    assert np.abs(posterior.odds(num_draws=2**15).probability_best - whole).max() < 0.02


def test_intervals_hold_their_share_of_what_is_drawn():
    rng = np.random.default_rng(1)
    for dof, law in ((np.inf, stats.norm()), (8.0, stats.t(8.0))):
        posterior = Posterior(CENTER, LOG_STD, dof)
        truth = np.exp(CENTER[0] + LOG_STD[0] * law.rvs(4000, random_state=rng))
        for level in (0.5, 0.9):
            low, high = posterior.interval(0, level=level)
            assert abs(np.mean((low < truth) & (truth < high)) - level) < 0.04


def test_a_common_factor_of_distances_widens_intervals_and_no_probability():
    plain, common = Posterior(CENTER, LOG_STD, 8.0), Posterior(CENTER, LOG_STD, 8.0, LOG_STD)
    (low, high), (lower, higher) = (p.interval(0, level=0.9) for p in (plain, common))
    assert np.log(higher / lower) == pytest.approx(np.sqrt(2.0) * np.log(high / low))
    np.testing.assert_array_equal(common.odds(), plain.odds())
    assert common.beats(0, 1) == plain.beats(0, 1)
    np.testing.assert_array_equal(common.rank_intervals(), plain.rank_intervals())


def test_ranks_are_certain_where_losses_are_and_wide_where_they_are_not():
    certain = Posterior(CENTER, np.full(4, 1e-9)).rank_intervals()
    assert certain.tolist() == [[2, 2], [3, 3], [1, 1], [4, 4]]
    assert Posterior(CENTER, np.full(4, 10.0)).rank_intervals().tolist() == [[1, 4]] * 4


def test_a_candidate_without_a_prediction_has_no_odds_and_changes_nothing_else():
    posterior = Posterior(np.append(CENTER, np.nan), np.append(LOG_STD, np.nan), 8.0)
    best, regret = posterior.odds()
    np.testing.assert_array_equal(best[:4], Posterior(CENTER, LOG_STD, 8.0).odds()[0])
    assert np.isnan([best[4], regret[4]]).all()
    assert posterior.rank_intervals()[4].tolist() == [5, 5]
    assert np.isnan(Posterior(np.full(2, np.nan), np.ones(2)).odds()).all()


def test_scores_that_predict_nothing_have_a_share_of_pairs():
    concordance = Concordance(np.array([1.0, 2.0, 2.0]), 0.8)
    assert [float(concordance.beats(0, k)) for k in range(3)] == pytest.approx([0.5, 0.8, 0.8])
    assert float(concordance.beats(2, 1)) == 0.5
    assert np.isnan(Concordance(np.array([1.0, 2.0]), np.nan).beats(0, 1))
