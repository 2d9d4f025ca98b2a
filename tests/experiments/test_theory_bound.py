"""The binary on little data: what it writes, and what it answers to bad input."""

import csv
import json
import shutil

import numpy as np
import pytest

from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.experiments.test_rank_curves import run_binary

SMALL = {
    "candidate": "zoo/gpt2-xs", "task": "pydoc", "sizes": "8,16", "num_examples": 4,
    "num_matvecs": 2, "num_probes": 2, "max_epochs": 1, "batch_size": 4, "max_length": 16,
    "only": "attention/query/kernel",
}  # fmt: skip


def theory_bound(out, **changes):
    settings = {**SMALL, "output_dir": out, **changes}
    return run_binary("theory_bound", *(f"--{name}={value}" for name, value in settings.items()))


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """The folder of one run."""
    out = tmp_path_factory.mktemp("theory") / "out"
    done = theory_bound(out)
    assert done.returncode == 0, done.stderr
    return out


@pytest.mark.slow
def test_a_run_writes_every_term_and_goes_on_without_measuring_again(measured):
    out = measured
    names = {path.name for path in out.iterdir()}
    assert names == {
        "blocks.csv", "bound.png", "cells", "decays.png", "run.json", "theory.csv", "theory.json",
    }  # fmt: skip
    found = rows(out / "theory.csv")
    assert [row["size"] for row in found] == ["8", "16"]
    for row in found:
        assert float(row["sum_h"]) > 0
        assert float(row["sum_h_plain"]) <= float(row["sum_h"]) + float(row["sum_h_error"])
        assert float(row["trace_low"]) <= float(row["trace"]) <= float(row["trace_high"])
        assert float(row["empirical_term"]) == pytest.approx(1.1 * float(row["training_loss"]))
        assert float(row["loss_bound"]) >= float(row["training_loss"])
    assert len(rows(out / "blocks.csv")) == 2 * 2  # sizes, layers
    summary = json.loads((out / "theory.json").read_text())
    assert "interval of beta_2" in summary["corollary_1"]["consistency"]  # two sizes decide nothing
    assert summary["decays"]["sum_h"]["low"] is None
    again = theory_bound(out)
    assert again.returncode == 0, again.stderr
    assert rows(out / "theory.csv") == found


@pytest.mark.slow
def test_several_candidates_have_a_folder_each_and_one_table_of_decays(measured, tmp_path):
    """Their cells are another run's, so that nothing is measured here."""
    names = ["zoo/gpt2-xs", "zoo/opt-xs"]
    run = json.loads((measured / "run.json").read_text())
    run["settings"]["candidates"] = names
    for name in names:
        shutil.copytree(measured / "cells", tmp_path / name.replace("/", "--") / "cells")
    (tmp_path / "run.json").write_text(json.dumps(run))
    done = theory_bound(tmp_path, candidate=",".join(names))
    assert done.returncode == 0, done.stderr
    found = rows(tmp_path / "decays.csv")
    assert [row["candidate"] for row in found] == [name for name in names for _ in range(4)]
    alone = json.loads((measured / "theory.json").read_text())
    assert float(found[0]["exponent"]) == alone["decays"]["sum_h"]["exponent"]
    assert found[0]["consistency"] == alone["corollary_1"]["consistency"]
    assert (tmp_path / "zoo--opt-xs" / "bound.png").exists()


def test_phases_of_curves_are_found_without_a_model(tmp_path):
    sizes = np.append(0, 200 * 2 ** np.arange(10))
    x = np.log(np.maximum(sizes, 100) / 3200.0)
    kinked = np.exp(np.where(x < 0, -0.02, -0.3) * x)
    wiggle = 1 + 0.003 * np.sin(3.0 * np.arange(len(sizes)))
    losses = np.stack([kinked * wiggle, np.exp(-0.1 * x) * wiggle])
    table = LossTable(("kinked", "straight"), sizes, losses, np.ones(2), ("", ""))
    write_loss_table(table, tmp_path / "toy.csv")
    out = tmp_path / "out"
    done = run_binary("theory_bound", f"--curves={tmp_path / 'toy.csv'}", f"--output_dir={out}")
    assert done.returncode == 0, done.stderr
    kink, line = rows(out / "phases.csv")
    assert "steeper power phase" in kink["phase"]
    assert float(kink["segmented_low"]) <= 3300
    assert float(kink["segmented_high"]) >= 3100
    assert "steeper power phase" not in line["phase"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epsilon": 1.0}, "`epsilon` must lie between 0 and 1"),
        ({"delta": 0.0}, "`delta` must lie between 0 and 1"),
        ({"sizes": "8"}, "`sizes` must be two or more"),
        ({"sizes": "8,many"}, "`sizes` must be whole numbers"),
        ({"candidate": "zoo/none"}, "`candidate` must be one of"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_two(tmp_path, changes, message):
    done = theory_bound(tmp_path / "out", **changes)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
