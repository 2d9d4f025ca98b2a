"""The binaries, run as a user runs them: results, resuming after a kill, bad input."""

import csv
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import lensllm_jax as lens
from tests.oracles import ntk_loss_by_matrix_exponential

ROOT = Path(__file__).parent.parent.parent

# None in sys.modules makes a module absent: a run must need neither framework.  Where there is none
# it is left out, since SciPy looks into what stands under the name.
FORBID = """
import importlib.util, runpy, sys
installed = filter(importlib.util.find_spec, ("torch", "tensorflow"))
sys.modules.update(dict.fromkeys([*installed]))
sys.argv = sys.argv[1:]
runpy.run_module("experiments." + sys.argv[0], run_name="__main__", alter_sys=False)
"""


def command(binary, **flags):
    settings = [f"--{name}={value}" for name, value in flags.items()]
    return [sys.executable, "-c", FORBID, binary, *settings]


def environment():
    return {
        **os.environ,
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "200",
        "JAX_ENABLE_X64": "0",
    }


def run(binary, **flags):
    return subprocess.run(
        command(binary, **flags), cwd=ROOT, env=environment(), capture_output=True, text=True,
        timeout=500, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def text_task(tmp_path_factory):
    """A task of 60 short records in a file."""
    nouns = ["king", "river", "city", "people", "stone", "house", "day", "hand"]
    verbs = ["saw", "built", "left", "found", "kept", "called"]
    rng = random.Random(0)
    path = tmp_path_factory.mktemp("task") / "facts.jsonl"
    with open(path, "w") as file:
        for number in range(160):
            target = f"the {rng.choice(nouns)} {rng.choice(verbs)} {number} {rng.choice(nouns)}s"
            file.write(json.dumps({"prompt": f"What of {number}?", "target": target}) + "\n")
    return path


def small(text_task, output_dir, **changes):
    return {
        "candidates": "zoo/gpt2-xs,zoo/opt-xs",
        "task": text_task,
        "budget_size": 32,
        "target_size": 128,
        "smallest_size": 8,
        "order": "downwards",
        "max_epochs": 2,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "num_kernel_examples": 6,
        "output_dir": output_dir,
        **changes,
    }


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


RESULTS = (
    "ranking.csv",
    "losses.csv",
    "report.html",
    "report.md",
    "kernels/zoo--gpt2-xs/ntk.npy",
    "kernels/zoo--gpt2-xs/ntk.json",
    "kernels/zoo--opt-xs/ntk.npy",
    "loss_curves.png",
    "kernel_spectra.png",
)


def contents(folder, *, without=""):
    """Result files as bytes; the command in the report names the folder, which may differ."""
    return {
        name: (folder / name).read_bytes().replace(str(folder).encode(), b"")
        for name in RESULTS
        if name != without
    }


@pytest.fixture(scope="module")
def unbroken(text_task, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "unbroken"
    done = run("select_model", **small(text_task, folder))
    assert done.returncode == 0, done.stderr
    return folder, done


@pytest.mark.slow
def test_a_run_leaves_every_result(unbroken):
    folder, done = unbroken
    ranking = rows(folder / "ranking.csv")
    assert [row["rank"] for row in ranking] == ["1", "2"]
    predicted = [float(row["predicted_loss"]) for row in ranking]
    assert predicted == sorted(predicted)
    table = lens.read_loss_table(folder / "losses.csv")
    assert table.sizes.tolist() == [0, 8, 16, 32]
    assert set(table.names) == {"zoo/gpt2-xs", "zoo/opt-xs"}
    for name in ("loss_curves.png", "kernel_spectra.png"):
        with Image.open(folder / name) as image:
            assert min(image.size) > 300
    assert "zoo/gpt2-xs" in done.stdout
    settings = json.loads((folder / "run.json").read_text())
    assert settings["settings"]["seed"] == 0
    assert settings["packages"]["jax"]


@pytest.mark.slow
def test_stored_kernel_gives_the_stored_spectrum(unbroken):
    folder, _ = unbroken
    kernel = np.load(folder / "kernels/zoo--opt-xs/ntk.npy")
    stored = json.loads((folder / "kernels/zoo--opt-xs/ntk.json").read_text())
    residual = np.array(stored["outputs"])[:, 0] - np.array(stored["targets"])[:, 0]
    rate = stored["spectrum"]["learning_rate"]
    eigenvalues = np.array(stored["spectrum"]["eigenvalues"])
    projections = np.array(stored["spectrum"]["projections"])
    for t in (0.0, 10.0, 200.0):
        ours = projections @ np.exp(-2 * rate * eigenvalues * t)
        expected = ntk_loss_by_matrix_exponential(kernel, residual, rate, t)
        assert ours == pytest.approx(expected, rel=1e-4)  # the kernel is stored in float32


@pytest.mark.slow
def test_a_second_run_measures_nothing_and_changes_nothing(unbroken, text_task):
    folder, _ = unbroken
    before = contents(folder)
    cells = {path: path.stat().st_mtime_ns for path in folder.rglob("cells/*/*.json")}
    done = run("select_model", **small(text_task, folder))
    assert done.returncode == 0, done.stderr
    assert contents(folder) == before
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("cells/*/*.json")} == cells


@pytest.mark.slow
def test_a_killed_run_resumes_to_the_same_files(unbroken, text_task, tmp_path):
    """Kill -9 once the n-th piece appears, again and again until a run survives."""
    folder = tmp_path / "killed"
    for pieces in (1, 3, 6):
        process = subprocess.Popen(
            command("select_model", **small(text_task, folder)), cwd=ROOT, env=environment(),
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        while process.poll() is None and len(list(folder.rglob("*.json"))) <= pieces:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert process.returncode == -signal.SIGKILL, "it ended before it could be killed"
        assert not (folder / "ranking.csv").exists()
    done = run("select_model", **small(text_task, folder))
    assert done.returncode == 0, done.stderr
    expected, got = contents(unbroken[0]), contents(folder)
    assert {name for name in expected if expected[name] != got[name]} == set()


@pytest.mark.slow
def test_other_settings_are_refused_by_name(unbroken, text_task):
    folder, _ = unbroken
    before = contents(folder)
    done = run("select_model", **small(text_task, folder, max_epochs=3, seed=1))
    assert_refused(done, "max_epochs=2 there, 3 now", "seed=0 there, 1 now")
    assert contents(folder) == before


def assert_refused(done, *named):
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, done.stderr
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: ")
    for part in named:
        assert part in lines[0], lines[0]
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"candidates": "zoo/gpt9"}, "zoo/gpt2-xs"),
        ({"candidates": ","}, "candidates"),
        ({"candidates": "{folder}"}, "config.json"),
        ({"task": "poetry"}, "sotu"),
        ({"budget_size": 4}, "smallest_size"),
        ({"budget_size": 5000, "target_size": 9000}, "budget_size"),
        ({"target_size": 32}, "target_size"),
        ({"learning_rate": -1}, "learning_rate"),
        ({"batch_size": "many"}, "batch_size"),
        ({"max_bytes": 4}, "max_bytes"),
        ({"no_such_flag": 1}, "no_such_flag"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else None,
)
def test_bad_input_ends_with_one_line_and_leaves_nothing(changes, named, text_task, tmp_path):
    (tmp_path / "no-checkpoint").mkdir()
    changes = {
        name: str(value).format(folder=tmp_path / "no-checkpoint")
        for name, value in changes.items()
    }
    folder = tmp_path / "out"
    assert_refused(run("select_model", **small(text_task, folder, **changes)), named)
    assert not folder.exists()


def test_a_foreign_folder_is_left_alone(text_task, tmp_path):
    (tmp_path / "letters.txt").write_text("mine")
    assert_refused(run("select_model", **small(text_task, tmp_path)), "letters.txt")
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]


@pytest.mark.parametrize(
    "binary", ["select_model", "finetune_grid", "compute_ntk", "pretrain_zoo", "rank_curves"]
)
def test_help_shows_an_example(binary):
    done = subprocess.run(
        [sys.executable, "-m", f"experiments.{binary}", "--help"], cwd=ROOT, env=environment(),
        capture_output=True, text=True, timeout=100, check=False,
    )  # fmt: skip
    assert done.returncode == 0
    assert f"python -m experiments.{binary}" in done.stdout


@pytest.mark.slow
def test_grid_measures_every_cell_and_its_cost(text_task, tmp_path):
    flags = small(text_task, tmp_path / "grid", candidates="zoo/gpt2-xs", sizes="0,8,16")
    for name in ("budget_size", "target_size", "smallest_size", "num_kernel_examples", "order"):
        del flags[name]
    done = run("finetune_grid", **flags)
    assert done.returncode == 0, done.stderr
    table = lens.read_loss_table(tmp_path / "grid" / "losses.csv")
    assert table.sizes.tolist() == [0, 8, 16]
    ledger = rows(tmp_path / "grid" / "ledger.csv")
    params = lens.load_candidate("zoo/gpt2-xs").num_params
    assert len(ledger) == 3
    for row in ledger:
        assert int(row["flops"]) == 6 * params * int(row["num_tokens"])
    assert_refused(run("finetune_grid", **{**flags, "sizes": "8,99999"}), "99999")


GRID = {
    "candidates": "zoo/gpt2-xs", "sizes": "0,32,64,96", "batch_size": 4, "max_epochs": 8,
    "patience": 1000, "checkpoint_seconds": 0, "learning_rate": 1e-3,
}  # fmt: skip


@pytest.mark.slow
def test_a_grid_killed_eight_times_ends_with_the_same_table(text_task, tmp_path):
    flags = {**GRID, "task": text_task, "sizes": "0,32,64", "learning_rates": "3e-4,1e-3"}
    unbroken = run("finetune_grid", **flags, output_dir=tmp_path / "unbroken")
    assert unbroken.returncode == 0, unbroken.stderr
    done = subprocess.run(
        [sys.executable, "-m", "tests.experiments.killed_grid", "8", tmp_path / "killed",
         *(f"--{name}={value}" for name, value in flags.items())],
        cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    seen = json.loads(done.stdout.splitlines()[-1])
    assert (seen["kills"], seen["code"]) == (8, 0)
    assert seen["inside"] >= 4  # most kills fall inside a fine-tune or a search
    assert 1 <= seen["searching"] < seen["inside"]  # some inside either
    assert seen["rewritten"] == []  # nothing is measured twice
    assert seen["left"] == []  # no checkpoint of a finished fine-tune stays
    tables = [(tmp_path / name / "losses.csv").read_bytes() for name in ("unbroken", "killed")]
    assert tables[0] == tables[1]


@pytest.mark.slow
def test_a_cell_that_fails_says_why_and_the_rest_is_measured(text_task, tmp_path):
    folder = tmp_path / "grid"
    flags = {**GRID, "task": text_task, "sizes": "0,8,16", "max_epochs": 1, "output_dir": folder}
    damaged = folder / "cells" / "zoo--gpt2-xs" / "8.safetensors"
    damaged.parent.mkdir(parents=True)
    assert_refused(run("finetune_grid", **flags), "must be empty or hold an earlier run")
    shutil.rmtree(folder)
    assert run("finetune_grid", **flags).returncode == 0
    whole = (folder / "losses.csv").read_bytes()
    damaged.with_suffix(".json").unlink()
    damaged.write_bytes(b"no tensors")
    done = run("finetune_grid", **flags)
    assert done.returncode == 1, done.stderr
    (failure,) = rows(folder / "failures.csv")
    assert (failure["candidate"], failure["size"]) == ("zoo/gpt2-xs", "8")
    assert "8.safetensors" in failure["reason"]
    assert failure["reason"] in done.stderr
    table = lens.read_loss_table(folder / "losses.csv")
    assert table.sizes.tolist() == [0, 16]
    damaged.unlink()
    assert run("finetune_grid", **flags).returncode == 0
    assert (folder / "losses.csv").read_bytes() == whole
    assert not (folder / "failures.csv").exists()


@pytest.mark.slow
def test_kernel_binary_writes_the_kernel(text_task, tmp_path):
    done = run(
        "compute_ntk", candidate="zoo/gpt2-xs", task=text_task, num_examples=5,
        kernel_block_size=2, store_dir=tmp_path / "tiles", output_dir=tmp_path / "ntk",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "tile 6 of 6" in done.stderr
    kernel = np.load(tmp_path / "ntk" / "ntk.npy")
    assert kernel.shape == (5, 5)
    tiles = sorted((tmp_path / "tiles").glob("tile_*.npy"))
    assert len(tiles) == 6
    tiles[2].unlink()
    again = run(
        "compute_ntk", candidate="zoo/gpt2-xs", task=text_task, num_examples=5,
        kernel_block_size=2, store_dir=tmp_path / "tiles", output_dir=tmp_path / "again",
    )  # fmt: skip
    assert again.stderr.count("tile ") == 1  # the one that was missing
    np.testing.assert_array_equal(np.load(tmp_path / "again" / "ntk.npy"), kernel)


@pytest.mark.slow
def test_two_processes_compute_one_kernel(text_task, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    shared = {
        "candidate": "zoo/gpt2-xs", "task": text_task, "num_examples": 4,
        "kernel_block_size": 2, "store_dir": tmp_path / "tiles", "output_dir": tmp_path / "ntk",
        "num_processes": 2,
    }  # fmt: skip
    both = [
        subprocess.Popen(
            command("compute_ntk", **shared, process_id=i, coordinator_address=address),
            cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True,
        )
        for i in (0, 1)
    ]  # fmt: skip
    messages = [process.communicate(timeout=300)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], messages
    assert "tile 2 of 2" in messages[0]
    assert "tile 1 of 1" in messages[1]
    assert np.load(tmp_path / "ntk" / "ntk.npy").shape == (4, 4)
    assert_refused(run("compute_ntk", **shared), "coordinator_address")
    refused = run("compute_ntk", **shared, coordinator_address=address, process_id=2)
    assert_refused(refused, "from 0 to 1")
    assert json.loads((tmp_path / "ntk" / "ntk.json").read_text())["report"]["is_psd"]
