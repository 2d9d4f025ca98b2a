"""Numbers as people write them, read only where they mean one thing."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.selection.numbers import read_cells, whole_number


@given(st.integers(0, 10**12))
def test_a_whole_number_is_read_with_and_without_groups(number):
    assert whole_number(str(number)) == number
    if len(f"{number:,}") <= 15:
        assert whole_number(f"{number:,}") == number


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("0.2k", 200),
        ("1.3B", 1_300_000_000),
        ("124 M", 124_000_000),
        ("0200", 200),
        ("2T", 2 * 10**12),
    ],
)
def test_suffixes(text, number):
    assert whole_number(text) == number


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1.5",
        "-1",
        "1_000",
        "1,60",
        "1e3",
        "k",
        "12,3456",
        "\u0663",
        "9" * 16,
        "1.3 GB",
        "999999999999t",
    ],
)
def test_what_is_no_whole_number(text):
    assert whole_number(text) is None


@given(st.lists(st.one_of(st.floats(1e-9, 1e9), st.none()), min_size=1))
def test_cells_are_read_with_a_point_and_with_a_comma(values):
    points = ["N/A" if v is None else repr(v) for v in values]
    assert read_cells(points) == values
    fixed = ["" if v is None else f"{v:.4f}" for v in values]
    assert read_cells([cell.replace(".", ",") for cell in fixed]) == read_cells(fixed)


@given(st.lists(st.text("0123456789.,%-eE+ nainf", max_size=9), max_size=5))
def test_any_cells_are_numbers_or_a_user_error(cells):
    try:
        values = read_cells(cells)
    except UserError:
        return
    assert len(values) == len(cells)
    assert not any(v is not None and math.isinf(v) for v in values)


def test_one_cell_settles_what_a_comma_means():
    assert read_cells(["3,214", "4,05"]) == [3.214, 4.05]
    assert read_cells(["3,214.5"]) == [3214.5]
    with pytest.raises(UserError, match="'3,214', whose comma may also group thousands"):
        read_cells(["3,214", "4,051"])
