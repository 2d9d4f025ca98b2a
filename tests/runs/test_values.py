"""A setting that a caller gives in Python is what its field declares, or refused by name."""

import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.runs.values import as_declared


@pytest.mark.parametrize(
    ("given", "declared", "read"),
    [
        (np.int64(3), int, 3),
        (np.float32(0.5), float, 0.5),
        (1, float, 1.0),
        (np.bool_(True), bool, True),
        (None, int | None, None),
        ("all", int | str | None, "all"),
        (8, int | str | None, 8),
        (range(3), tuple[int, ...], (0, 1, 2)),
        (np.array(3), int, 3),
        (np.array([200, 400]), tuple[int, ...], (200, 400)),
        ([], tuple[int, ...] | None, ()),
        ([1, 0.5], tuple[float, ...], (1.0, 0.5)),
    ],
)
def test_a_value_becomes_what_json_and_flags_make_of_it(given, declared, read):
    found = as_declared("x", given, declared)
    assert found == read
    assert type(found) is type(read)


def test_arrays_of_jax_are_numbers_and_lists():
    """Made here: a module that computes as it is imported keeps tests of clusters from forking."""
    becomes = test_a_value_becomes_what_json_and_flags_make_of_it
    becomes(jnp.float32(0.5), float | str, 0.5)
    becomes(jnp.array([200, 400]), tuple[int, ...], (200, 400))
    sizes = as_declared("x", jnp.array([200, 400]), tuple[int, ...])
    assert all(type(size) is int for size in sizes)


@pytest.mark.parametrize(
    ("given", "declared", "message"),
    [
        (2.0, int, "a whole number, got 2.0"),
        (True, int, "a whole number, got True"),
        (True, float, "a number, got True"),
        (1, bool, "True or False, got 1"),
        ("1e-3", float, "a number, got '1e-3'"),
        (b"prompt", str, "text, got b'prompt'"),
        (None, int, "a whole number, got None"),
        (2.5, int | str | None, "a whole number or text, got 2.5"),
        (20, tuple[int, ...], "a list of whole numbers, got 20"),
        ("0,200", tuple[int, ...], "a list of whole numbers, got '0,200'"),
        ([200, 1.5], tuple[int, ...], r"a list of whole numbers, got \[200, 1.5\]"),
        (10**400, float, "a number, got 1(0)*"),
        ({1: 2}, tuple[int, ...], "a list of whole numbers, got {1: 2}"),
    ],
)
def test_a_value_of_another_type_is_refused_by_name(given, declared, message):
    with pytest.raises(UserError, match=f"^`x` must be {message}$"):
        as_declared("x", given, declared)


def test_what_is_no_number_or_text_is_checked_where_it_is_used():
    thing = object()
    assert as_declared("x", thing, str | object) is thing
