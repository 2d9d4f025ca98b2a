"""Mistakes with the settings of runs, with their folders and with where they are measured."""

import sys
import types
from pathlib import Path

import pytest

from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.runs import executors
from lensllm_jax.runs.compute_ntk import compute_ntk
from lensllm_jax.runs.finetune_grid import GridSettings, finetune_grid
from lensllm_jax.runs.resume import CandidateRun, Cells
from lensllm_jax.runs.run_folder import RunFolder, read_rows
from lensllm_jax.runs.select_model import SelectionSettings
from lensllm_jax.runs.settings import NoSettings, read_settings

TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")


def run_of(**settings):
    """The settings of a run, of one candidate in a folder that it does not open."""
    return read_settings(NoSettings, {"candidates": "zoo/gpt2-xs", "output_dir": ".", **settings})


def planned(**settings):
    sizes = {"budget_size": 1, "smallest_size": 1, "target_size": 2, "paper": True}
    return SelectionSettings(**{**sizes, **settings}).plan(TASK)


def of_mean_length(mean, folder):
    task = str(written(folder / "task.txt", "\n".join(f"the {i} kings" for i in range(60))))
    return run_of(mean_length=mean, task=task)[0].load_task({})


def kernel_of(candidate, **settings):
    return compute_ntk(candidate, output_dir="none", **settings)


def grid_of(folder, **settings):
    task = written(folder / "task.txt", "\n".join(f"the {i} kings" for i in range(60)))
    return finetune_grid(
        "zoo/gpt2-xs", task, output_dir=folder / "out", learning_rate=1e-3, **settings
    )


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
    ("output_dir", "text or a path, got NoneType", lambda tmp: run_of(output_dir=None)),
    ("candidates", "text or a path, got NoneType", lambda tmp: run_of(candidates=[None])),
    (
        "save_adapter",
        "go with `save_winner`, got no",
        lambda tmp: SelectionSettings(save_adapter=True).winner({}, {}, run_of()[0]),
    ),
    (
        "save_winner",
        "have a fine-tune to save, got none of a",
        lambda tmp: winner_without_a_fine_tune(tmp),
    ),
    (
        "candidate",
        "one ... got zoo/gpt2-xs",
        lambda tmp: kernel_of(["zoo/gpt2-xs", "zoo/gpt2-s"]),
    ),
    ("target_size", "positive and finite, got 0", lambda tmp: planned(target_size=0)),
    ("max_hours", "positive, got 0.0", lambda tmp: planned(paper=False, max_hours=0.0)),
    (
        "executor",
        "one of ... got 'local'",
        lambda tmp: kernel_of("zoo/gpt2-xs", executor="local"),
    ),
    (
        "executor",
        "serial without --store_dir, got ray",
        lambda tmp: kernel_of("zoo/gpt2-xs", executor="ray"),
    ),
    (
        "num_processes",
        "1 without --store_dir ... got 2",
        lambda tmp: kernel_of("zoo/gpt2-xs", num_processes=2),
    ),
    (
        "process_id",
        "from 0 to 1 ... got 2",
        lambda tmp: kernel_of(
            "zoo/gpt2-xs",
            num_processes=2,
            process_id=2,
            store_dir="tiles",
            coordinator_address="localhost:1",
        ),
    ),
    (
        "settings",
        "names of flags ... 'max_epoch': take 'max_epochs'",
        lambda tmp: run_of(max_epoch=1),
    ),
    ("settings", "names of flags ... 'xyz': see the flags", lambda tmp: run_of(xyz=1)),
    ("candidates", "one or more distinct ... got ()", lambda tmp: run_of(candidates=())),
    ("max_epochs", "a whole number, got 1.5", lambda tmp: run_of(max_epochs=1.5)),
    ("buckets", "a list of whole numbers, got 8", lambda tmp: run_of(buckets=8)),
    (
        "checkpoint_seconds",
        "zero or positive ... got -1.0",
        lambda tmp: run_of(checkpoint_seconds=-1.0),
    ),
    (
        "compiled_dir",
        "folder ... got the file",
        lambda tmp: run_of(compiled_dir=written(tmp / "a")),
    ),
    ("mean_length", "positive ... got -1.0", lambda tmp: of_mean_length(-1.0, tmp)),
    ("learning_rates", "positive ... got 0.0", lambda tmp: GridSettings(learning_rates=(0.0, 1.0))),
    (
        "learning_rates",
        "several ... got (0.1,) ... one",
        lambda tmp: GridSettings(learning_rates=(0.1,)),
    ),
    ("batch_sizes", "positive ... got 0", lambda tmp: GridSettings(batch_sizes=(0,))),
    ("seeds", "distinct ... got (1, 1)", lambda tmp: GridSettings(seeds=(1, 1))),
    ("executor", "one of ... got 'abacus'", lambda tmp: GridSettings(executor="abacus")),
    ("sizes", "one or more whole ... got none", lambda tmp: grid_of(tmp, sizes=())),
    ("sizes", "zero or positive ... got -1", lambda tmp: grid_of(tmp, sizes=(-1, 4))),
    ("sizes", "at most ... got 200", lambda tmp: grid_of(tmp, sizes=(200,))),
    ("budget_size", "at most 1 ... got 2", lambda tmp: planned(budget_size=2)),
    ("budget_size", "at least `smallest_size` 2 ... got 1", lambda tmp: planned(smallest_size=2)),
    ("target_size", "above `budget_size` 1 ... got 1", lambda tmp: planned(target_size=1)),
    ("budget_size", "at least twice `smallest_size` 1 ... got 1", lambda tmp: planned()),
    ("paper", "without another `order` ... got 'all'", lambda tmp: planned(order="all")),
    (
        "executor",
        "serial unless `order` is race, got 'local' with downwards",
        lambda tmp: planned(executor="local"),
    ),
    ("order", "one of ... got 'sideways'", lambda tmp: planned(order="sideways")),
    ("kernels", "one of ... got 'some'", lambda tmp: planned(kernels="some")),
    ("confidence", "above 0.5 ... got 0.4", lambda tmp: planned(paper=False, confidence=0.4)),
    ("processes", "positive ... got 0", lambda tmp: executors.shares({0, 1}, 0)),
    ("processes", "positive ... got 0", lambda tmp: executors.ExecutorConfig("ray", 0).check()),
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
