"""Importing costs nothing, and help shows a command that can be pasted."""

import ast
import re
import subprocess
import sys

import pytest

from tests.messages.binaries import NAMES, ROOT


def python(*arguments):
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_import_takes_less_than_a_second_and_starts_no_backend():
    script = (
        # CPU time: on a busy machine wall-clock time includes the other processes
        "import time; start = time.process_time(); import lensllm_jax; "
        "print(time.process_time() - start); import sys; "
        "bridge = sys.modules.get('jax._src.xla_bridge'); print(bool(bridge and bridge._backends))"
    )
    seconds, started = python("-c", script).split()
    assert float(seconds) < 1.0
    assert started == "False"


def test_a_backend_that_is_started_is_detected():
    script = (
        "import jax, sys; jax.devices(); print(bool(sys.modules['jax._src.xla_bridge']._backends))"
    )
    assert python("-c", script).strip() == "True"


@pytest.mark.parametrize("binary", NAMES)
def test_help_shows_an_example(binary):
    # --help prints the docstring: the test below runs it for one binary
    docstring = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{binary}.py").read_text()))
    assert docstring is not None
    assert f"python -m experiments.{binary} --" in re.sub(r"\\\s+", "", docstring)


def test_help_prints_the_docstring():
    assert "python -m experiments.rank_curves --curves=" in python(
        "-m", "experiments.rank_curves", "--help"
    )
