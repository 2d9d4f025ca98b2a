"""Paired comparisons: exact p-values, intervals that cover, and chance among many."""

import itertools

import numpy as np
import pytest
import scipy.stats

from lensllm_jax import checks
from lensllm_jax.paired import paired


def test_p_values_are_those_of_all_sign_flips():
    differences = np.random.default_rng(0).standard_normal((3, 7)) + np.array([[0.0], [0.5], [2.0]])
    flips = np.array(list(itertools.product([1, -1], repeat=7)))
    seen = np.array([abs(scipy.stats.ttest_1samp(row, 0).statistic) for row in differences])
    flipped = np.array(
        [[abs(scipy.stats.ttest_1samp(row * f, 0).statistic) for row in differences] for f in flips]
    )
    found = paired(differences)
    assert np.allclose(found.p_value, (flipped >= seen * (1 - 1e-9)).mean(0))
    assert np.allclose(found.p_family, (flipped.max(1)[:, None] >= seen * (1 - 1e-9)).mean(0))
    assert found.p_value[2] == 2 / 2**7  # all of one sign: no flip but its own and its mirror


def test_chance_among_many_comparisons_is_allowed_for():
    random = np.random.default_rng(1)
    noise = random.standard_normal((40, 10))
    found = paired(noise)
    assert found.p_value.min() < 0.05 < found.p_family.min()
    real = paired(np.vstack([noise, random.standard_normal((1, 10)) * 0.1 + 1.0]))
    assert real.p_family[-1] < 0.05


def test_intervals_cover_about_as_often_as_they_say():
    samples = np.random.default_rng(2).standard_normal((400, 20)) + 3.0
    found = paired(samples)
    covered = np.mean((found.low <= 3.0) & (found.high >= 3.0))
    assert 0.88 < covered < 0.98  # 95 % asked; a percentile bootstrap of 20 is a little short


def test_one_candidate_or_a_hole_is_refused():
    with pytest.raises(checks.UserError, match="two or more candidates, got 1"):
        paired(np.ones((2, 1)))
    with pytest.raises((checks.UserError, FloatingPointError), match="finite"):
        paired(np.array([[1.0, np.nan]]))
