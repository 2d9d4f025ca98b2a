"""KL, Theorem 2 and its optimal covariance, as identities."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensllm_jax import checks
from lensllm_jax.theory.bound import (
    _inner_product,
    eq_14,
    noise_stability,
    optimal_covariance,
    theorem_2,
    weights_of_eq_14,
)
from lensllm_jax.theory.kl import block_kl, gaussian_kl
from tests import oracles
from tests.tolerances import assert_close

seeds = st.integers(0, 2**32 - 1)
many = settings(deadline=None, max_examples=50)


def positive_definite(rng, d):
    root = rng.standard_normal((d, d + 2))
    return root @ root.T / d + 0.1 * np.eye(d)


@many
@given(seeds, st.integers(1, 6))
def test_kl_is_the_general_formula_at_equal_covariances(seed, d):
    rng = np.random.default_rng(seed)
    start, v, full = rng.standard_normal(d), rng.standard_normal(d), positive_definite(rng, d)
    for covariance, dense in (
        (full, full),
        (np.diag(full).copy(), np.diag(np.diag(full))),
        (np.array(0.7), 0.7 * np.eye(d)),
    ):
        expected = oracles.gaussian_kl(start + v, dense, start, dense)
        # the general formula subtracts d from a trace of d
        assert abs(gaussian_kl(v, covariance) - expected) <= 1e-9 * (1 + abs(expected))


def test_kl_sums_over_blocks_that_differ_in_size():
    parts = [np.ones(2), np.ones(3)]
    variances = [np.array(1.0), np.full(3, 0.5)]
    whole = gaussian_kl(np.ones(5), np.diag([1.0, 1.0, 0.5, 0.5, 0.5]))
    assert_close(block_kl(parts, variances), whole, np.float64)


@many
@given(seeds, st.integers(1, 6), st.floats(0.05, 0.95))
def test_no_covariance_beats_the_infimum_and_the_optimal_one_comes_near(seed, d, epsilon):
    rng = np.random.default_rng(seed)
    v, hessian = rng.standard_normal(d), positive_definite(rng, d)
    a, b = weights_of_eq_14(num_examples=100, epsilon=epsilon, loss_bound=3.0)

    def objective(covariance):
        return a * _inner_product(covariance, hessian) + 2 * b * gaussian_kl(v, covariance)

    ridge = 1e-4
    best, infimum = optimal_covariance(v, hessian, a=a, b=b, ridge=ridge)
    for other in (positive_definite(rng, d), np.array(0.3), rng.uniform(0.1, 1.0, d), best):
        assert objective(other) >= infimum * (1 - 1e-9)
    # sqrt(ab) |u| (2 + ridge d - ridge / (1 + ridge))
    assert_close(objective(best), infimum * (1 + 0.5 * ridge * (d - 1 / (1 + ridge))), rel=1e-6)


def test_eq_14_at_the_optimal_covariance_is_theorem_2():
    rng = np.random.default_rng(0)
    settings = {"num_examples": 5000, "epsilon": 0.2, "loss_bound": 6.0}
    a, b = weights_of_eq_14(**settings)
    inner = kl = 0.0
    h = []
    for d in (3, 5):
        v, hessian = rng.standard_normal(d), positive_definite(rng, d)
        covariance, _ = optimal_covariance(v, hessian, a=a, b=b, ridge=1e-7)
        inner, kl = inner + _inner_product(covariance, hessian), kl + gaussian_kl(v, covariance)
        h.append(v @ hessian @ v)
    bound = theorem_2(1.5, np.array(h), **settings)
    terms = eq_14(1.5, inner, kl, **settings)
    assert_close(terms.sum(), bound.known, rel=1e-6)  # the ridge keeps it off the infimum
    assert_close(terms[0], bound.empirical, np.float64)


@many
@given(seeds)
def test_noise_stability_holds_with_equality_for_a_quadratic_loss_and_taylors_half(seed):
    rng = np.random.default_rng(seed)
    hessian, covariance = positive_definite(rng, 4), positive_definite(rng, 4)
    # E (z^T H z / 2) over z ~ N(0, Sigma) is <Sigma, H> / 2, exactly
    root = np.linalg.cholesky(covariance)
    exact = 0.5 * np.trace(root.T @ hessian @ root)
    first, remainder = noise_stability(covariance, hessian, constant=2.0, taylor=True)
    assert_close(first, exact, np.float64)
    assert noise_stability(covariance, hessian, constant=2.0)[0] == 2 * first
    assert_close(remainder, 2.0 * np.sum(covariance**2) ** 0.75, np.float64)
    same = noise_stability(np.array(0.3), hessian, constant=1.0)
    assert_close(same, noise_stability(0.3 * np.eye(4), hessian, constant=1.0), np.float64)


@many
@given(seeds, st.integers(1, 5), st.floats(0.0, 6.3))
def test_noise_stability_bounds_a_loss_that_is_no_quadratic_and_needs_h_plus(seed, d, phase):
    """Loss cos(a^T w): its mean under noise, Hessian and third derivatives are known."""
    rng = np.random.default_rng(seed)
    a, covariance = rng.standard_normal(d), 0.1 * positive_definite(rng, d)
    variance = a @ covariance @ a
    rise = np.cos(phase) * np.expm1(-0.5 * variance)
    hessian = -np.cos(phase) * np.outer(a, a)
    # |third derivative| <= |a|^3, and E |z|^3 <= (E |z|^4)^(3/4) <= ((d + 2) |Sigma|_F^2)^(3/4)
    constant = np.linalg.norm(a) ** 3 * (d + 2) ** 0.75 / 6
    bounds = {
        taylor: sum(noise_stability(covariance, hessian, constant=constant, taylor=taylor))
        for taylor in (True, False)
    }
    assert rise <= bounds[True] + 1e-12
    if np.cos(phase) <= 0:  # H is its own positive part
        assert rise <= bounds[False] + 1e-12


def test_noise_stability_without_taylors_half_is_false_for_negative_curvature():
    covariance, hessian = np.array([[1e-4]]), np.array([[-1.0]])
    rise = np.expm1(-0.5 * covariance[0, 0])  # of cos at its top
    constant = 3**0.75 / 6
    assert rise > sum(noise_stability(covariance, hessian, constant=constant))
    assert rise <= sum(noise_stability(covariance, np.zeros((1, 1)), constant=constant))


def test_the_bound_without_its_constant_is_not_called_a_bound():
    settings = {"num_examples": 100, "epsilon": 0.1, "loss_bound": 4.0}
    h = np.array([0.25, 1.0])
    bound = theorem_2(1.0, h, **settings)
    assert bound.total is None
    assert bound.remainder is None
    assert_close(bound.curvature, 1.1 * 2.0 * 1.5 / 10.0, np.float64)
    assert_close(bound.confidence, 1.1**2 * 4.0 * math.log(100) / (2 * 0.1 * 100), np.float64)
    whole = theorem_2(1.0, h, remainder_constant=2.0, **settings)
    assert_close(whole.total, bound.known + 2.0 * 100**-0.75, np.float64)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` must lie between 0 and 1"),
        ({"epsilon": 1.0}, "`epsilon` must lie between 0 and 1"),
        ({"delta": 0.0}, "`delta` must lie between 0 and 1"),
        ({"delta": 1.5}, "`delta` must lie between 0 and 1"),
        ({"loss_bound": math.inf}, "needs a bounded loss"),
        ({"loss_bound": math.nan}, "needs a bounded loss"),
        ({"loss_bound": 0.5}, "must be at least the loss seen"),
        ({"num_examples": 0}, "`num_examples` must be positive"),
        ({"h": np.array([-1.0])}, "positive part"),
        ({"h": np.array([np.nan])}, "`h` must be finite"),
    ],
)
def test_bad_input_is_one_clear_error(changes, message):
    given_ = {"num_examples": 100, "epsilon": 0.1, "loss_bound": 4.0, "h": np.ones(2), **changes}
    with pytest.raises(checks.UserError, match=message):
        theorem_2(1.0, given_.pop("h"), **given_)


def test_a_loss_without_a_bound_has_no_theorem():
    with pytest.raises(checks.UserError, match="needs a bounded loss; clip the loss"):
        theorem_2(1.0, np.ones(2), num_examples=100, epsilon=0.1)


@pytest.mark.parametrize("changes", [{"epsilon": 0.0}, {"delta": 1.0}, {"loss_bound": math.inf}])
def test_eq_14_refuses_what_theorem_2_refuses(changes):
    given_ = {"num_examples": 100, "epsilon": 0.1, "loss_bound": 4.0, **changes}
    with pytest.raises(checks.UserError, match=f"`{next(iter(changes))}` must"):
        eq_14(1.0, 0.1, 2.0, **given_)


@pytest.mark.parametrize(
    ("covariance", "message"),
    [
        (np.array(0.0), "must be positive"),
        (np.array([1.0, -1.0]), "must be positive"),
        (np.ones((2, 2)), "positive definite"),
        (np.array([[1.0, 0.5], [0.0, 1.0]]), "symmetric"),
        (np.ones(3), r"shape \(2,\)"),
        (np.array([1.0, np.inf]), "must be finite"),
    ],
)
def test_covariances_that_are_none_are_refused(covariance, message):
    with pytest.raises(checks.UserError, match=message):
        gaussian_kl(np.ones(2), covariance)


def test_a_displacement_of_zero_has_no_optimal_covariance():
    with pytest.raises(checks.UserError, match="no weight moved"):
        optimal_covariance(np.zeros(2), np.eye(2), a=1.0, b=1.0)
