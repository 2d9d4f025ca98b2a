"""Notebooks are committed without outputs; what they showed stands on one page each."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))


def kept(notebook):
    """Code cells that still hold what a run left."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    return [cell for cell in cells if cell["outputs"] or cell["execution_count"] is not None]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebook_is_stripped_and_rendered(path):
    notebook = json.loads(path.read_text())
    assert kept(notebook) == []
    page = (ROOT / "docs" / "notebooks" / f"{path.stem}.html").read_text()
    title = "".join(notebook["cells"][0]["source"]).splitlines()[0].strip("# ")
    assert f"<h1>{title}</h1>" in page
    assert '<script src="' not in page
    first = next(cell for cell in notebook["cells"] if cell["cell_type"] == "code")
    assert "--no-deps" in "".join(first["source"])  # nothing of Colab's is replaced


def test_an_output_that_was_kept_is_caught():
    cell = {"cell_type": "code", "outputs": ["x"], "execution_count": None}
    assert kept({"cells": [cell]})
