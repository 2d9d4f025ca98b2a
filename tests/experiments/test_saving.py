"""The binary on tables made here: FLOPs by a count of their own, levels, the front, bad input."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.common.paper_plots import saving_figure
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.experiments.test_rank_curves import run_binary

ROOT = Path(__file__).parents[2]
SIZES = [200, 400, 800, 1600, 3200]
NAMES = ("a", "b", "c", "d")
NUM_PARAMS = {"a": 1e6, "b": 2e6, "c": 3e6, "d": 4e6}
# at 200 examples d leads and a is last; from 800 on the order is that of the end
LOSSES = {
    "a": [4.4, 3.6, 2.8, 2.3, 1.9],
    "b": [4.3, 3.7, 3.1, 2.6, 2.2],
    "c": [4.2, 3.8, 3.4, 3.0, 2.7],
    "d": [4.1, 3.9, 3.7, 3.5, 3.3],
}


@pytest.fixture
def curves(tmp_path):
    losses = np.array([[9.0, *LOSSES[name]] for name in NAMES])
    numbers = np.array([NUM_PARAMS[name] for name in NAMES])
    table = LossTable(NAMES, np.array([0, *SIZES]), losses, numbers, ("",) * 4)
    write_loss_table(table, tmp_path / "toy.csv")
    return tmp_path / "toy.csv"


def ledger(path, cells):
    lines = [f"{name},{size},{flops}" for (name, size), flops in cells.items()]
    path.write_text("\n".join(["candidate,size,flops", *lines]) + "\n")
    return path


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def points_of(curves, out, *more):
    flags = (f"--curves={curves}", "--selectors=subtuning,ats,zero_shot", f"--output_dir={out}")
    done = run_binary("saving", *flags, "--levels=90", *more)
    assert done.returncode == 0, done.stderr
    return {
        (row["selector"], round(3200 * float(row["budget_fraction"]))): row
        for row in rows(out / "saving.csv")
    }


def test_flops_are_those_of_a_count_by_hand_and_metrics_those_of_the_losses(curves, tmp_path):
    points = points_of(curves, tmp_path / "out")
    per_example = 6 * 512 * sum(NUM_PARAMS.values())
    for size in SIZES[:-1]:
        row = points["subtuning", size]
        assert float(row["flops"]) == per_example * size
        assert float(row["percent_of_full_tuning"]) == pytest.approx(100 * size / 3200)
        scores = [LOSSES[name][SIZES.index(size)] for name in NAMES]
        truth = [LOSSES[name][-1] for name in NAMES]
        expected = 100 * np.corrcoef(scores, truth)[0, 1]
        assert float(row["pearson"]) == pytest.approx(expected, rel=1e-5)  # six digits are written
        assert float(row["flops"]) > 0 == float(points["zero_shot", size]["flops"])
    assert float(points["ats", 400]["flops"]) == per_example * (200 + 400)
    # upwards: all four to 800 (line through 200, 400, 800), then the best three
    assert float(points["upwards", 800]["flops"]) == per_example * 1400
    assert float(points["upwards", 1600]["flops"]) == per_example * 1400 + 6 * 512 * 6e6 * 1600
    assert float(points["subtuning", 200]["pearson"]) < 0 < float(points["ats", 400]["pearson"])
    levels = {
        row["selector"]: row["budget_fraction"] for row in rows(tmp_path / "out/saving_levels.csv")
    }
    assert (levels["subtuning"], levels["zero_shot"]) == (str(400 / 3200), "")
    # drawn from the table that the run leaves, by what draws the paper's figure
    drawn = saving_figure(rows(tmp_path / "out/saving.csv"))
    assert (tmp_path / "out" / "saving.png").read_bytes() == drawn


def test_a_ledger_takes_the_place_of_assumed_tokens_and_must_be_whole(curves, tmp_path):
    cells = {(name, size): 7.0 * size for name in NAMES for size in SIZES}
    whole = ledger(tmp_path / "ledger.csv", cells)
    points = points_of(curves, tmp_path / "out", f"--ledger={whole}")
    assert float(points["ats", 400]["flops"]) == 4 * 7.0 * 600
    # next to a table whose fine-tunes were not counted, each keeps its own price
    other = tmp_path / "other" / "other.csv"
    other.parent.mkdir()
    other.write_text(curves.read_text())
    done = run_binary(
        "saving", f"--curves={other},{curves}", f"--ledger=,{whole}",
        f"--output_dir={tmp_path / 'both'}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    same = ("ats", points["ats", 400]["budget_fraction"])
    flops = {
        row["task"]: float(row["flops"])
        for row in rows(tmp_path / "both/saving.csv")
        if (row["selector"], row["budget_fraction"]) == same
    }
    assert flops["toy"] == 4 * 7.0 * 600 != flops["other"]
    del cells["c", 400]
    part = ledger(tmp_path / "part.csv", cells)
    done = run_binary(
        "saving", f"--curves={curves}", f"--ledger={part}", f"--output_dir={tmp_path / 'no'}"
    )
    assert done.returncode == 2
    assert "`ledger` must hold every fine-tune of toy, got none of ('c', 400)" in done.stderr
    assert not (tmp_path / "no").exists()


SCRIPT = """
import numpy as np
from experiments import saving
truth = np.arange(10.0)
draws = np.random.default_rng(1).integers(0, 10, (500, 10))
assert np.allclose(saving.resampled(3 * truth + 1, truth, draws), 100.0)
noise = np.random.default_rng(2).normal(size=10)
spread = saving.resampled(noise, truth, draws)
one = 100 * np.corrcoef(noise[draws[0]], truth[draws[0]])[0, 1]
assert np.isclose(spread[0], one) and np.ptp(spread) > 50
full = saving.Point("t", "subtuning", 10, 1e3, truth, "")
bad = saving.Point("t", "ats", 5, 9e2, noise, "")
row = saving.intervals(bad, [full], truth, draws, whole=True)
assert row["less_high"] < 0 and row["less_low"] < row["less_subtuning"] < row["less_high"]
same = saving.intervals(saving.Point("t", "ats", 5, 9e2, 2 * truth, ""), [full], truth, draws,
                        whole=True)
assert abs(same["less_low"]) < 1e-9 and abs(same["less_high"]) < 1e-9  # the control
def row(budget, pearson):
    return {"task": "t", "selector": "s", "budget_fraction": budget, "pearson": pearson,
            "flops": budget, "percent_of_full_tuning": 100 * budget}
falls_back = [row(0.125, 96.0), row(0.25, 80.0), row(0.5, 97.0)]
(level,) = saving.levels_of("t", falls_back, [95.0])
assert (level["budget_fraction"], level["saving_percent"]) == (0.5, 50.0)
(level,) = saving.levels_of("t", falls_back, [75.0])
assert level["budget_fraction"] == 0.125
(level,) = saving.levels_of("t", [row(0.5, float("nan"))], [1.0])
assert level["saving_percent"] == ""
assert saving.front([1.0, 2.0, 2.0], [1.0, float("nan"), 0.5]) == [True, False, False]
"""


def test_intervals_levels_and_front():
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--levels=high", "`levels` must be numbers above 0"),
        ("--levels=100", "`levels` must be numbers above 0"),
        ("--selectors=luck", "`selectors` must be one of"),
        ("--ledger=none.csv", "`ledger` must be a CSV"),
        ("--ledger=,none.csv", "`ledger` must name one per table, got 2 for 1 tables"),
        ("--keep=2", "`keep` must be above 0"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(curves, tmp_path, flag, message):
    done = run_binary("saving", f"--curves={curves}", f"--output_dir={tmp_path / 'out'}", flag)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
