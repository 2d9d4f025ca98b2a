"""The binary on little data: what it writes, and what it answers to bad input."""

import csv
import json
import shutil

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.measurement.pool import describe_pool
from tests.experiments.test_rank_curves import run_binary
from tests.messages.binaries import load

SMALL = {
    "candidate": "zoo/gpt2-xs", "task": "pydoc", "sizes": "8,16", "num_examples": 4,
    "num_matvecs": 2, "num_probes": 2, "max_epochs": 1, "batch_size": 4, "max_bytes": 40,
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
    table = rows(out / "theory.csv")
    assert [row["size"] for row in table] == ["8", "16"]
    for row in table:
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
    assert rows(out / "theory.csv") == table


@pytest.mark.slow
def test_several_candidates_have_a_folder_each_and_one_table_of_decays(measured, tmp_path):
    """Their cells are another run's, so that nothing is measured here."""
    names = ["zoo/gpt2-xs", "zoo/opt-xs"]
    run = json.loads((measured / "run.json").read_text())
    run["settings"]["candidates"] = names
    digests = {name: summary.sha256 for name, summary in describe_pool(names).items()}
    run["settings"]["candidates_sha256"] = digests
    for name in names:
        shutil.copytree(measured / "cells", tmp_path / name.replace("/", "--") / "cells")
    (tmp_path / "run.json").write_text(json.dumps(run))
    done = theory_bound(tmp_path, candidate=",".join(names))
    assert done.returncode == 0, done.stderr
    table = rows(tmp_path / "decays.csv")
    assert [row["candidate"] for row in table] == [name for name in names for _ in range(4)]
    alone = json.loads((measured / "theory.json").read_text())
    assert float(table[0]["exponent"]) == alone["decays"]["sum_h"]["exponent"]
    assert table[0]["consistency"] == alone["corollary_1"]["consistency"]
    assert (tmp_path / "zoo--opt-xs" / "bound.png").exists()


def cells_of(sizes, powers, losses):
    """Cells in which every quantity is an exact power of n."""
    terms = {"training_loss": 1.0, "empirical_term": 1.1, "confidence_term": 0.1}
    return [
        {
            "size": size, "test_loss": loss, "loss_bound": 9.0, "blocks": {"a": {}, "b": {}},
            "sum_h_error": 0.1, "curvature_term": 0.3, "seconds": 1.0, **terms,
            **{name: 5.0 * size**power for name, power in powers.items()},
        }
        for size, loss in zip(sizes, losses, strict=True)
    ]  # fmt: skip


def test_decays_the_corollary_and_the_transition_follow_from_the_cells():
    module = load("theory_bound").module
    sizes = [200 * 2**k for k in range(10)]
    x = np.log(np.array(sizes) / 3200.0)
    wiggle = 1 + 0.003 * np.sin(3.0 * np.arange(10))
    bent = np.exp(np.where(x < 0, -0.02, -0.3) * x) * wiggle
    powers = {"sum_h": -0.2, "trace": 0.1, "gradient_variance": 0.0, "squared_displacement": 0.9}
    module.CONSTANT.value = 40.0
    summary = module.summarise(cells_of(sizes, powers, bent))
    for quantity, power in powers.items():
        decay = summary["decays"][quantity]
        assert decay["exponent"] == pytest.approx(-power, abs=1e-9)
        assert decay["low"] <= -power + 1e-9
        assert decay["high"] >= -power - 1e-9
    corollary = summary["corollary_1"]
    assert corollary["consistency"].startswith("0 < beta_2 < 1/2")
    assert corollary["beta_3"] == pytest.approx(0.6)
    assert corollary["C_3"] == pytest.approx((9.0 * 2 * 5.0) ** 0.5)
    n = corollary["crossing"]
    assert corollary["C_3"] * n**-0.6 == pytest.approx(40.0 * n**-0.75)
    segmented = summary["phases"]["segmented"]
    assert "steeper power phase" in segmented["phase"]
    assert 3000 <= segmented["low"] <= 3200 <= segmented["high"] <= 3400
    straight = module.summarise(cells_of(sizes, powers, np.exp(-0.1 * x) * wiggle))
    assert "steeper power phase" not in straight["phases"]["segmented"]["phase"]


def test_rows_of_decays_leave_open_what_has_no_fit():
    module = load("theory_bound").module
    powers = {"sum_h": 0.3, "trace": 0.1, "gradient_variance": 0.0, "squared_displacement": 0.9}
    cells = cells_of([100, 200, 400], powers, [3.0, 2.0, 1.5])
    cells[1]["trace"] = -1.0
    sum_h, trace, *_ = module.decay_rows({"a": module.summarise(cells)})
    assert sum_h["coefficient"] == pytest.approx(5.0)
    assert "grows with n" in sum_h["consistency"]
    assert sum_h["beta_3"] == pytest.approx(0.35)
    assert (trace["exponent"], trace["C_3"], trace["consistency"]) == ("", "", "")


REFUSED = [
    ({"epsilon": 1.0}, "`epsilon` must lie between 0 and 1"),
    ({"delta": 0.0}, "`delta` must lie between 0 and 1"),
    ({"num_examples": 3}, "`num_examples` must be 4 or more, got 3"),
    ({"num_matvecs": 0}, "`num_matvecs` must be positive"),
    ({"num_probes": 1}, "`num_probes` must be 2 or more, got 1"),
    ({"megabytes": 1}, "`megabytes` must be 5 or more for 32 products in the largest block"),
    ({"remainder_constant": -1.0}, "`remainder_constant` must be positive"),
    ({"sizes": ["16"]}, "`sizes` must be two or more"),
    ({"sizes": ["16", "many"]}, "`sizes` must be whole numbers"),
    ({"only": "nothing"}, "`only` must be part of a weight's name"),
    ({"candidates": "zoo/none"}, "`candidate` must be one of"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED)
def test_bad_input_is_refused_before_anything_is_measured_or_written(tmp_path, changes, message):
    out, task = tmp_path / "out", tmp_path / "task.jsonl"
    task.write_text("".join(f'{{"prompt": "p{i}", "target": "t{i}"}}\n' for i in range(40)))
    flags = {
        "candidates": "zoo/gpt2-xs", "task": str(task), "output_dir": str(out),
        "sizes": ["8", "16"], "num_examples": 4, **changes,
    }  # fmt: skip
    with pytest.raises(checks.UserError, match=message):
        load("theory_bound", **flags).module.main([])
    assert not out.exists()


def test_bad_input_is_one_line_and_exit_code_two(tmp_path):
    done = theory_bound(tmp_path / "out", delta=0.0)
    assert done.returncode == 2
    assert done.stderr.strip() == "error: `delta` must lie between 0 and 1, got 0.0"
    assert not (tmp_path / "out").exists()
