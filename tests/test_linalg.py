"""Symmetric eigenproblems and matrix functions against scipy."""

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from lensllm_jax import linalg
from lensllm_jax.checks import UserError
from tests.tolerances import assert_close, relative_difference


def random_symmetric(n, seed=0):
    a = np.random.default_rng(seed).normal(size=(n, n))
    return a + a.T


def test_function_of_a_matrix_equals_scipys():
    a = random_symmetric(6)
    x = np.arange(6.0)
    eigen = linalg.symmetric_eigen(a)
    assert_close(linalg.apply_function(eigen, np.exp, x), scipy.linalg.expm(a) @ x)
    # negative control: the exponential of the entries is another matrix
    assert relative_difference(np.exp(a) @ x, scipy.linalg.expm(a) @ x) > 0.1


def test_decomposition_reconstructs_the_matrix_in_float64_whatever_it_is_given():
    a = random_symmetric(5).astype(np.float32)
    values, vectors = linalg.symmetric_eigen(a)
    assert values.dtype == vectors.dtype == np.float64
    assert_close((vectors * values) @ vectors.T, a.astype(np.float64))
    assert_close(vectors.T @ vectors, np.eye(5))


def test_asymmetry_counts_against_the_largest_entry():
    a = np.array([[4.0, 1.0], [3.0, 0.0]])
    assert linalg.asymmetry(a) == 0.5
    assert linalg.asymmetry(np.zeros((2, 2))) == 0.0


def test_asymmetric_or_infinite_matrices_are_refused():
    with pytest.raises(UserError, match="must be symmetric"):
        linalg.symmetric_eigen(np.array([[1.0, 1e-3], [0.0, 1.0]]))
    with pytest.raises(UserError, match="must be finite"):
        linalg.symmetric_eigen(np.array([[1.0, np.nan], [np.nan, 1.0]]))


def test_spectrum_decreases_from_the_squared_residual_and_is_inverted_by_steps():
    spectrum = linalg.NtkSpectrum(np.array([0.0, 1.0, 9.0]), np.array([1.0, 2.0, 4.0]), 0.01)
    times = np.array([0.0, 1.0, 10.0, 1e9])
    values = spectrum.loss(times)
    assert values[0] == 7.0
    assert values[-1] == 1.0
    assert np.all(np.diff(values) < 0)
    assert_close(spectrum.steps(float(values[2])), 10.0, rel=1e-9)  # bisection of a smooth function


def test_spectrum_refuses_a_negative_eigenvalue():
    with pytest.raises(UserError, match="must not be negative"):
        linalg.NtkSpectrum(np.array([-1.0, 1.0]), np.ones(2), 0.1)


def test_spectrum_refuses_a_time_before_the_start():
    spectrum = linalg.NtkSpectrum(np.ones(2), np.ones(2), 0.1)
    assert spectrum.loss(0.0) == 2.0
    with pytest.raises(UserError, match="`steps` must be zero or positive"):
        spectrum.loss([1.0, -1.0])


@pytest.mark.parametrize("depth", [2, 4, 7])
def test_gauss_and_radau_enclose_a_decaying_exponential(x64, depth):
    a = random_symmetric(9)
    a = a @ a / 9
    r = np.arange(1.0, 10.0)
    krylov = linalg.lanczos(lambda v: a @ v, jnp.asarray(r / np.linalg.norm(r)), depth)
    h, remainder = np.asarray(krylov.hessenberg), float(krylov.remainder)
    assert linalg.krylov_depth(np.diag(h), np.diag(h, -1), eps=1e-16) == depth
    t = linalg.tridiagonal(np.diag(h), np.diag(h, -1))
    assert_close(t, h, rel=1e-12)
    rules = linalg.gauss_quadrature(t), linalg.gauss_radau_quadrature(t, remainder, -1e-12)
    low, high = (r @ r * float(rule.weights @ np.exp(-rule.nodes)) for rule in rules)
    exact = float(r @ scipy.linalg.expm(-a) @ r)
    assert low <= exact <= high
    assert (high - low < 1e-2 * exact) == (depth > 2)  # two products leave a wide enclosure


def test_the_krylov_space_of_few_eigenvalues_ends_with_them(x64):
    a = np.diag([1.0, 1.0, 3.0, 3.0, 3.0])
    krylov = linalg.lanczos(lambda v: a @ v, jnp.ones(5), 4)
    h = np.asarray(krylov.hessenberg)
    assert linalg.krylov_depth(np.diag(h), np.diag(h, -1), eps=1e-16) == 2
    rule = linalg.gauss_quadrature(linalg.tridiagonal(np.diag(h)[:2], np.diag(h, -1)[:1]))
    assert_close(rule.nodes, np.array([1.0, 3.0]))
    assert_close(rule.weights, np.array([0.4, 0.6]))


def test_a_line_through_logarithms_extrapolates_a_power():
    sizes = np.array([100.0, 400.0, 1600.0])
    points = list(zip(sizes, 3.0 * sizes**-0.5, strict=True))
    assert_close(linalg.extrapolate_power(points, 6400.0), 3.0 * 6400.0**-0.5, np.float64)
    assert_close(linalg.fit_line(sizes, 2.0 * sizes + 1.0), (2.0, 1.0), np.float64)
    # negative control: the straight line of the values themselves goes elsewhere
    slope, intercept = linalg.fit_line(sizes, 3.0 * sizes**-0.5)
    assert abs(slope * 6400.0 + intercept - 3.0 * 6400.0**-0.5) > 0.05
