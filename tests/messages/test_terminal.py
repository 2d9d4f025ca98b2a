"""In a pipe lines are plain, quiet is silent, and Ctrl-C ends with a message on how to resume."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from lensllm_jax.printable import printable
from lensllm_jax.runs import terminal

ROOT = Path(__file__).parents[2]
WORK = """
from lensllm_jax.runs.progress import Progress
with Progress(total=2.0, quiet={quiet}) as progress:
    progress.finish(1.0, "half way")
"""
# a shell's background job ignores Ctrl-C, and so would the processes that the tests start there
WAITS = """
import signal, sys, time
from experiments.common import cli
signal.signal(signal.SIGINT, signal.default_int_handler)
def main(_):
    print("ready", flush=True)
    time.sleep(60)
cli.run(main)
"""


def on_terminal(script, **environment):
    """What a script writes to a terminal as its stderr."""
    ours, theirs = pty.openpty()
    variables = {k: v for k, v in os.environ.items() if k not in ("NO_COLOR", "CI")}
    variables |= {"TERM": "xterm-256color", **environment}
    subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, stderr=theirs, env=variables, check=True
    )
    os.close(theirs)
    text = b""
    try:
        while chunk := os.read(ours, 65536):
            text += chunk
    except OSError:  # the other end is closed
        pass
    os.close(ours)
    return text.decode()


@pytest.mark.parametrize(("quiet", "expected"), [(False, " 50%"), (True, "")])
def test_a_pipe_gets_plain_lines_or_nothing(quiet, expected):
    script = [sys.executable, "-c", WORK.format(quiet=quiet)]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stderr.startswith(expected)
    assert bool(done.stderr) == bool(expected)
    assert "\x1b" not in done.stderr + done.stdout


def test_no_color_takes_the_colours_of_a_terminal_away():
    script = WORK.format(quiet=False)
    assert "\x1b[3" in on_terminal(script)
    assert "\x1b[3" not in on_terminal(script, NO_COLOR="1")


def losses():
    shown = terminal.table("Losses")
    shown.add_column("candidate")
    for size in range(200, 1000, 100):
        shown.add_column(f"at {size} examples", justify="right")
    shown.add_row(
        "a/candidate-of-a-long-name", *(f"{size + 0.5:.4f}" for size in range(200, 1000, 100))
    )
    return shown


def test_a_narrow_terminal_folds_names_and_cuts_no_number(capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "COLUMNS": "100"}.items():
        monkeypatch.setenv(name, value)
    Console().print(losses())  # as it would be
    assert "\u2026" in capsys.readouterr().out
    terminal.show(losses())
    text = capsys.readouterr().out
    assert "\u2026" not in text
    assert all(f"{size + 0.5:.4f}" in text for size in range(200, 1000, 100))
    assert "a/candidate-of-a-long-name" not in text  # in pieces


@pytest.mark.parametrize("width", [20, 40, 60, 80, 120])
def test_numbers_and_names_are_whole_on_every_screen(capsys, monkeypatch, width):
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": str(width)}.items():
        monkeypatch.setenv(name, value)
    terminal.show(losses())
    text = capsys.readouterr().out
    assert "\u2026" not in text
    assert all(f"{size + 0.5:.4f}" in text for size in range(200, 1000, 100))
    letters = "".join(re.sub(r"\x1b\[[0-9;]*m", "", text).split())
    assert "a/candidate-of-a-long-name" in letters or width > 60


NAMES = ["[/m]", "[red]m", "[bold]a[/bold]", ":smile:", "\x1b[2Jx", "a\\[b]", "a\nb"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("on_screen", [True, False])
def test_a_name_is_shown_as_it_is(capsys, monkeypatch, name, on_screen):
    if on_screen:
        for variable, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80"}.items():
            monkeypatch.setenv(variable, value)
    shown = terminal.table(name, left=[name], right=["loss"])
    shown.add_row(name, "1.0")
    terminal.show(shown, name)
    terminal.warn(name)
    text = capsys.readouterr()
    assert text.out.count(printable(name)) == 4
    assert text.err == f"{printable(name)}\n"
    assert name.isprintable() or name not in text.out


@pytest.mark.parametrize("name", NAMES)
def test_progress_shows_a_name_as_it_is(name):
    text = on_terminal(WORK.format(quiet=False).replace('"half way"', repr(name)), COLUMNS="120")
    assert printable(name) in re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text)


def waiting(*, hang_up):
    """A binary that waits, started by a shell that left SIGHUP so."""
    script = f"import signal; signal.signal(signal.SIGHUP, signal.{hang_up})" + WAITS
    running = subprocess.Popen(
        [sys.executable, "-c", script], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert running.stdout.readline() == "ready\n"
    return running


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_that_stops_says_how_to_resume(number, code):
    running = waiting(hang_up="SIG_DFL")  # a test under nohup inherits that it is ignored
    running.send_signal(getattr(signal, number))
    _, text = running.communicate(timeout=20)
    assert running.returncode == code
    assert text == "error: interrupted: the same command resumes\n"


COMPUTES = """
import jax, sys
from experiments.common import cli
from lensllm_jax.finetune.loop import awaited
def main(_):
    much = jax.jit(lambda x: jax.lax.fori_loop(0, 10**7, lambda i, x: x @ x * 1e-3, x))
    array = much(jax.numpy.ones((300, 300)))
    print("ready", flush=True)
    awaited(array)
cli.run(main)
"""


def test_a_signal_stops_what_is_being_computed():
    running = subprocess.Popen(
        [sys.executable, "-c", COMPUTES], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGTERM)
    _, text = running.communicate(timeout=20)
    assert running.returncode == 143
    assert text == "error: interrupted: the same command resumes\n"


def test_what_a_shell_ignores_stays_ignored():
    running = waiting(hang_up="SIG_IGN")
    running.send_signal(signal.SIGHUP)
    with pytest.raises(subprocess.TimeoutExpired):
        running.wait(timeout=0.5)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=20)
    assert running.returncode == 143


FAILS = """
import sys
from experiments.common import cli
def main(_):
    raise {error}
sys.argv = ["x"]
cli.run(main)
"""


@pytest.mark.parametrize(
    ("error", "environment", "code", "phrase"),
    [
        (
            "SystemError",
            {"JAX_PLATFORMS": "cuda"},
            2,
            "error: `JAX_PLATFORMS` must name a",
        ),
        (
            "SystemError",
            {"JAX_PLATFORMS": "gelu"},
            2,
            "error: `JAX_PLATFORMS` must name a",
        ),
        ("MemoryError('a')", {}, 1, "error: out of memory: a: give more, or take smaller batches"),
        ("RuntimeError('RESOURCE_EXHAUSTED')", {}, 1, "error: out of memory: RESOURCE_EXHAUSTED"),
    ],
)
def test_what_the_machine_lacks_is_one_line(error, environment, code, phrase):
    done = subprocess.run(
        [sys.executable, "-c", FAILS.format(error=error)], cwd=ROOT, capture_output=True,
        text=True, env={**os.environ, **environment}, check=False,
    )  # fmt: skip
    assert done.returncode == code
    assert done.stderr.startswith(phrase)
    assert done.stderr.count("\n") == 1


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory):
    """What became of each run that was interrupted in a fine-tune, per process."""
    command = [sys.executable, "-m", "tests.messages.interrupted", tmp_path_factory.mktemp("runs")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("run", ["select_model", "finetune_grid", "finetune_grid_local"])
def test_a_run_that_is_interrupted_ends_cleanly(interrupted, run):
    for process in interrupted[run]:
        assert process["code"] == 130
        assert process["output"] == "error: interrupted: the same command resumes\n"
        assert process["half_written"] == []
        assert not process["alive"]


@pytest.mark.slow
@pytest.mark.parametrize("run", ["select_model", "finetune_grid"])
def test_the_same_command_resumes(interrupted, run):
    first, second = (process["started"] for process in interrupted[run])
    assert len(set(first)) == 2
    assert second == first[1:]  # what was finished is not done again
