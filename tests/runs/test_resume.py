"""Pieces of a run folder: read where they are finished, measured once where they are not."""

import jax
import numpy as np
import pytest

from lensllm_jax.data.catalogue import load_task
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.jobs import Measurer
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.resume import CandidateRun, Cells
from lensllm_jax.runs.run_folder import RunFolder
from tests.kings import write_kings

CONFIG = MeasurementConfig(batch_size=4, max_epochs=1, num_kernel_examples=3)


class Run:
    """A run of a pool in a folder."""

    def __init__(self, folder, names, *, revisits=False, all_test_examples=True):
        task = load_task(write_kings(folder, 300))
        self.measurer = measurer = Measurer(task, revisits=revisits)
        self.progress = Progress(total=1.0, quiet=True)
        self.cells = Cells(RunFolder.open(folder / "out", {}), self.progress)
        self.pool = {
            name: CandidateRun(
                summary,
                CONFIG,
                measurer,
                self.cells,
                checkpoint_seconds=60.0,
                all_test_examples=all_test_examples,
            )
            for name, summary in describe_pool(names).items()
        }


@pytest.mark.parametrize("revisits", [True, False])
def test_candidates_that_are_measured_again_are_not_compiled_again(tmp_path, revisits):
    """Compilations are counted by JAX itself, as a pool is measured upwards."""
    run = Run(tmp_path, ["zoo/gpt2-xs", "zoo/opt-xs"], revisits=revisits)
    pool, gpt2 = run.pool, run.pool["zoo/gpt2-xs"]
    compiled = []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        for candidate in pool.values():
            candidate.measure_loss(4)
        compiled.clear()
        gpt2.measure_loss(8)
        assert bool(compiled) != revisits
        if revisits:
            gpt2.finish([8, 16])  # what is dropped is forgotten, what is not measured not awaited
            assert run.progress.total == 1.0 - gpt2.job(16).work
            gpt2.measure_loss(12)
            assert compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def test_a_finished_candidate_is_read_without_its_weights(tmp_path, monkeypatch):
    loaded, load = [], jobs.load_candidate
    monkeypatch.setattr(jobs, "load_candidate", lambda name: loaded.append(name) or load(name))

    def measured():
        candidate = Run(tmp_path, ["zoo/gpt2-xs"]).pool["zoo/gpt2-xs"]
        candidate.compute_kernel()
        losses = [candidate.measure_loss(size) for size in (0, 8)]
        return losses, candidate.spectrum.eigenvalues.tolist()

    first = measured()
    assert loaded == ["zoo/gpt2-xs"]  # once for the kernel and both losses
    assert measured() == first
    assert loaded == ["zoo/gpt2-xs"]


def test_a_candidate_is_compared_with_the_best_that_was_measured(tmp_path):
    run = Run(tmp_path, ["zoo/gpt2-xs", "zoo/opt-xs", "zoo/llama-xs"], all_test_examples=False)
    nats = {"zoo/gpt2-xs": 2.0, "zoo/opt-xs": 1.0}
    for name, candidate in run.pool.items():
        job = candidate.job(8)
        rival = None if job.rival is None else job.rival[0].tolist()
        assert rival == {"zoo/opt-xs": [2.0] * 3, "zoo/llama-xs": [1.0] * 3}.get(name)
        if name in nats:
            records = np.stack([np.full(3, nats[name]), np.ones(3)])
            run.cells.keep(job, {"test_loss": nats[name], "num_tokens": 1, jobs.RECORDS: records})
            run.cells.measured(job, run.measurer)  # read, for it is finished
    assert run.pool["zoo/opt-xs"].job(16).rival is None  # of another size
    every = Run(tmp_path, ["zoo/gpt2-xs"]).pool["zoo/gpt2-xs"]
    assert every.job(8).rival is None


def test_checkpoints_of_a_finished_cell_are_removed(tmp_path):
    run = Run(tmp_path, ["zoo/gpt2-xs"])
    job, other = (run.pool["zoo/gpt2-xs"].job(size) for size in (8, 16))
    run.cells.keep(job, {"test_loss": 1.0, "num_tokens": 1, jobs.RECORDS: np.ones((2, 3))})
    leftovers = [one.path.with_suffix(jobs.SEARCHED) for one in (job, other)]
    for path in leftovers:  # a run was killed before it could remove the first
        path.write_text("{}")
    assert run.cells.unfinished([job, other]) == [other]
    assert [path.exists() for path in leftovers] == [False, True]
    assert run.progress.done == 2 * job.work  # kept once, then skipped
