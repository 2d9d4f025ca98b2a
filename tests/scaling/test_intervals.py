"""Intervals cover the truth as often as they say; held-out errors see a wrong law."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.fit import fit_law, fit_laws
from lensllm_jax.scaling.intervals import rolling_origin
from lensllm_jax.scaling.kernel import Bounded, Measured, Spectrum
from tests.scaling.curves import NOISE, SIZES


def test_profile_and_bootstrap_intervals_hold_the_truth_and_widen_with_distance():
    losses = (90.0 / (20.0 + SIZES**0.4) + 0.7) * NOISE
    fit = fit_law("rectified", SIZES, losses)
    targets = np.array([2e5, 2e6])
    truth = 90.0 / (20.0 + targets**0.4) + 0.7
    for method in ("profile", "bootstrap"):
        low, high = fit.interval(targets, method=method, num_resamples=64)
        assert np.all((low < truth) & (truth < high)), method
        widths = np.log(high / low)
        assert widths[1] > widths[0]
    low, high = fit.interval(targets, level=0.5)
    assert np.all(np.log(high / low) < widths)


COVERAGE_SIZES = 200.0 * 2.0 ** np.arange(8)
LAST = COVERAGE_SIZES[-1:] * 4


def noisy_power_curves(count):
    """Curves of one power law with independent Gaussian noise on log losses; the truth at LAST."""
    truth = 9.0 * COVERAGE_SIZES**-0.3 + 0.7
    noise = 0.01 * np.random.default_rng(0).standard_normal((count, len(truth)))
    return truth * np.exp(noise), 9.0 * LAST**-0.3 + 0.7


@pytest.mark.parametrize(("method", "least"), [("profile", 0.80), ("bootstrap", 0.70)])
def test_intervals_cover_the_truth_about_as_often_as_they_say(method, least):
    # 40 curves: a coverage of 0.9 has a standard error of 0.05, hence at least 0.80; the
    # bootstrap of 8 residuals around 3 parameters is known to be too short
    losses, truth = noisy_power_curves(40)
    fits = fit_laws("power", COVERAGE_SIZES, losses)
    covered = {}
    for level in (0.9, 0.5):
        ends = [
            fit.interval(LAST, level=level, method=method, num_resamples=60)
            for fit in (fits[i] for i in range(len(fits)))
        ]
        covered[level] = np.mean([low[0] <= truth[0] <= high[0] for low, high in ends])
    assert covered[0.9] >= least
    assert covered[0.5] <= 0.7  # a level is a level: the narrow one must miss sometimes


def test_rolling_origin_is_zero_on_an_exact_law_and_not_on_another():
    losses = np.stack([90.0 / (20.0 + SIZES**0.4) + 0.7, 3.0 - 0.15 * np.arange(len(SIZES))])
    held_out = rolling_origin("rectified", SIZES, losses)
    assert held_out.log_rmse[0] < 1e-6 < 1e-2 < held_out.log_rmse[1]


def test_a_fit_hands_out_its_held_out_error():
    exact = 90.0 / (20.0 + SIZES**0.4) + 0.7
    spectrum = NtkSpectrum(np.array([1e-4, 1.0]), np.array([900.0, 100.0]), 0.01)
    assert fit_law("rectified", SIZES, exact).held_out_log_rmse() < 1e-6
    assert fit_law("lensllm", SIZES, exact, ntk=Spectrum(spectrum)).held_out_log_rmse() < 1e-6
    # a bound that forbids the law is felt in what it predicts, and so is a wrong law
    tight = NtkSpectrum(np.array([1.0]), np.array([4.0]), 0.01)
    assert fit_law("lensllm", SIZES, exact, ntk=Spectrum(tight)).held_out_log_rmse() > 1e-3
    assert fit_law("lensllm", SIZES, exact, ntk=Bounded(4.0)).held_out_log_rmse() > 1e-3
    assert fit_law("power", SIZES, exact).held_out_log_rmse() > 1e-3
    measured = fit_law("lensllm", SIZES, exact, ntk=Measured(np.full(len(SIZES), 20.0)))
    with pytest.raises(checks.UserError, match="fit with `Spectrum`"):
        measured.held_out_log_rmse()
