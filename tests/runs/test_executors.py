"""Where cells are measured: shares of cores, the same table from processes, from a Ray cluster."""

import csv
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import blas
from lensllm_jax.runs import executors
from lensllm_jax.runs.run_folder import RUN, RunFolder

ROOT = Path(__file__).parent.parent.parent
ONE = Example("", "a king")
FLAGS = {
    "candidates": "zoo/gpt2-xs", "task": "sotu", "sizes": "0,32,64", "max_epochs": 1,
    "batch_size": 8, "max_bytes": 96, "learning_rate": 1e-3,
}  # fmt: skip

# XLA splits sums by its threads: another number of them moves losses by 1e-7
ONE_CORE = "import os, sys; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); "
ONE_CORE += "os.execv(sys.argv[1], sys.argv[1:])"


def run_grid(folder, *, before=(), **changes):
    flags = {**FLAGS, "output_dir": folder, **changes}
    return subprocess.run(
        [*before, sys.executable, "-m", "experiments.finetune_grid",
         *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        timeout=170, check=False,
    )  # fmt: skip


def run_on_one_core(folder, **changes):
    return run_grid(folder, before=(sys.executable, "-c", ONE_CORE), **changes)


@pytest.mark.parametrize("processes", [1, 2, 3, 5])
def test_no_core_is_given_twice(processes):
    given = executors.shares({0, 2, 3, 7, 8}, processes)
    assert len({len(share) for share in given}) == 1
    flat = [core for share in given for core in share]
    assert len(set(flat)) == len(flat) <= 5
    assert len(given) == processes


def test_more_processes_than_cores_are_refused():
    with pytest.raises(UserError, match="`processes` must be at most 2"):
        executors.shares({0, 1}, 3)


@pytest.mark.parametrize("address", ["here", "127.0.0.1:1", "127.0.0.1:99999"])
def test_an_unreachable_cluster_is_one_line(address, tmp_path):
    start = time.monotonic()
    with pytest.raises(UserError, match="`ray_address` must be"):
        executors.check_address(address)
    assert time.monotonic() - start < 2 * executors.CONNECT_SECONDS


def test_a_node_uses_checkpoints_where_it_sees_the_run_folder(tmp_path, monkeypatch):
    paths, task = [], Task("toy", "", (ONE,), (ONE,), (ONE,), {}, "")

    def attempt_here(job, task):
        paths.append(job.path)
        return jobs.JobResult(job, None)

    monkeypatch.setattr(jobs, "attempt_here", attempt_here)
    folder = RunFolder.open(tmp_path / "out", {"seed": 0})
    monkeypatch.chdir(tmp_path)
    probe = executors.FolderProbe.of(RunFolder(Path("out")))  # by whatever name
    job = jobs.Job("zoo/gpt2-xs", 1, 8, MeasurementConfig(), path=folder.path / "cells" / "8.json")
    executors.attempt_on_node(job, task, probe)
    (folder.path / RUN).write_text("{}")  # a folder of another run at the same place
    executors.attempt_on_node(job, task, probe)
    (folder.path / RUN).unlink()
    executors.attempt_on_node(job, task, probe)
    assert paths == [job.path, None, None]


@pytest.mark.slow
def test_processes_give_the_table_of_one(tmp_path):
    processes = len(os.sched_getaffinity(0))
    assert run_on_one_core(tmp_path / "serial").returncode == 0
    compiled = tmp_path / "compiled"
    done = run_grid(
        tmp_path / "local", executor="local", processes=processes, compiled_dir=compiled
    )
    assert done.returncode == 0, done.stderr
    assert list(compiled.glob("jit_steps*"))  # by the processes that measure
    tuned = [s for s in done.stderr.splitlines() if "32 examples" in s or "64 examples" in s]
    assert len(tuned) == 2
    assert not any("?" in line for line in tuned)  # the time left is known
    serial, local = ((tmp_path / n / "losses.csv").read_bytes() for n in ("serial", "local"))
    assert serial == local


# dies inside a fine-tune, which lasts longer than the loss before fine-tuning on the other node
LONG = {"checkpoint_seconds": 0, "max_epochs": 120, "patience": 1000}


@pytest.mark.ray
def test_a_cluster_that_loses_a_node_gives_the_same_table(tmp_path):
    """Both nodes are inside a fine-tune then; the folder is one that both see."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    assert run_on_one_core(tmp_path / "serial", **LONG).returncode == 0
    ours = tmp_path / "ray" / "cells" / "zoo--gpt2-xs"
    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes' workers
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        killed = threading.Event()

        def kill_when_both_are_inside():
            while not all((ours / f"{size}.safetensors").exists() for size in (32, 64)):
                time.sleep(0.01)
            cluster.remove_node(node, allow_graceful=False)
            killed.set()

        threading.Thread(target=kill_when_both_are_inside, daemon=True).start()
        on_ray = {**LONG, "executor": "ray", "ray_address": cluster.address}
        done = run_grid(tmp_path / "ray", **on_ray)
        assert done.returncode == 0, done.stderr
        assert killed.wait(10)
        assert not list(ours.glob("*.safetensors"))
        # nodes do read checkpoints: a damaged one fails its cell
        (ours / "64.json").rename(tmp_path / "64.json")
        (ours / "64.safetensors").write_bytes(b"no tensors")
        done = run_grid(tmp_path / "ray", **on_ray)
        assert done.returncode == 1, done.stderr
        (failure,) = csv.DictReader((tmp_path / "ray" / "failures.csv").read_text().splitlines())
        assert "64.safetensors" in failure["reason"]
        (tmp_path / "64.json").rename(ours / "64.json")
        assert run_grid(tmp_path / "ray", **on_ray).returncode == 0
    finally:
        cluster.shutdown()
    serial, ray = ((tmp_path / n / "losses.csv").read_bytes() for n in ("serial", "ray"))
    assert serial == ray


def compute_kernel(folder, *, before=(), **changes):
    flags = {
        "candidate": "zoo/gpt2-xs", "task": "sotu", "max_bytes": 64, "num_examples": 6,
        "kernel_block_size": 1, "store_dir": folder / "tiles", "output_dir": folder, **changes,
    }  # fmt: skip
    return subprocess.run(
        [*before, sys.executable, "-m", "experiments.compute_ntk",
         *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT, env={**os.environ, "HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
        timeout=170, check=False,
    )  # fmt: skip


@pytest.mark.ray
def test_a_cluster_that_loses_a_node_gives_the_same_kernel(tmp_path):
    """The node is killed after the first tile; the folder of tiles is the first process's alone."""
    cluster_utils = pytest.importorskip("ray.cluster_utils")
    one_core = (sys.executable, "-c", ONE_CORE)
    done = compute_kernel(tmp_path / "serial", before=one_core)
    assert done.returncode == 0, done.stderr
    os.environ["PYTHONPATH"] = str(ROOT)  # of the nodes' workers
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        node = cluster.add_node(num_cpus=1)
        cluster.wait_for_nodes()
        left = []

        def kill_after_the_first_tile():
            while not (tiles := list((tmp_path / "ray" / "tiles").glob("tile_*.npy"))):
                time.sleep(0.01)
            left.append(21 - len(tiles))
            cluster.remove_node(node, allow_graceful=False)

        threading.Thread(target=kill_after_the_first_tile, daemon=True).start()
        done = compute_kernel(tmp_path / "ray", executor="ray", ray_address=cluster.address)
        assert done.returncode == 0, done.stderr
        assert left[0] > 1  # both nodes had work
    finally:
        cluster.shutdown()
    serial, ray = ((tmp_path / n / "ntk.npy").read_bytes() for n in ("serial", "ray"))
    assert serial == ray


def test_tiles_computed_elsewhere_are_those_computed_here(tmp_path):
    """By a map that gives them in another order, pickled as Ray would, and fails once."""
    x, w = np.arange(12.0).reshape(6, 2), np.ones((2, 3))
    calls = []

    def elsewhere(tile_fn, tiles):
        for tile in reversed(tiles):
            calls.append(tile)
            if len(calls) == 3:
                raise OSError("the cluster is gone")
            yield tile, np.asarray(tile_fn(tile))

    settings = {"block_size": 2, "store": tmp_path / "tiles"}
    f = lambda w, x: jnp.tanh(x @ w).sum(1)  # noqa: E731
    with pytest.raises(OSError, match="gone"):
        empirical_ntk(f, w, x, map_tiles=elsewhere, **settings)
    there = empirical_ntk(f, w, x, map_tiles=elsewhere, **settings)
    assert there.tobytes() == empirical_ntk(f, w, x, block_size=2).tobytes()
    assert len(calls) == 3 + 4  # of six tiles two were there


def test_threads_of_a_worker_are_those_of_its_environment(monkeypatch):
    monkeypatch.setenv("NPROC", "3")
    assert blas.num_workers() == 3
    monkeypatch.delenv("NPROC")
    assert blas.num_workers() == len(os.sched_getaffinity(0))
