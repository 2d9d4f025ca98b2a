"""Phases of curves whose transition is known, and the figure of them."""

import csv

import numpy as np
import pytest

from experiments.common.paper_plots import phases_figure
from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

phase_transitions = load("phase_transitions").module

SIZES = np.append(0, 200 * 2 ** np.arange(7))
NOISE = np.exp(0.002 * np.array([1, -1, 1, 1, -1, -1, 1, -1]))


def test_the_table_says_one_piece_where_there_is_one_and_is_drawn(tmp_path):
    bent = (np.maximum(SIZES, 1) / 1600.0) ** np.where(SIZES < 1600, -0.02, -0.3)
    straight = np.append(9.0, 8.0 * SIZES[1:] ** -0.1)
    losses = np.stack([bent * NOISE, straight * NOISE])
    table = LossTable(("bent", "straight"), SIZES, losses, np.ones(2), ("", ""), "toy")
    write_loss_table(table, tmp_path / "toy.csv")
    flags = {"curves": [str(tmp_path / "toy.csv")], "output_dir": str(tmp_path / "out")}
    load("phase_transitions", **flags, quiet=True, num_resamples=10).module.main([])
    written = (tmp_path / "out" / "phases.csv").read_text()
    rows = list(csv.DictReader(written.splitlines()))
    assert [row["phase"] for row in rows] == ["TRANSITION", "ONE"]
    assert float(rows[0]["low"]) < 1600 < float(rows[0]["high"])
    assert float(rows[0]["high"]) < 1.1 * float(rows[0]["low"])
    picture = phases_figure(table, rows)
    assert picture[1:4] == b"PNG"
    assert picture == phases_figure(table, rows)


def test_too_few_sizes_are_refused():
    table = LossTable(("a",), SIZES[:5], np.ones((1, 5)), np.ones(1), ("",), "toy")
    with pytest.raises(checks.UserError, match="must have 6 sizes above 0, got 4 of 'a'"):
        phase_transitions._check(table)
