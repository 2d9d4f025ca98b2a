"""A race whose fine-tunes run elsewhere: whichever ends first, what fails, what race.csv says."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.measurement.jobs import RECORDS, JobResult, Measurer
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.runs import executors
from lensllm_jax.runs.executors import ExecutorConfig
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.racing import Workers, run_race
from lensllm_jax.runs.resume import CandidateRun, Cells
from lensllm_jax.runs.run_folder import RunFolder, read_rows
from lensllm_jax.selection.race import RaceRule

ROOT = Path(__file__).parent.parent.parent
SLOPES = {"a": 0.31, "b": 0.3, "c": 0.1}
RULE = RaceRule(target_size=1600, sizes=(50, 100, 200, 400, 800), max_cost=0.4, confidence=1.0)


class Elsewhere:
    """A race in a folder, whose fine-tunes end in another order or fail; losses by formula."""

    def __init__(self, folder, monkeypatch, *, backwards=False, failing=(), searched=0):
        self.backwards, self.failing, self.batches = backwards, failing, []
        self.searched = searched  # examples
        folder.mkdir()
        (folder / "kings.txt").write_text("\n".join(f"the {i} kings" for i in range(60)))
        self.task = load_task(folder / "kings.txt")
        self.cells = Cells(RunFolder.open(folder / "out", {}), Progress(total=1.0, quiet=True))
        monkeypatch.setattr(executors, "run", self.run)

    def run(self, executor, jobs, task, folder, *, on_progress):
        self.batches.append([(job.name, job.size) for job in jobs])
        for job in reversed(jobs) if self.backwards else jobs:
            loss = 9.0 * (1 + job.size) ** -SLOPES[job.name]
            cell = {"test_loss": loss, "num_tokens": job.size, "seconds": 1.0,
                    RECORDS: np.stack([loss + 0.01 * np.arange(4), np.ones(4)])}  # fmt: skip
            if self.searched:
                cell["rate_search"] = {"num_tokens": 1, "num_examples": self.searched}
            failed = (job.name, job.size) in self.failing
            yield JobResult(job, None, "no memory") if failed else JobResult(job, cell)

    def race(self):
        (described,), pool = describe_pool(["zoo/gpt2-xs"]).values(), {}
        for name in SLOPES:
            summary = dataclasses.replace(described, name=name)
            pool[name] = CandidateRun(
                summary, MeasurementConfig(), Measurer(self.task), self.cells,
                checkpoint_seconds=60.0,
            )  # fmt: skip
        workers = Workers(ExecutorConfig("local", 2), self.task, self.cells)
        return run_race(pool, RULE, workers, quiet=True)[0]


def test_the_order_in_which_fine_tunes_end_changes_nothing(tmp_path, monkeypatch):
    one = Elsewhere(tmp_path / "one", monkeypatch)
    first = one.race()
    other = Elsewhere(tmp_path / "other", monkeypatch, backwards=True)
    assert other.race().losses == first.losses
    read = [(tmp_path / name / "out" / "race.csv").read_bytes() for name in ("one", "other")]
    assert read[0] == read[1]
    assert one.batches[0] == [("a", 0), ("b", 0), ("c", 0)]
    late = [batch for batch in one.batches if batch[0][1] > 100]  # after the first sizes
    assert max(map(len, late)) == 2
    assert all(len({name for name, _ in batch}) == len(batch) for batch in late)


@pytest.mark.parametrize("searched", [0, 16])
def test_race_csv_has_each_fine_tune_with_its_reason_and_the_end(tmp_path, monkeypatch, searched):
    there = Elsewhere(tmp_path / "run", monkeypatch, searched=searched)
    race = there.race()
    rows = read_rows(tmp_path / "run" / "out" / "race.csv")
    assert [(row["candidate"], int(row["size"])) for row in rows] == [
        pair for batch in there.batches[1:] for pair in batch
    ]
    assert all(row["reason"] and float(row["test_loss"]) > 0 for row in rows)
    assert sum(float(row["cost"]) for row in rows) == pytest.approx(race.cost)
    assert race.searched == (dict.fromkeys(SLOPES, searched) if searched else {})
    assert rows[-1]["stop"] == race.stop.text
    assert rows[-1]["leader"] == race.leader
    assert not rows[0]["stop"]
    dropped = " ".join(row["dropped"] for row in rows if row["dropped"]).split()
    assert set(dropped) == set(race.dropped)


def test_a_candidate_that_fails_elsewhere_runs_no_further_and_the_others_do(tmp_path, monkeypatch):
    there = Elsewhere(tmp_path / "run", monkeypatch, failing={("a", 100)})
    race = there.race()
    assert race.failed == {"a": "no memory"}
    assert race.largest["a"] == 50
    assert race.largest["b"] > 100
    (row,) = (row for row in read_rows(tmp_path / "run" / "out" / "race.csv") if row["failure"])
    assert (row["candidate"], row["size"], row["test_loss"]) == ("a", "100", "")


def test_a_candidate_that_fails_at_once_is_left_out_and_if_all_do_it_is_said(tmp_path, monkeypatch):
    race = Elsewhere(tmp_path / "run", monkeypatch, failing={("a", 50)}).race()
    assert race.leader != "a"
    assert not race.largest["a"]
    of_all = Elsewhere(tmp_path / "none", monkeypatch, failing={(name, 50) for name in SLOPES})
    with pytest.raises(checks.UserError, match="can be fine-tuned, got none: a: no memory"):
        of_all.race()


@pytest.mark.ray
def test_a_race_on_a_cluster_is_that_of_processes(tmp_path):
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes' workers
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 2})
    flags = ["--candidates=zoo/gpt2-xs,zoo/opt-xs", "--task=sotu", "--max_bytes=96",
             "--target_size=256", "--smallest_size=16", "--budget_size=128", "--max_cost=0.5",
             "--max_epochs=1", "--learning_rate=1e-3", "--kernels=none",
             "--processes=2", "--quiet"]  # fmt: skip
    try:
        for kind in ("ray", "local"):
            done = subprocess.run(
                [sys.executable, "-m", "experiments.select_model", *flags, f"--executor={kind}",
                 f"--ray_address={cluster.address}", f"--output_dir={tmp_path / kind}"],
                cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True,
                text=True, timeout=300, check=False,
            )  # fmt: skip
            assert done.returncode == 0, done.stderr
    finally:
        cluster.shutdown()
    for name in ("losses.csv", "race.csv"):
        assert (tmp_path / "ray" / name).read_bytes() == (tmp_path / "local" / name).read_bytes()
