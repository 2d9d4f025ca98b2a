"""What the suite sets for every test."""

import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest

from tests.conftest import COMPILED, pytest_collection_modifyitems


class _Item:
    """A collected test."""

    def __init__(self, *fixturenames, marker=None):
        self.fixturenames, self._marker = fixturenames, marker

    def get_closest_marker(self, name):
        return name == self._marker or None


def _left_of(items):
    out = []
    hook = SimpleNamespace(pytest_deselected=lambda items: out.extend(items))
    left = [*items]
    pytest_collection_modifyitems(SimpleNamespace(hook=hook), left)
    assert {*left, *out} == {*items}
    return left


def test_a_suite_in_float64_leaves_out_what_float32_has_run(x64):
    either, same, long = _Item(), _Item("tmp_path", "x64"), _Item("x64", marker="float64")
    assert _left_of([either, same, long]) == [either, long]
    assert _left_of([same]) == [same]  # asked for by name


def test_a_suite_in_float32_leaves_out_nothing():
    items = [_Item(), _Item("x64"), _Item("x64", marker="float64")]
    with jax.enable_x64(False):
        assert _left_of(items) == items


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
