"""The binary in either order, its fine-tunes a formula: what it measures, a kill, bad input."""

import csv
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from lensllm_jax.measurement.measurement import MeasurementConfig
from tests.kings import write_kings

ROOT = Path(__file__).parents[2]
SIZES = [8, 16, 32, 64, 128]
# Of killed_selection's pool: b leaves Algorithm 1's line at 16; upwards b, c and d are predicted
# from 8, 16 and 32, where b's loss at 16 is no ground to drop it.
DOWNWARDS = [(name, size) for name in "abcd" for size in SIZES[::-1]]
MEASURED = {
    "downwards": [cell for cell in DOWNWARDS if cell != ("b", 8)],
    "upwards": [(name, size) for name in "abcd" for size in SIZES[:3]]
    + [(name, size) for size in SIZES[3:] for name in "ab"],
}
RESULTS = ("ranking.csv", "losses.csv", "orders.csv", "report.md", "report.html")


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture(scope="module")
def selections(tmp_path_factory):
    root = tmp_path_factory.mktemp("selections")
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.killed_selection", root],
        cwd=ROOT, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return root


@pytest.mark.slow
@pytest.mark.parametrize("order", MEASURED)
def test_an_order_measures_what_it_should_and_a_killed_run_nothing_twice(selections, order):
    outcome = json.loads((selections / f"{order}.json").read_text())
    assert outcome["codes"] == [0, 0]
    assert outcome["deaths"] >= len(MEASURED[order]) // 2
    for measured in outcome["measured"]:
        assert [tuple(cell) for cell in measured] == MEASURED[order]


@pytest.mark.slow
def test_a_race_ends_in_a_sentence_and_a_killed_one_in_the_same(selections):
    outcome = json.loads((selections / "race.json").read_text())
    assert outcome["codes"] == [0, 0]
    whole, killed = outcome["measured"]
    assert whole == killed
    assert outcome["deaths"] >= len(whole) // 2
    assert whole[:2] == [["a", 8], ["b", 8]]  # the first size of all
    for name in (*RESULTS, "answer.json"):
        text = (selections / "race-killed" / name).read_text()
        text = text.replace(str(selections / "race-killed"), str(selections / "race"))
        assert text == (selections / "race" / name).read_text(), name
    answer = json.loads((selections / "race" / "answer.json").read_text())
    assert (answer["candidate"], answer["unit"]) == ("a", "nats per byte")
    assert 0.5 < answer["probability"] <= 1.0
    assert answer["cost"] <= 0.31  # the kernels' cost is in it
    assert answer["answer"].startswith("Fine-tune a: best at 512 records with P ")
    ranking = rows(selections / "race" / "ranking.csv")
    assert ranking[0]["candidate"] == "a"
    assert sum(float(row["p_best"]) for row in ranking) == pytest.approx(1.0)
    assert ranking[0]["lensllm_loss"]
    for report in ("report.md", "report.html"):
        assert "Fine-tune a: best at 512" in (selections / "race" / report).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("order", [*MEASURED, "race"])
def test_the_winners_weights_are_in_their_folder_and_no_others_are_left(selections, order):
    losses = {row["config name"]: row for row in rows(selections / order / "losses.csv")}
    name = json.loads((selections / order / "answer.json").read_text())["candidate"]
    measured = [int(size) for size, loss in losses[name].items() if size.isdigit() and loss]
    for folder in (selections / f"{order}-model", selections / f"{order}-killed-model"):
        note = json.loads((folder / "fine_tuning.json").read_text())
        assert (note["candidate"], note["examples"]) == (name, max(measured))
        assert note["result"]["test_loss"] == float(losses[name][str(max(measured))])
        assert (folder / "model.txt").read_text() == name
    for kind in (order, f"{order}-killed"):
        answer = json.loads((selections / kind / "answer.json").read_text())
        assert answer["model"] == {"folder": f"{selections / kind}-model", "size": max(measured)}
        assert answer["answer"].endswith(f"records, is in {selections / kind}-model.")
        assert not list((selections / kind).glob("cells/**/*weights*"))


@pytest.mark.slow
@pytest.mark.parametrize("order", MEASURED)
def test_a_killed_run_ends_with_the_same_files(selections, order):
    whole, killed = selections / order, selections / f"{order}-killed"
    for name in RESULTS:
        text = (killed / name).read_text().replace(str(killed), str(whole))
        assert text == (whole / name).read_text(), name
    other = next(name for name in MEASURED if name != order)  # the control: orders differ
    assert (selections / other / "losses.csv").read_text() != (whole / "losses.csv").read_text()


@pytest.mark.slow
def test_costs_of_both_orders_are_the_hand_count_and_stand_in_every_report(selections):
    def kernel(number):  # 3 examples of 64 tokens, 3 x 4 / 2 products of two operations each
        return 6 * number * 3 * 64 + number * 3 * 4

    numbers = dict(zip("abcd", (1000, 2000, 3000, 4000), strict=True))
    cost = {
        order: sum(6 * numbers[name] * 10 * size for name, size in MEASURED[order])
        for order in MEASURED
    }
    cost["downwards"] += sum(map(kernel, numbers.values()))
    cost["upwards"] += kernel(1000) + kernel(2000)
    full = sum(6 * number * 10 * 512 for number in numbers.values())
    for order in MEASURED:
        found = {row["order"]: row for row in rows(selections / order / "orders.csv")}
        assert float(found[order]["low"]) == float(found[order]["high"]) == cost[order]
        assert float(found["full tuning"]["low"]) == full
        assert {row["order"] for row in found.values() if row["measured"] == "True"} == {order}
        other = next(name for name in MEASURED if name != order)
        assert float(found[other]["low"]) <= cost[other] <= float(found[other]["high"])
        for report in ("report.md", "report.html"):
            text = (selections / order / report).read_text()
            assert f"{100 * cost[order] / full:.1f}" in text
            assert "counted" in text
    # upwards c and d ended at 32, so whether Algorithm 1 would stop at their fourth size is open
    counted = rows(selections / "upwards" / "orders.csv")[0]
    assert float(counted["low"]) == cost["downwards"] - 6 * (3000 + 4000) * 10 * 8
    assert float(counted["high"]) == cost["downwards"]


@pytest.mark.slow
def test_dropped_candidates_stand_last_without_a_prediction(selections):
    ranking = rows(selections / "upwards" / "ranking.csv")
    assert [row["rank"] for row in ranking] == ["1", "2", "3", "4"]
    assert [row["candidate"] for row in ranking][2:] == ["c", "d"]
    assert [row["dropped_at"] for row in ranking] == ["", "", "32", "32"]
    assert [row["sizes_paid"] for row in ranking] == ["5", "5", "3", "3"]
    assert all((row["predicted_loss"] == "") == bool(row["dropped_at"]) for row in ranking)
    assert "## Dropped" in (selections / "upwards" / "report.md").read_text()
    assert "dropped_at" not in rows(selections / "downwards" / "ranking.csv")[0]


@pytest.mark.slow
def test_a_folder_records_every_setting(selections):
    for order in MEASURED:
        settings = json.loads((selections / order / "run.json").read_text())["settings"]
        assert (settings["order"], settings["keep"]) == (order, 0.5)
        assert {field.name for field in dataclasses.fields(MeasurementConfig)} < set(settings)


@pytest.mark.parametrize(
    ("flag", "named"), [("--order=sideways", "order"), ("--keep=0", "`keep` must be above 0")]
)
def test_a_wrong_order_or_share_is_one_line_and_leaves_nothing(flag, named, tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "experiments.select_model", f"--task={write_kings(tmp_path, 300)}",
         "--candidates=zoo/gpt2-xs", "--budget_size=128", "--smallest_size=8", "--target_size=512",
         "--num_kernel_examples=3", f"--output_dir={tmp_path / 'out'}", flag],
        cwd=ROOT, capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert named in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "out").exists()
