"""In a pipe lines are plain, quiet is silent, and Ctrl-C ends with a message on how to resume."""

import json
import os
import pty
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from experiments.common import terminal

ROOT = Path(__file__).parents[2]
WORK = """
from experiments.common.progress import Progress
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


def test_ctrl_c_says_how_to_resume():
    running = subprocess.Popen(
        [sys.executable, "-c", WAITS], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGINT)
    _, text = running.communicate(timeout=20)
    assert running.returncode == 130
    assert text == "error: interrupted: the same command resumes\n"


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
