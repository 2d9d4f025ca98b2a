"""The binary on tables made here: what it writes, and what it answers to bad input."""

import csv
import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensllm_jax.selection.loss_table import LossTable, read_loss_table, write_loss_table

ROOT = Path(__file__).parents[2]


def run_binary(binary, *arguments):
    command = [sys.executable, "-m", f"experiments.{binary}", *map(str, arguments)]
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)


def run(*arguments):
    return run_binary("rank_curves", *arguments)


@pytest.fixture
def curves(tmp_path):
    sizes = np.append(0, 200 * 2 ** np.arange(9))
    slopes = np.linspace(0.1, 0.2, 5)[:, None]
    losses = 8.0 * (sizes + 60.0) ** -slopes
    names = tuple(f"m{i}" for i in range(5))
    table = LossTable(names, sizes, losses, np.arange(1.0, 6.0) * 1e6, ("",) * 5)
    write_loss_table(table, tmp_path / "toy.csv")
    return tmp_path / "toy.csv"


def test_a_run_writes_every_file_and_goes_on_only_with_the_same_settings(curves, tmp_path):
    out = tmp_path / "out"
    done = run(f"--curves={curves}", "--budgets=4,16", f"--output_dir={out}", "--ablation")
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {
        "ablation.csv",
        "report.html",
        "run.json",
        "selected.csv",
        "selection.csv",
        "toy_metrics.png",
        "toy_predicted.png",
    }
    with open(out / "selection.csv") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == [
        "task", "budget_fraction", "selector", "pearson", "relative_accuracy", "flops", "seconds",
    ]  # fmt: skip
    assert {row["budget_fraction"] for row in rows} == {"0.25", "0.0625"}
    assert all(-100 <= float(row["pearson"]) <= 100 for row in rows)
    with open(out / "ablation.csv") as file:
        ablated = list(csv.DictReader(file))
    assert len(ablated) == 3 * 5 * 2 * 2  # gammas, taus, budgets, selectors
    # the cell of the default gamma and tau is the run itself
    scores = {(r["selector"], r["budget_fraction"]): r["pearson"] for r in rows}
    for row in ablated:
        if (row["gamma"], row["tau"]) == ("3", "5.0"):
            assert row["pearson"] == scores[row["selector"], row["budget_fraction"]]
    other = run(f"--curves={curves}", "--budgets=4", f"--output_dir={out}")
    assert other.returncode == 2
    assert "name another folder" in other.stderr


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--budgets=3"], "must be one of"),
        (["--budgets=1"], "whole numbers from 2 up"),
        (["--budgets=x"], "whole numbers from 2 up"),
        (["--selectors=luck"], "`selectors` must be one of"),
        (["--curves=none.csv"], "no such file"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(curves, tmp_path, flags, message):
    done = run(f"--curves={curves}", f"--output_dir={tmp_path / 'out'}", *flags)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()


def test_one_candidate_is_no_ranking(curves, tmp_path):
    write_loss_table(read_loss_table(curves).select(("m0",)), tmp_path / "alone.csv")
    done = run(f"--curves={tmp_path / 'alone.csv'}", f"--output_dir={tmp_path / 'out'}")
    assert done.returncode == 2
    assert "must have two or more candidates, got 'm0'" in done.stderr
    assert not (tmp_path / "out").exists()


def test_accuracies_are_ranked_as_errors_if_that_is_said(curves, tmp_path):
    table = read_loss_table(curves)
    accuracies = dataclasses.replace(table, losses=1 - table.losses / 10)
    write_loss_table(accuracies, tmp_path / "accuracies.csv")
    flags = [f"--curves={tmp_path}/accuracies.csv", "--budgets=4", "--selectors=subtuning"]
    refused = run(*flags, f"--output_dir={tmp_path}/a")
    assert (refused.returncode, (tmp_path / "a").exists()) == (2, False)
    assert "5 of 5 rows that end above" in refused.stderr
    done = run(*flags, "--higher_is_better", f"--output_dir={tmp_path}/b")
    assert done.returncode == 0, done.stderr
    with open(tmp_path / "b" / "selected.csv") as file:
        (row,) = csv.DictReader(file)
    assert row["selected"] == "m4"  # the steepest
