"""Mistakes with the folders of runs and with where they are measured."""

import sys
import types
from pathlib import Path

import pytest

from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.runs import executors
from lensllm_jax.runs.resume import CandidateRun, Cells
from lensllm_jax.runs.run_folder import RunFolder, read_rows

TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")


def written(path, content="x"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    return path


def opened(folder, **settings):
    return RunFolder.open(folder, settings)


def ray_that_is_not_installed():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "ray", None)
        patch.setattr(executors, "check_address", lambda address: None)
        probe = executors.FolderProbe(Path("run.json"), "")
        return next(executors.run_ray([], TASK, probe, executors.ExecutorConfig("ray")))


def winner_without_a_fine_tune(folder):
    """A candidate whose every fine-tune failed."""
    summary, cells = types.SimpleNamespace(name="a", num_params=1), Cells(opened(folder), None)
    config = MeasurementConfig()
    candidate = CandidateRun(summary, config, None, cells, checkpoint_seconds=60)
    candidate.losses[0] = 1.0
    return candidate.save_weights(None)


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    (
        "save_winner",
        "have a fine-tune to save, got none of a",
        lambda tmp: winner_without_a_fine_tune(tmp),
    ),
    ("processes", "positive ... got 0", lambda tmp: executors.shares({0, 1}, 0)),
    ("processes", "at most 2 ... got 3", lambda tmp: executors.shares({0, 1}, 3)),
    (
        "ray_address",
        "host:port of a Ray ... got 'localhost'",
        lambda tmp: executors.check_address("localhost"),
    ),
    (
        "ray_address",
        "of a running Ray ... got 'localhost:1'",
        lambda tmp: executors.check_address("localhost:1"),
    ),
    ("executor", "serial or local ... got ray", lambda tmp: ray_that_is_not_installed()),
    (
        "ray_threads",
        "positive ... got 0",
        lambda tmp: executors.ExecutorConfig(ray_threads=0).check(),
    ),
    ("output_dir", "folder ... got the file", lambda tmp: opened(written(tmp / "a"))),
    ("output_dir", "empty or hold", lambda tmp: opened(written(tmp / "a").parent)),
    (
        "output_dir",
        "hold a run.json ... got one that does not read",
        lambda tmp: opened(written(tmp / "run.json", "[").parent),
    ),
    (
        "output_dir",
        "hold a whole a.json ... got none",
        lambda tmp: opened(tmp).read_piece("a.json"),
    ),
    (
        "output_dir",
        "these settings",
        lambda tmp: opened(written(tmp / "run.json", '{"settings": {"seed": 1}}').parent, seed=2),
    ),
    ("tables", "hold a.csv ... got no", lambda tmp: read_rows(tmp / "a.csv")),
]
