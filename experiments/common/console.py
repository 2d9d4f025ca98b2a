"""Console names of the binaries: ``lens-select`` is ``python -m experiments.select_model``.

Each runs the module as ``python -m`` does, so that flags, ``--help`` and ``run.json`` are the same.

Example:
    >>> sorted(NAMES)
    ['lens-grid', 'lens-ntk', 'lens-rank', 'lens-select']
"""

import runpy

# the names that setup.cfg installs -> the binary
NAMES = {
    "lens-select": "select_model",
    "lens-rank": "rank_curves",
    "lens-ntk": "compute_ntk",
    "lens-grid": "finetune_grid",
}


def select() -> None:
    """``lens-select``."""
    _run("lens-select")


def rank() -> None:
    """``lens-rank``."""
    _run("lens-rank")


def ntk() -> None:
    """``lens-ntk``."""
    _run("lens-ntk")


def grid() -> None:
    """``lens-grid``."""
    _run("lens-grid")


def _run(name: str) -> None:
    runpy.run_module(f"experiments.{NAMES[name]}", run_name="__main__", alter_sys=True)
