"""What the suite sets for every test."""

import warnings
from pathlib import Path

import jax
import pytest

from tests.conftest import COMPILED


def _compiled():
    def half_written(x):
        return 3.0 * x + 1.0

    return jax.jit(half_written)


def test_an_entry_that_another_process_has_not_finished_is_compiled_anew():
    folder = Path(str(COMPILED["jax_compilation_cache_dir"]))
    _compiled()(1.0)
    entries = list(folder.glob("jit_half_written-*-cache"))
    assert entries
    for entry in entries:
        entry.write_bytes(entry.read_bytes()[: entry.stat().st_size // 2])
    try:
        assert float(_compiled()(1.0)) == 4.0
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the entry is seen, and passed over
            with pytest.raises(UserWarning, match="Error reading persistent compilation cache"):
                _compiled()(1.0)
    finally:
        for entry in entries:
            entry.unlink()
