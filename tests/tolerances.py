"""One tolerance a dtype; a looser one carries its reason on the line that uses it."""

import jax.numpy as jnp
import numpy as np


def rtol(dtype) -> float:
    """Relative tolerance of a well-conditioned computation in ``dtype``."""
    return {jnp.float32: 1e-5, jnp.float64: 1e-10}[jnp.dtype(dtype).type]


def relative_difference(got, expected) -> float:
    """Largest absolute difference over the largest magnitude expected."""
    got, expected = np.asarray(got, np.float64), np.asarray(expected, np.float64)
    assert got.shape == expected.shape, (got.shape, expected.shape)
    return float(np.max(np.abs(got - expected)) / np.max(np.abs(expected)))


def assert_close(got, expected, dtype=None, *, rel=None) -> None:
    """Asserts ``relative_difference(got, expected)`` is within the tolerance of ``dtype``."""
    limit = rel if rel is not None else rtol(dtype if dtype is not None else np.asarray(got).dtype)
    difference = relative_difference(got, expected)
    assert difference <= limit, f"relative difference {difference:.2e} > {limit:.0e}"
