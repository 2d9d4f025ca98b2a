"""What the flags of binaries that read loss tables mean."""

import numpy as np
import pytest

from experiments.common import curves
from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable

LOSSES = np.array([[3.0, 2.0, np.nan, 1.0]])
TABLE = LossTable(("a",), np.array([0, 100, 200, 400]), LOSSES, np.ones(1), ("",), "toy")


def test_all_selectors_are_those_that_need_losses_alone():
    assert curves.selectors_of(["all"]) == list(curves.TABLE_SELECTORS)
    assert "subtuning" in curves.TABLE_SELECTORS
    assert "logme" not in curves.TABLE_SELECTORS
    assert curves.selectors_of(["ats", "pooled"]) == ["ats", "pooled"]
    with pytest.raises(checks.UserError, match=r"`selectors` must be one of .*, got 'logme'"):
        curves.selectors_of(["logme"])


def test_budgets_must_be_measured():
    curves.check_budgets(TABLE, curves.divisors_of(["4"]))
    for divisor in (2, 3):  # a loss is missing, a size is
        with pytest.raises(checks.UserError):
            curves.check_budgets(TABLE, [divisor])
    with pytest.raises(checks.UserError, match="`budgets` must be whole numbers from 2 up"):
        curves.divisors_of(["4", "1"])


@pytest.mark.parametrize(
    ("sizes", "divisors"),
    [
        ([0, 200, 400, 800, 1600], [2, 4, 8]),  # as in Getting started
        ([0, *(200 * 2**i for i in range(14))], [8, 16, 32, 64, 128, 256, 512]),
        ([100, 1000, 10_000], [10, 100]),
        ([0, 300, 400], []),
        ([400], []),
    ],
)
def test_budgets_by_default_are_those_that_are_there(sizes, divisors):
    losses = np.full((2, len(sizes)), 2.0)
    table = LossTable(("a", "b"), np.array(sizes), losses, np.ones(2), ("", ""), "toy")
    if divisors:
        assert curves.budgets_of(table, None) == divisors
        assert curves.budgets_of(table, [str(divisors[0])]) == divisors[:1]
    else:
        with pytest.raises(checks.UserError, match=r"`budgets` must be divisors of 400.* got none"):
            curves.budgets_of(table, None)


def test_files_that_differ_have_different_digests(tmp_path):
    paths = [str(tmp_path / name) for name in ("a", "b", "c")]
    for path, content in zip(paths, ("1", "1", "2"), strict=True):
        with open(path, "w") as file:
            file.write(content)
    a, b, c = curves.digests(paths).values()
    assert a == b != c
