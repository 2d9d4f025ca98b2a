"""The NTK loss against scipy's matrix exponential, an integrator, and its limits."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.ntk.loss import (
    flat_kernel,
    kernel_report,
    ntk_loss,
    ntk_spectrum,
    ntk_test_residual,
    ntk_train_residual,
)
from tests import oracles
from tests.tolerances import assert_close, relative_difference


def random_kernel(n, p, seed=0):
    jacobian = np.random.default_rng(seed).normal(size=(n, p)) / np.sqrt(p)
    return jacobian @ jacobian.T


THETA = random_kernel(6, 20)
RESIDUAL = np.random.default_rng(1).normal(size=6)


@given(st.integers(0, 2**30), st.floats(0, 50), st.integers(1, 8), st.integers(1, 12))
@settings(max_examples=60, deadline=None)
def test_loss_equals_scipys_matrix_exponential(seed, steps, n, p):
    theta = random_kernel(n, p, seed)  # singular wherever p < n
    residual = np.random.default_rng(seed).normal(size=n)
    expected = oracles.ntk_loss_by_matrix_exponential(theta, residual, 0.1, steps)
    got = ntk_loss(theta, residual, learning_rate=0.1, steps=steps)
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-14 * np.sum(residual**2))


def test_elementwise_exponential_fails_the_same_assertion():
    expected = oracles.ntk_loss_by_matrix_exponential(THETA, RESIDUAL, 0.1, 3.0)
    elementwise = np.sum((np.exp(-0.3 * THETA) @ RESIDUAL) ** 2)
    assert relative_difference(elementwise, expected) > 0.5
    assert_close(ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=3.0), expected)


def test_at_time_zero_nothing_is_learnt():
    got = ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=0)
    assert_close(got, np.sum(RESIDUAL**2))


def test_in_the_end_only_the_null_space_of_the_kernel_remains():
    jacobian = np.random.default_rng(0).normal(size=(6, 4))
    theta = jacobian @ jacobian.T
    null = RESIDUAL - jacobian @ np.linalg.lstsq(jacobian, RESIDUAL, rcond=None)[0]
    got = ntk_loss(theta, RESIDUAL, learning_rate=1.0, steps=1e6)
    assert_close(got, np.sum(null**2), rel=1e-8)  # null eigenvalues are zero to 1e-15 only
    assert ntk_loss(THETA, RESIDUAL, learning_rate=1.0, steps=1e6) < 1e-20


def test_an_array_of_steps_gives_its_shape_and_falls():
    steps = np.linspace(0, 40, 12).reshape(3, 4)
    got = ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=steps)
    assert got.shape == (3, 4)
    assert np.all(np.diff(got.ravel()) < 0)
    one = ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=float(steps[1, 2]))
    assert_close(got[1, 2], one)


def test_spectrum_keeps_the_norm_and_gives_the_same_loss():
    spectrum = ntk_spectrum(THETA, RESIDUAL)
    assert_close(np.sum(spectrum.squared_projections), np.sum(RESIDUAL**2))
    assert_close(
        ntk_spectrum(THETA, RESIDUAL, learning_rate=0.2).loss(5.0),
        ntk_loss(THETA, RESIDUAL, learning_rate=0.2, steps=5.0),
    )


def test_many_outputs_are_flattened_example_by_example():
    jacobian = np.random.default_rng(0).normal(size=(3, 2, 9))
    theta = np.einsum("iap,jbp->ijab", jacobian, jacobian)
    residual = RESIDUAL.reshape(3, 2)
    flat = jacobian.reshape(6, 9)
    assert_close(flat_kernel(theta), flat @ flat.T)
    assert_close(
        ntk_loss(theta, residual, learning_rate=0.1, steps=1.0),
        oracles.ntk_loss_by_matrix_exponential(flat @ flat.T, RESIDUAL, 0.1, 1.0),
    )


def test_float32_kernels_are_decomposed_in_float64():
    expected = ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=10.0)
    got = ntk_loss(
        THETA.astype(np.float32), RESIDUAL.astype(np.float32), learning_rate=0.1, steps=10.0
    )
    assert_close(got, expected, rel=1e-6)  # the input's rounding


def test_rounding_below_zero_does_not_grow_with_time():
    jacobian = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
    theta = jacobian @ jacobian.T
    residual = np.ones(40, np.float32)
    report = kernel_report(theta)
    assert report.smallest_eigenvalue < 0  # float32 products of rank 3: so it is in fact
    assert report.is_psd
    losses = ntk_loss(theta, residual, learning_rate=1.0, steps=np.array([0.0, 1e3, 1e9]))
    assert np.all(np.diff(losses) <= 0)


def test_training_residual_equals_gradient_flow_at_every_time():
    times = np.array([[0.0, 1.0], [7.0, 30.0]])
    got = ntk_train_residual(THETA, RESIDUAL, learning_rate=0.1, steps=times)
    assert got.shape == (2, 2, 6)
    for index in np.ndindex(2, 2):
        flowed = oracles.gradient_flow_residual(THETA, RESIDUAL, 0.1, times[index])
        assert_close(got[index], flowed, rel=1e-7)  # the integrator's tolerance
    losses = ntk_loss(THETA, RESIDUAL, learning_rate=0.1, steps=times)
    assert_close(np.sum(got**2, axis=2), losses)
    as_test = ntk_test_residual(THETA, THETA, RESIDUAL, RESIDUAL, learning_rate=0.1, steps=times)
    assert_close(as_test, got)


def test_both_residuals_follow_gradient_descent_of_small_steps():
    rng = np.random.default_rng(5)
    train, test = rng.normal(size=(6, 9)) / 3, rng.normal(size=(4, 9)) / 3
    r, r_test, w = RESIDUAL, rng.normal(size=4), np.zeros(9)
    times, rate, seen = np.array([0.0, 2.0, 5.0]), 1e-4, []
    for step in range(50001):  # Euler's method: its error is of the order of rate
        if step in (0, 20000, 50000):
            seen.append((r + train @ w, r_test + test @ w))
        w = w - rate * train.T @ (r + train @ w)
    settings_ = {"learning_rate": 1.0, "steps": times}
    got = ntk_train_residual(train @ train.T, r, **settings_)
    got_test = ntk_test_residual(test @ train.T, train @ train.T, r_test, r, **settings_)
    assert_close(got, [a for a, _ in seen], rel=1e-3)  # of Euler's method
    assert_close(got_test, [b for _, b in seen], rel=1e-3)  # of Euler's method
    assert relative_difference(got_test[2], got_test[0]) > 0.1  # and it did move


@pytest.mark.parametrize("p", [20, 4])
def test_test_residual_equals_training_the_linear_model_by_gradient_flow(p):
    rng = np.random.default_rng(3)
    train, test = rng.normal(size=(6, p)) / np.sqrt(p), rng.normal(size=(5, p)) / np.sqrt(p)
    test_residual = rng.normal(size=5)
    # dw/dt = -eta J^T r moves the test outputs by J_test w; both residuals flow together
    joint = np.zeros((11, 11))
    joint[:6, :6], joint[6:, :6] = train @ train.T, test @ train.T
    both = np.concatenate([RESIDUAL, test_residual])
    times = [0.5, 9.0]
    flowed = [oracles.gradient_flow_residual(joint, both, 0.1, t)[6:] for t in times]
    got = ntk_test_residual(
        test @ train.T, train @ train.T, test_residual, RESIDUAL, learning_rate=0.1, steps=times
    )
    assert_close(got, flowed, rel=1e-7)  # the integrator's tolerance
    alone = ntk_test_residual(
        test @ train.T, train @ train.T, test_residual, RESIDUAL, learning_rate=0.1, steps=9.0
    )
    assert_close(alone, got[1])


def test_test_residual_keeps_the_shape_of_many_outputs():
    jacobian = np.random.default_rng(0).normal(size=(4, 2, 9))
    theta = np.einsum("iap,jbp->ijab", jacobian, jacobian)
    residual = np.random.default_rng(1).normal(size=(4, 2))
    got = ntk_test_residual(theta[3:, :3], theta[:3, :3], residual[3:], residual[:3],
                            learning_rate=0.1, steps=2.0)  # fmt: skip
    flat = ntk_test_residual(
        flat_kernel(theta[3:, :3]), flat_kernel(theta[:3, :3]), residual[3:].ravel(),
        residual[:3].ravel(), learning_rate=0.1, steps=2.0,
    )  # fmt: skip
    assert got.shape == (1, 2)
    assert_close(got.ravel(), flat)


def test_report_says_what_the_kernel_is():
    report = kernel_report(THETA)
    eigenvalues = np.linalg.eigvalsh(THETA)
    assert report.num_rows == 6
    assert report.is_psd
    assert_close(report.trace, np.trace(THETA))
    assert_close([report.smallest_eigenvalue, report.largest_eigenvalue], eigenvalues[[0, -1]])
    assert not kernel_report(np.diag([1.0, -0.1])).is_psd


def test_what_is_no_kernel_is_refused():
    good = {"learning_rate": 0.1, "steps": 1.0}
    skewed = THETA + np.triu(np.full((6, 6), 0.1), 1)
    for message, theta, residual, settings_ in (
        ("must be symmetric", skewed, RESIDUAL, good),
        ("must be finite", THETA * np.nan, RESIDUAL, good),
        ("positive semi-definite", THETA - 2 * np.eye(6), RESIDUAL, good),
        ("must have shape", THETA, RESIDUAL[:5], good),
        ("must have shape", THETA[:, :4], RESIDUAL, good),
        ("must have shape", np.ones((2, 2, 2)), RESIDUAL, good),
        ("`residual` must be finite", THETA, RESIDUAL * np.inf, good),
        ("`learning_rate` must be positive", THETA, RESIDUAL, {**good, "learning_rate": 0.0}),
        ("`steps` must be zero or positive", THETA, RESIDUAL, {**good, "steps": -1.0}),
        ("`steps` must be finite", THETA, RESIDUAL, {**good, "steps": np.inf}),
    ):
        # under the tests' own type checking a wrong shape stops one step earlier
        stopped = "Type-check error|" if message == "must have shape" else ""
        with pytest.raises((UserError, TypeError), match=stopped + message):
            ntk_loss(theta, residual, **settings_)


def test_directions_that_only_rounding_opens_never_decay():
    jacobian = np.random.default_rng(0).normal(size=(6, 4))
    jacobian[4:] = jacobian[:2]  # two examples occur twice
    theta = jacobian @ jacobian.T
    null = RESIDUAL - jacobian @ np.linalg.lstsq(jacobian, RESIDUAL, rcond=None)[0]
    assert np.linalg.eigvalsh(theta)[:2].any()  # not exactly zero, therefore
    for steps in (1e6, 1e18, 1e308):
        got = ntk_train_residual(theta, RESIDUAL, learning_rate=10.0, steps=steps)
        np.testing.assert_allclose(got, null, atol=1e-10)
        loss = ntk_loss(theta, RESIDUAL, learning_rate=10.0, steps=steps)
        np.testing.assert_allclose(loss, np.sum(null**2), rtol=1e-10)
        on_test = ntk_test_residual(
            theta, theta, RESIDUAL, RESIDUAL, learning_rate=10.0, steps=steps
        )
        np.testing.assert_allclose(on_test, null, atol=1e-9)


def test_small_eigenvalues_above_rounding_do_decay():
    assert ntk_loss(np.diag([1.0, 1e-9]), np.ones(2), learning_rate=1.0, steps=1e11) < 1e-80
