"""Symmetric eigenproblems and matrix functions against scipy."""

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
