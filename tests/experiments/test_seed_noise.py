"""Two seeds of one grid, against noise of a known size."""

import csv

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

MODULE = load("seed_noise").module
SIZES = np.array([0, 200, 400])


def write(path, losses, names=None):
    names = names or tuple(f"m{i}" for i in range(len(losses)))
    write_loss_table(
        LossTable(names, SIZES, losses, np.ones(len(losses)), ("",) * len(losses)), path
    )
    return str(path)


@pytest.fixture
def compare(tmp_path):
    def of(first, second, **names):
        MODULE.CURVES.value = write(tmp_path / "first.csv", first)
        MODULE.AGAIN.value = write(tmp_path / "second.csv", second, **names)
        MODULE.OUTPUT_DIR.value = str(tmp_path / "out")
        MODULE.main([])
        with open(tmp_path / "out" / "noise.csv") as file:
            return list(csv.DictReader(file))

    return of


def test_the_noise_of_one_measurement_is_found_and_a_common_shift_is_not_taken_for_it(compare):
    rng = np.random.default_rng(0)
    truth = rng.uniform(3, 5, (400, 1)) - np.array([0.0, 0.5, 1.0])  # losses fall with data
    sigma = np.array([0.001, 0.01, 0.1])
    seeds = [truth + sigma * rng.standard_normal(truth.shape) for _ in range(2)]
    rows = compare(seeds[0], seeds[1] + 0.5)
    for row, expected in zip(rows, sigma, strict=True):
        assert float(row["sd_low"]) < float(row["sd"]) < float(row["sd_high"])
        assert float(row["sd"]) == pytest.approx(expected, rel=0.1)  # 400 candidates: 3.5 % each
        assert float(row["mean_difference"]) == pytest.approx(0.5, abs=4 * expected / 20 * 2**0.5)
    pearsons = [float(row["pearson"]) for row in rows]
    assert pearsons == sorted(pearsons, reverse=True)
    assert [row["size"] for row in rows] == ["0", "200", "400"]


def test_nine_intervals_of_ten_hold_the_noise():
    rng = np.random.default_rng(1)
    covered = [
        row["sd_low"] < 0.02 < row["sd_high"]
        for row in (MODULE.row_of(1, *(0.02 * rng.standard_normal((2, 8)))) for _ in range(2000))
    ]
    assert abs(np.mean(covered) - 0.9) < 0.025  # four standard errors of 2,000 draws


def test_the_selection_of_the_second_seed_is_evaluated_by_the_first(compare):
    first = np.array([[3.0, 3.0, 3.0], [4.0, 4.0, 4.0], [5.0, 5.0, 5.0]])
    second = np.array([[3.0, 4.5, 5.0], [4.0, 4.0, 4.0], [5.0, 5.0, 3.0]])
    rows = compare(first, second)
    assert [float(row["relative_accuracy"]) for row in rows] == [100.0, 50.0, 0.0]
    assert float(rows[2]["pearson"]) == pytest.approx(-100.0)


def test_tables_that_share_too_little_are_refused(compare):
    losses = np.ones((3, 3)) * np.arange(1.0, 4.0)[:, None]
    with pytest.raises(checks.UserError, match="got 2 and 3"):
        compare(losses, losses, names=("m0", "m1", "other"))
