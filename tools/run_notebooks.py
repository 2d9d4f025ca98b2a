"""Runs every notebook from top to bottom and fails at the first cell that raises.

python tools/run_notebooks.py [names]
"""

import sys
import time
from pathlib import Path

import nbclient
import nbformat

FOLDER = Path(__file__).parent.parent / "notebooks"
SECONDS_PER_CELL = 300


def main(names: list[str]) -> None:
    """Executes the named notebooks, or all of them."""
    paths = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
        print(f"{path.name}: {time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main(sys.argv[1:])
