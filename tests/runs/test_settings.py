"""In how many passes a step is made is decided once, and read by every later run of the folder."""

import dataclasses

import pytest

import lensllm_jax as lens
from lensllm_jax.measurement.memory import LargestStep
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.runs import settings
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.runs.settings import NoSettings, read_settings
from tests.kings import write_kings

LARGE, SMALL = "zoo/gpt2-xs", "zoo/opt-xs"


@pytest.fixture
def task(tmp_path):
    return lens.load_task(write_kings(tmp_path, 40))


@pytest.fixture
def pool(monkeypatch):
    """One candidate that is large, 8 GB in one pass."""
    pool = describe_pool([LARGE, SMALL])
    pool[LARGE] = dataclasses.replace(pool[LARGE], num_params=30_000_000)
    monkeypatch.setattr(LargestStep, "num_bytes", lambda _, compute: 8 * 10**9 // compute.passes)
    return pool


@pytest.mark.parametrize("free", [5, 16])
def test_a_resumed_run_has_the_passes_of_the_first(task, pool, tmp_path, monkeypatch, free, capsys):
    given = {"candidates": [LARGE, SMALL], "output_dir": tmp_path / "out", "batch_size": 8}
    run, _ = read_settings(NoSettings, given)
    folder = RunFolder.open(tmp_path / "out", {})
    monkeypatch.setattr(settings, "free_now", lambda: free * 10**9)
    first = run.fitted(task, pool, folder)
    passes = {5: 2, 16: 1}[free]
    assert [one.compute.passes for one in first.values()] == [passes, 1]
    told = capsys.readouterr().err
    assert ("each step in 2 passes of 4 examples, about 4.0 GB" in told) == (free == 5)
    monkeypatch.setattr(settings, "free_now", lambda: 3 * 10**9)
    assert run.fitted(task, pool, folder) == first
    assert "more than the 3.0 GB that are free" in capsys.readouterr().err
    anew = RunFolder.open(tmp_path / "another", {})  # the control
    assert run.fitted(task, pool, anew)[LARGE].compute.passes == 4
    given_by_user, _ = read_settings(NoSettings, {**given, "micro_batches": 8})
    assert given_by_user.fitted(task, pool, folder)[LARGE].compute.passes == 8


def test_processes_share_what_is_free(task, pool, tmp_path, monkeypatch):
    run, _ = read_settings(
        NoSettings, {"candidates": [LARGE], "output_dir": tmp_path, "quiet": True}
    )
    monkeypatch.setattr(settings, "free_now", lambda: 16 * 10**9)
    folder = RunFolder.open(tmp_path / "out", {})
    assert run.fitted(task, pool, folder, at_a_time=2)[LARGE].compute.passes == 2
