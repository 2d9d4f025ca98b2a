"""Rankings of one pool under several settings, compared with what is known of the tables."""

import csv

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

MODULE = load("setting_ranks").module
NAMES = ("a", "b", "c", "d")
SIZES = np.array([0, 100, 200, 400])
SLOPES = np.array([0.1, 0.15, 0.2, 0.25])


def write(path, *, shift=0.0, order=slice(None), sizes=SIZES):
    """Power laws; the steepest is the best at every size."""
    losses = 8.0 * (sizes[None] + 50.0) ** -SLOPES[:, None] + shift
    table = LossTable(tuple(NAMES[order]), sizes, losses, np.ones(4), ("",) * 4)
    write_loss_table(table, path)
    return path


@pytest.fixture
def binary(tmp_path):
    MODULE.TRUTH.value = None
    MODULE.OUTPUT_DIR.value = str(tmp_path / "out")
    MODULE.SELECTED.value = ["subtuning"]
    return MODULE


def rows(tmp_path):
    with open(tmp_path / "out" / "settings.csv") as file:
        return list(csv.DictReader(file))


def test_a_setting_is_evaluated_by_the_truth_of_another(binary, tmp_path):
    good = write(tmp_path / "good.csv", sizes=SIZES[:3])
    bad = write(tmp_path / "bad.csv", order=slice(None, None, -1), sizes=SIZES[:3], shift=1.0)
    binary.CURVES.value = [f"good={good}", f"bad={bad}"]
    binary.TRUTH.value = str(write(tmp_path / "truth.csv"))
    binary.main([])
    by_setting = {(row["setting"], row["budget_size"]): row for row in rows(tmp_path)}
    assert set(by_setting) == {(s, b) for s in ("good", "bad") for b in ("100", "200")}
    assert {row["target_size"] for row in by_setting.values()} == {"400"}
    for budget in ("100", "200"):
        assert float(by_setting["good", budget]["pearson"]) > 99.0
        assert round(float(by_setting["good", budget]["relative_accuracy"]), 9) == 100.0
        # names the other way round: the worst candidate is picked
        assert float(by_setting["bad", budget]["pearson"]) < 0.0
        assert float(by_setting["bad", budget]["relative_accuracy"]) == 0.0
        means = (float(by_setting[s, budget]["mean_budget_loss"]) for s in ("bad", "good"))
        assert abs(next(means) - next(means) - 1.0) < 1e-9


def test_without_a_truth_the_largest_size_is_it(binary, tmp_path):
    binary.CURVES.value = [f"own={write(tmp_path / 'own.csv')}"]
    binary.main([])
    assert [(row["budget_size"], row["target_size"]) for row in rows(tmp_path)] == [
        ("100", "400"), ("200", "400"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("curves", "message"),
    [
        (["{0}"], "`curves` must be distinct labels"),
        (["a={0}", "a={0}"], "`curves` must be distinct labels"),
        (["a={1}"], "`curves` must hold three or more candidates and a size above 0"),
    ],
)
def test_what_is_no_setting_is_named(binary, tmp_path, curves, message):
    paths = write(tmp_path / "whole.csv"), write(tmp_path / "short.csv", sizes=SIZES[:2])
    binary.CURVES.value = [entry.format(*paths) for entry in curves]
    with pytest.raises(checks.UserError, match=message):
        binary.main([])
    binary.CURVES.value, binary.SELECTED.value = [f"a={paths[0]}"], ["logme"]
    with pytest.raises(checks.UserError, match="`selectors` must be some that read a loss table"):
        binary.main([])
    assert not (tmp_path / "out").exists()
