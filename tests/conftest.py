"""Strict JAX for every test; x64 is chosen by ``JAX_ENABLE_X64`` or by the ``x64`` fixture."""

import os

import jax
import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Float64 for the length of one test, whatever the suite runs in."""
    before = jax.config.jax_enable_x64
    jax.config.update("jax_enable_x64", True)
    try:
        yield
    finally:
        jax.config.update("jax_enable_x64", before)


@pytest.fixture(autouse=True)
def _nothing_leaks():
    """A test that leaves JAX's global configuration changed fails."""
    names = ("jax_enable_x64", "jax_numpy_rank_promotion", "jax_numpy_dtype_promotion")
    before = {name: getattr(jax.config, name) for name in names}
    yield
    assert {name: getattr(jax.config, name) for name in names} == before
