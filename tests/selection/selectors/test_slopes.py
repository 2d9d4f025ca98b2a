"""The slopes model: its tridiagonal algebra, its mode, and widths that hold on its own curves."""

import numpy as np
import pytest

from lensllm_jax.selection.selectors import _slopes

OCTAVES = np.arange(-7.0, 1.0)
BUDGET = 100_000  # examples: late enough for slopes to last


def test_tridiagonal_precision_is_the_inverse_of_the_covariance():
    """The covariance by steps: what is left of the octave before, and what is added."""
    walk, middles = np.array([0.1, 0.3]), np.array([-4.0, -2.5, -1.0, 0.0])
    kept = np.array([0.2, 0.7, 0.95])
    chain = _slopes._Chain(walk, middles, kept)
    rng = np.random.default_rng(0)
    curvature, right = rng.uniform(0.0, 5.0, (2, 3, 4)), rng.standard_normal((2, 3, 4))
    solution, pivots = chain.solve(curvature, right)
    for g, q in enumerate(walk):
        variance = _slopes._OWN_STD**2
        decay = np.exp(-np.diff(middles) * q**2 / (2.0 * variance))
        to_octaves = np.diag(np.sqrt(variance * np.append(1.0, 1.0 - decay**2)))
        for k in range(1, 4):  # each octave in terms of independent steps
            to_octaves[k] += decay[k - 1] * kept[k - 1] * to_octaves[k - 1]
        covariance = to_octaves @ to_octaves.T
        np.testing.assert_allclose(chain.log_det[g], -np.linalg.slogdet(covariance)[1], rtol=1e-10)
        for i in range(3):
            matrix = np.linalg.inv(covariance) + np.diag(curvature[g, i])
            np.testing.assert_allclose(
                chain.times(right)[g, i], right[g, i] @ np.linalg.inv(covariance)
            )
            np.testing.assert_allclose(solution[g, i], np.linalg.solve(matrix, right[g, i]))
            np.testing.assert_allclose(np.log(pivots[g, i]).sum(), np.linalg.slogdet(matrix)[1])
        # of octaves to come, given the first one
        left, fresh = _slopes._ahead(*(x[[g]] for x in _slopes._steps(walk, middles, kept)))
        np.testing.assert_allclose(left[0], covariance[0, 1:] / variance)
        np.testing.assert_allclose(
            fresh[0], covariance[1:, 1:] - variance * np.outer(left[0], left[0])
        )


def test_slopes_of_few_examples_return_to_the_tasks():
    """Two candidates whose slopes differ fourfold, at two sizes: do they still, five octaves on?"""
    octaves = np.array([-1.0, 0.0])
    curves = 1.0 + np.array([[0.08, 0.0], [0.02, 0.0]])
    share = {}
    for budget in (100, 100_000):
        center, _ = _slopes.predict(octaves, curves, 5.0, budget)
        falls = 1.0 - center
        share[budget] = (falls[0] - falls[1]) / falls.mean()
    assert share[100] < 0.5 * share[100_000]
    assert share[100_000] > 0.5
    assert _slopes.lasting_share(0.0, 100) == 1.0
    assert _slopes.lasting_share(5.0, 100) < 0.5 < 0.99 < _slopes.lasting_share(5.0, 100_000)


def curves_of(rng, count, growth=0.03):
    """Log losses whose slopes walk as the model says, to four octaves above the budget."""
    steps = 11
    log_slopes = np.log(0.04) + growth * np.arange(steps) + 0.4 * rng.standard_normal((count, 1))
    log_slopes = log_slopes + np.cumsum(0.1 * rng.standard_normal((count, steps)), axis=1)
    return 1.0 - np.concatenate([np.zeros((count, 1)), np.cumsum(np.exp(log_slopes), 1)], axis=1)


def test_straight_curves_are_continued_and_the_noise_is_averaged():
    slopes = np.linspace(0.03, 0.05, 64)[:, None]
    curves = 1.0 - slopes * (OCTAVES + 7.0)
    center, _ = _slopes.predict(OCTAVES, curves, 2.0, BUDGET)
    fall = (curves[:, -1] - center) / (2.0 * slopes[:, 0])
    assert fall.std() < 0.05  # in proportion to each candidate's own slope
    assert 0.95 < fall.mean() < 1.15  # a little more, for the growth that is usual
    noisy = curves + 0.01 * np.random.default_rng(0).standard_normal(curves.shape)
    last = 2.0 * (noisy[:, -2] - noisy[:, -1])
    error = noisy[:, -1] - _slopes.predict(OCTAVES, noisy, 2.0, BUDGET)[0] - 2.0 * slopes[:, 0]
    assert error.std() < 0.5 * (last - 2.0 * slopes[:, 0]).std()


def test_one_octaves_jump_changes_a_prediction_by_little_more_than_the_jump():
    rng = np.random.default_rng(1)
    curves = curves_of(rng, 8)[:, :8]
    jumped = curves.copy()
    jumped[0, 4:] -= 0.2
    moved = (
        _slopes.predict(OCTAVES, curves, 4.0, BUDGET)[0]
        - _slopes.predict(OCTAVES, jumped, 4.0, BUDGET)[0]
    )
    assert 0.15 < moved[0] < 0.3  # a slope of .2 an octave would give a fall of 1
    assert np.abs(moved[1:]).max() < 0.05


def test_intervals_hold_on_curves_whose_slopes_walk():
    rng, z = np.random.default_rng(2), []
    for _ in range(20):
        curves = curves_of(rng, 20)
        known = curves[:, :8] + 0.002 * rng.standard_normal((20, 8))
        center, log_std = _slopes.predict(OCTAVES, known, 4.0, BUDGET)
        error = curves[:, -1] - center
        z.append((error - error.mean()) / log_std)
    assert 0.75 < np.sqrt(np.mean(np.square(z))) < 1.25


def test_widths_grow_with_the_distance_and_with_the_noise():
    rng, spread = np.random.default_rng(0), {}
    straight = 1.0 - 0.05 * (OCTAVES + 6.0) * np.linspace(0.9, 1.1, 8)[:, None]
    for noise in (0.001, 0.02):
        curves = straight + noise * rng.standard_normal(straight.shape)
        for target in (2.0, 6.0):
            spread[noise, target] = _slopes.predict(OCTAVES, curves, target, BUDGET)[1].mean()
    assert spread[0.001, 6.0] > 2.0 * spread[0.001, 2.0]
    assert spread[0.02, 2.0] > 2.0 * spread[0.001, 2.0]


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0, 2.5])
def test_any_distance_is_predicted_and_a_small_one_is_nearly_certain(target):
    curves = curves_of(np.random.default_rng(3), 6)
    center, log_std = _slopes.predict(OCTAVES, curves[:, :8], target, BUDGET)
    truth = [np.interp(7.0 + target, np.arange(12), row) for row in curves]
    assert np.abs(center - truth).max() < 0.05 * max(target, 1.0)
    assert log_std.max() < 0.05 * target**1.5 + 0.02


def test_a_size_left_out_counts_like_the_octaves_that_it_spans():
    curves = curves_of(np.random.default_rng(4), 6)[:, :8]
    gaps = curves.copy()
    gaps[0, 3:5] = np.nan
    whole, part = (_slopes.predict(OCTAVES, values, 3.0, BUDGET) for values in (curves, gaps))
    assert abs(whole[0][0] - part[0][0]) < 0.02
    gaps[0, 5:] = np.nan  # dropped three octaves ago: wider
    assert _slopes.predict(OCTAVES, gaps, 3.0, BUDGET)[1][0] > 1.5 * whole[1][0]


def test_large_pools_take_their_grid_from_a_sample(monkeypatch):
    curves = curves_of(np.random.default_rng(5), 60)[:, :8]
    whole = _slopes.predict(OCTAVES, curves, 3.0, BUDGET)
    monkeypatch.setattr(_slopes, "_MAX_SAMPLE", 30)
    sampled = _slopes.predict(OCTAVES, curves, 3.0, BUDGET)
    assert np.abs(sampled[0] - whole[0]).max() < 0.01
    assert np.abs(sampled[1] / whole[1] - 1.0).max() < 0.2
    assert not np.array_equal(sampled[0], whole[0])
