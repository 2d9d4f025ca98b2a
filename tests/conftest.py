"""Strict JAX for every test; x64 is chosen by ``JAX_ENABLE_X64`` or by the ``x64`` fixture."""

import os
from pathlib import Path

import jax
import pytest

# Compiling is most of what the tests do: what one process compiled every later one reads, also
# the programs that tests start.
COMPILED = {
    "jax_compilation_cache_dir": str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"),
    "jax_persistent_cache_min_compile_time_secs": 0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
for name, value in COMPILED.items():
    jax.config.update(name, value)
    os.environ[name.upper()] = str(value)

os.environ.setdefault("HF_HUB_OFFLINE", "1")
jax.config.update("jax_numpy_rank_promotion", "raise")


# Each compiled program holds memory maps, of which a process may have 65,530.  A worker once
# crashed where JAX writes a program to the cache; whether maps were the cause is not known.
MAX_MAPS = 20_000


@pytest.fixture(autouse=True, scope="module")
def _few_memory_maps():
    """Compiled programs are dropped between modules once they are many."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and len(maps.read_text().splitlines()) > MAX_MAPS:
        jax.clear_caches()


def pytest_collection_modifyitems(config, items):
    """Tests that choose float64 are those of ``make test``: a suite in float64 leaves them out."""
    if not jax.config.jax_enable_x64:
        return
    same = {
        item
        for item in items
        if "x64" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("float64")
    }
    if len(same) < len(items):  # asked for by name, they run
        config.hook.pytest_deselected(items=[*same])
        items[:] = [item for item in items if item not in same]


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
