"""Learning curves of kernel regression, against refits and draws."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.ntk.loss import ntk_spectrum
from lensllm_jax.theory import kernel_regression as regression
from tests.tolerances import assert_close


def circulant(n=24):
    """A kernel that is the same seen from every sample, and targets."""
    distance = np.minimum(np.arange(n), n - np.arange(n))
    row = np.exp(-0.5 * distance)
    theta = np.stack([np.roll(row, i) for i in range(n)])
    return theta, np.random.default_rng(0).standard_normal(n)


def refit(theta, r, train, ridge):
    """Predictions of all samples by the regression on some."""
    block = theta[np.ix_(train, train)] + ridge * np.eye(len(train))
    return theta[:, train] @ np.linalg.inv(block) @ r[train]


@pytest.mark.parametrize("ridge", [0.0, 0.3])
def test_cross_validation_is_leave_one_out_where_all_samples_are_alike(ridge):
    theta, r = circulant()
    missed = [r[i] - refit(theta, r, np.delete(np.arange(len(r)), i), ridge)[i]
              for i in range(len(r))]  # fmt: skip
    error = regression.cross_validation_error(ntk_spectrum(theta, r), ridge=ridge)
    assert_close(error, np.mean(np.square(missed)))
    training = r - theta @ np.linalg.solve(theta + ridge * np.eye(len(r)), r)
    assert np.mean(training**2) < 0.5 * error  # the error on what it was fitted to is no estimate


@pytest.mark.parametrize("num_samples", [1, 5, 15])
def test_replica_estimate_of_equal_eigenvalues_is_the_share_not_drawn(num_samples):
    spectrum = NtkSpectrum(np.full(16, 3.0), np.arange(16.0))
    error = regression.replica_error(spectrum, num_samples)
    assert_close(error, (1 - num_samples / 16) * 7.5)


def test_replica_estimate_keeps_its_two_conditions():
    theta, r = circulant()
    spectrum, ridge = ntk_spectrum(theta, r), 0.7
    learned = regression._learnabilities(spectrum.eigenvalues / 24, 6, ridge)
    kappas = spectrum.eigenvalues / 24 * (1 / learned - 1)
    assert_close(kappas, np.full(24, kappas[0]))
    assert_close(learned.sum() + ridge / kappas[0], 6.0)


@pytest.mark.parametrize(("num_samples", "ridge"), [(20, 0.0), (20, 2.0), (8, 0.5)])
def test_replica_estimate_is_the_mean_of_drawn_regressions(num_samples, ridge):
    random, n = np.random.default_rng(1), 400
    features = random.standard_normal((n, 80)) * np.arange(1, 81) ** -0.6
    r = features @ random.standard_normal(80) + 0.3 * random.standard_normal(n)
    theta = features @ features.T + 1e-3 * np.eye(n)
    errors = []
    for _ in range(100):
        train = random.permutation(n)[:num_samples]
        errors.append(np.mean((r - refit(theta, r, train, ridge)) ** 2))
    spectrum = ntk_spectrum(theta, r)
    estimate = regression.replica_error(spectrum, num_samples, ridge=ridge)
    # 100 draws: a standard error of 1 %; a finite population and features: some per cent
    assert estimate == pytest.approx(np.mean(errors), rel=0.06)
    # negative control: nearly twice as many samples
    other = regression.replica_error(spectrum, 2 * num_samples - 1, ridge=ridge)
    assert abs(other / np.mean(errors) - 1) > 0.1


def test_holdout_error_is_that_of_a_refit():
    theta, r = circulant()
    missed = (r - refit(theta, r, np.arange(10), 0.2))[-8:]
    error = regression.holdout_error(theta, r, 10, num_test=8, ridge=0.2)
    assert_close(error, np.mean(missed**2))


def test_best_ridge_follows_the_noise():
    theta, noise = circulant()
    smooth = theta @ np.ones(24) + np.linspace(0, 1e-3, 24)
    assert regression.best_ridge(ntk_spectrum(theta, smooth)) < regression.best_ridge(
        ntk_spectrum(theta, noise)
    )


def test_refusals():
    singular = NtkSpectrum(np.array([0.0, 1.0]), np.ones(2))
    for call, said in (
        (lambda: regression.cross_validation_error(singular), "`ridge` must be above 0"),
        (lambda: regression.cross_validation_error(singular, ridge=-1.0), "`ridge` must"),
        (lambda: regression.replica_error(singular, 1), "`num_samples` must be below .* rank 1"),
        (lambda: regression.replica_error(singular, 0), "`num_samples` must be positive"),
        (
            lambda: regression.holdout_error(np.eye(4), np.ones(4), 3, num_test=2, ridge=1.0),
            "`num_samples` and `num_test` must .* 4 together, got 3 and 2",
        ),
    ):
        with pytest.raises(checks.UserError, match=said):
            call()
