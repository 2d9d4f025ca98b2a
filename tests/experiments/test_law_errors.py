"""The binary on curves of known laws: its errors in sample and held out."""

import csv

import numpy as np
import pytest

from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.experiments.test_rank_curves import run_binary

SIZES = np.append(0, 200 * 2 ** np.arange(9))


@pytest.fixture
def curves(tmp_path):
    """Curves with a pre-power phase: the rectified law is exact, a power law is not."""
    B = np.linspace(40.0, 80.0, 4)[:, None]
    losses = B / (25.0 + SIZES**0.5) + 0.8
    names = tuple(f"m{i}" for i in range(4))
    table = LossTable(names, SIZES, losses, np.ones(4), ("",) * 4)
    write_loss_table(table, tmp_path / "toy.csv")
    return tmp_path / "toy.csv"


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def test_an_exact_law_has_no_error_and_a_wrong_one_has(curves, tmp_path):
    out = tmp_path / "out"
    done = run_binary("law_errors", f"--curves={curves}", "--budgets=4", f"--output_dir={out}")
    assert done.returncode == 0, done.stderr
    table = rows(out / "law_errors.csv")
    assert len(table) == 4 * 4 * 2  # candidates, laws, in sample and held out
    rmse = {
        (row["law"], row["budget_fraction"], row["candidate"]): float(row["rmse"]) for row in table
    }
    for (law, budget, candidate), error in rmse.items():
        exact = law in ("rectified", "lensllm")
        assert (error < 1e-6) == exact, (law, budget, candidate)
    compared = {(r["law"], r["budget_fraction"]): r for r in rows(out / "comparison.csv")}
    assert float(compared["power", "0.25"]["low"]) > 0
    assert abs(float(compared["lensllm", "0.25"]["less_rectified"])) < 1e-6


@pytest.mark.parametrize(
    ("budgets", "message"),
    [("1", "whole numbers from 2 up"), ("3", "`size` must be one of"), ("x", "whole numbers")],
)
def test_bad_input_is_one_line_and_exit_code_two(curves, tmp_path, budgets, message):
    out = tmp_path / "out"
    done = run_binary(
        "law_errors", f"--curves={curves}", f"--budgets={budgets}", f"--output_dir={out}"
    )
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not out.exists()
