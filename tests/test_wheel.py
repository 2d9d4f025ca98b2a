"""The wheel as a user installs it: an empty environment, outside the checkout, runs a binary."""

import json
import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKED = ("lensllm_jax", "experiments", "setup.cfg", "pyproject.toml", "README.md", "LICENSE")
# setuptools builds into the folder of the sources, so the wheel is built from a copy of them
SETTINGS = {
    "candidates": "zoo/gpt2-xs,zoo/opt-xs",
    "budget_size": 32,
    "target_size": 128,
    "smallest_size": 8,
    "max_cost": 0.5,
    "max_epochs": 1,
    "batch_size": 4,
    "learning_rate": 1e-3,
    "num_kernel_examples": 4,
}


def run(*command, cwd, **environment):
    variables = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env={**variables, **environment},
        capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of its own with ``bin/python``, where only the wheel and its requirements are."""
    folder = tmp_path_factory.mktemp("elsewhere")
    source = folder / "source"
    source.mkdir()
    for name in PACKED:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    pip = ("-m", "pip", "--quiet", "--disable-pip-version-check")
    built = run(sys.executable, *pip, "wheel", "--no-deps", "-w", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=True)
    lock = ROOT / "requirements.txt"
    installed = run(python(folder), *pip, "install", "-c", lock, wheel, cwd=folder)
    assert installed.returncode == 0, installed.stderr
    return folder


def python(folder):
    return folder / "venv" / "bin" / "python"


@pytest.mark.wheel
def test_select_model_runs_where_only_the_wheel_is_installed(folder):
    records = (
        {"prompt": f"What of {n}?", "target": f"the king saw {n} stones"} for n in range(160)
    )
    (folder / "facts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in records))
    flags = {**SETTINGS, "task": "facts.jsonl", "output_dir": "out"}
    done = run(
        python(folder), "-m", "experiments.select_model",
        *(f"--{name}={value}" for name, value in flags.items()), cwd=folder, HF_HUB_OFFLINE="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for file in ("ranking.csv", "report.html", "kernels/zoo--gpt2-xs/ntk.npy"):
        assert (folder / "out" / file).stat().st_size > 0


@pytest.mark.wheel
def test_a_console_name_ranks_a_bundled_table(folder):
    flags = ("--curves=lin2024/flan", "--budgets=8", "--selectors=ats,subtuning")
    name = folder / "venv" / "bin" / "lens-rank"
    done = run(name, *flags, "--output_dir=ranked", cwd=folder)
    assert done.returncode == 0, done.stderr
    assert "ats" in (folder / "ranked" / "selection.csv").read_text()
    command = json.loads((folder / "ranked" / "run.json").read_text())["command"]
    assert command.startswith("python -m experiments.rank_curves --curves=lin2024/flan ")


@pytest.mark.wheel
@pytest.mark.parametrize("module", ["neural_tangents", "torch", "pytest", "tests"])
def test_nothing_else_is_installed_there(folder, module):
    done = run(python(folder), "-c", f"import {module}", cwd=folder)
    assert f"No module named '{module}'" in done.stderr
