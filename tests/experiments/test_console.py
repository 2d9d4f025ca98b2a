"""Console names run the same binaries, with the same help."""

import configparser
import importlib
import subprocess
import sys
from pathlib import Path

from experiments.common import console

ROOT = Path(__file__).parents[2]
CALL = "import sys; sys.argv[0] = {name!r}; from experiments.common import console; console.{f}()"


def scripts():
    """Name -> module and function, as setup.cfg installs them."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.entry_points"]["console_scripts"].split("\n")
    return dict(line.split(" = ") for line in lines if line)


def test_every_name_is_installed_and_runs_its_binary(monkeypatch):
    ran = []
    monkeypatch.setattr(console.runpy, "run_module", lambda name, **_: ran.append(name))
    for name, place in scripts().items():
        module, function = place.split(":")
        getattr(importlib.import_module(module), function)()
        assert ran.pop() == f"experiments.{console.NAMES[name]}"
    assert scripts().keys() == console.NAMES.keys()
    for binary in console.NAMES.values():
        assert (ROOT / "experiments" / f"{binary}.py").exists()


def test_a_console_name_shows_the_help_of_its_binary():
    call = CALL.format(name="/usr/bin/lens-rank", f="rank")
    by_name, by_module = (
        subprocess.run(
            [sys.executable, *arguments, "--help"], cwd=ROOT, capture_output=True, text=True,
            check=True,
        ).stdout
        for arguments in (["-c", call], ["-m", "experiments.rank_curves"])
    )  # fmt: skip
    assert by_name == by_module
    assert "--curves" in by_name
