"""Corollary 1 and Lemma 1."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from lensllm_jax import checks
from lensllm_jax.theory.decay import Consistency, corollary_1, fit_decay, sum_of_roots_bound
from tests.tolerances import assert_close

SIZES = 100.0 * 2.0 ** np.arange(10)


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.float64, st.integers(1, 12), elements=st.floats(0.0, 1e6)))
def test_lemma_1_holds_and_is_tight_only_for_equal_h(h):
    total, bound = sum_of_roots_bound(h)
    assert total <= bound * (1 + 1e-12)
    same = np.full(len(h), 0.3)
    assert_close(*(np.array(side) for side in sum_of_roots_bound(same)), np.float64)


def test_lemma_1_refuses_a_negative_h():
    with pytest.raises(checks.UserError, match="must not be negative"):
        sum_of_roots_bound(np.array([-1.0]))


def test_an_exact_power_is_recovered_with_an_interval_of_no_width():
    decay = fit_decay(SIZES, 5.0 * SIZES**-0.4)
    assert_close([decay.coefficient, decay.exponent], [5.0, 0.4], np.float64)
    assert decay.high - decay.low < 1e-9
    assert decay.includes(decay.exponent)


def test_intervals_of_the_exponent_cover_the_truth_as_often_as_they_say():
    rng = np.random.default_rng(0)
    noise = np.exp(0.2 * rng.standard_normal((400, len(SIZES))))
    fits = [fit_decay(SIZES, SIZES**-0.4 * row, level=0.9) for row in noise]
    # 400 draws: a standard error of 0.015
    assert 0.85 < np.mean([fit.includes(0.4) for fit in fits]) < 0.95


@pytest.mark.parametrize(
    ("beta_2", "expected"),
    [(0.2, Consistency.HOLDS), (0.8, Consistency.FAILS), (-0.3, Consistency.GROWS)],
)
def test_consistency_follows_beta_2(beta_2, expected):
    result = corollary_1(fit_decay(SIZES, 3.0 * SIZES**-beta_2), loss_bound=2.0, num_blocks=5)
    assert result.consistency is expected
    assert_close(result.beta_3, 0.5 * (1 + beta_2), np.float64)
    assert_close(result.C_3, np.sqrt(2.0 * 5 * 3.0), np.float64)


def test_a_wide_interval_decides_nothing():
    wide = fit_decay(SIZES[:3], np.array([1.0, 0.5, 0.7]))
    assert corollary_1(wide, loss_bound=1.0, num_blocks=1).consistency is Consistency.UNDECIDED


def test_eq_7_bounds_what_theorem_2_sums():
    h = np.array([0.3, 0.1, 0.6])
    decay = fit_decay(SIZES, h.sum() * SIZES**-0.2)
    result = corollary_1(decay, loss_bound=4.0, num_blocks=3)
    n = 800.0
    curvature = np.sqrt(4.0 / n) * np.sqrt(h * n**-0.2).sum()
    assert curvature <= result.power_term(n)


def test_terms_cross_where_they_are_equal():
    decay = fit_decay(SIZES, 3.0 * SIZES**-0.2)
    result = corollary_1(decay, loss_bound=2.0, num_blocks=5, remainder_constant=9.0)
    assert_close(result.power_term(result.crossing), 9.0 * result.crossing**-0.75, rel=1e-9)
    assert corollary_1(decay, loss_bound=2.0, num_blocks=5).crossing is None


@pytest.mark.parametrize(
    ("sizes", "values", "message"),
    [
        ([1.0, 2.0], [1.0, 0.0], "`values` must be positive"),
        ([1.0, 2.0], [1.0, np.nan], "`values` must be positive"),
        ([0.0, 2.0], [1.0, 1.0], "`sizes` must be positive"),
        ([2.0, 2.0], [1.0, 1.0], "two or more"),
    ],
)
def test_decay_refuses_what_has_no_logarithm(sizes, values, message):
    with pytest.raises(checks.UserError, match=message):
        fit_decay(np.array(sizes), np.array(values))
