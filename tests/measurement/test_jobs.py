"""Jobs: what a killed one costs, what is compiled once, what fails alone, what can be sent."""

import dataclasses
import pickle
import time

import jax
import pytest

from lensllm_jax.data.task import Example, build_task
from lensllm_jax.finetune.search import SearchGrid
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.jobs import RECORDS, Job, Measurer
from lensllm_jax.measurement.measurement import MeasurementConfig


@pytest.fixture(scope="module")
def task():
    texts = [Example(f"What of {n}?", f"the king {n} of stone") for n in range(60)]
    return build_task("kings", "a toy", train=texts[:40], validation=texts[40:50], test=texts[50:])


def test_seconds_of_a_killed_cell_are_those_of_both_lives(task, tmp_path, monkeypatch):
    """The clock leaps by 1e6 s in the first life, which dies after the checkpoint that follows."""
    measurer = Measurer(task)
    config = MeasurementConfig(batch_size=4, max_epochs=4, patience=9)
    job = Job("zoo/gpt2-xs", 1, 16, config, path=tmp_path / "16.json", checkpoint_seconds=0)
    monotonic, leaps, updates = time.monotonic, [], []
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + sum(leaps))

    def until_killed(now):
        updates.append(now)
        if len(updates) == 2:
            raise KeyboardInterrupt
        leaps.append(1e6)

    with pytest.raises(KeyboardInterrupt):
        measurer.measure(job, on_progress=until_killed)
    resumed = measurer.measure(job)
    whole = measurer.measure(job._replace(path=None))
    assert whole["seconds"] < 1e6 <= resumed["seconds"] < 1.5e6  # once, not twice
    assert [update.share for update in updates] == sorted(update.share for update in updates)
    for cell in (resumed, whole):  # durations alone may differ
        del cell["seconds"], cell["tokens_per_second"]
        cell[RECORDS] = cell[RECORDS].tolist()
    assert resumed == whole


def test_seeds_and_rates_share_what_was_compiled(task):
    measurer, config = Measurer(task), MeasurementConfig()
    first = measurer.measurement("zoo/gpt2-xs", config)
    other = measurer.measurement("zoo/gpt2-xs", dataclasses.replace(config, seed=1))
    slow = measurer.measurement("zoo/gpt2-xs", config.at(1e-4))
    assert other.loop._train is slow.loop._train is first.loop._train
    assert slow.loop.config.learning_rate == 1e-4 != first.loop.config.learning_rate
    decayed = dataclasses.replace(config, weight_decay=0.1)
    assert measurer.measurement("zoo/gpt2-xs", decayed).loop._train is not first.loop._train


def test_a_candidate_too_large_for_the_device_fails_alone(task, monkeypatch):
    def full(*_, **__):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory\nallocating")

    monkeypatch.setattr(Measurer, "measure", full)
    result = Measurer(task).attempt(Job("zoo/gpt2-xs", 1, 8, MeasurementConfig()))
    assert (result.cell, result.reason) == (None, "RESOURCE_EXHAUSTED: Out of memory allocating")


def test_workers_fail_alone_too(task):
    """What a process of an executor hands back of a job that cannot be done."""
    job = Job("zoo/gpt2-xs", 1, 10**6, MeasurementConfig())
    result = jobs.attempt_here(job, task)
    assert result.cell is None
    assert "`size` must be at most" in result.reason


def test_a_job_and_its_task_can_be_sent(task):
    job = Job("zoo/gpt2-xs", 1, 8, MeasurementConfig(), SearchGrid((1e-3, 1e-4), (4,)))
    sent, text = pickle.loads(pickle.dumps((job, task)))
    assert (sent, text.fingerprint, dict(text.removed)) == (job, task.fingerprint, task.removed)


def test_a_search_costs_a_fine_tune_per_setting():
    alone = Job("a", 1000, 8, MeasurementConfig(max_epochs=2))
    searched = alone._replace(search=SearchGrid((1e-3, 1e-4), (4, 8)))
    assert (alone.work, alone.search_share) == (16000.0, 0.0)
    assert (searched.work, searched.search_share) == (5 * 16000.0, 0.8)
    assert alone._replace(size=0).work == 0.0
    rate = alone._replace(searched=24)
    assert (rate.work, rate.search_share) == (4 * 16000.0, 0.75)
