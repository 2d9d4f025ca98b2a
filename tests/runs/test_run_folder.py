"""A run folder: a file name for every candidate, one process at a time, nothing damaged is read."""

import fcntl
import itertools
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.durable import PARTIAL, replace
from lensllm_jax.measurement.jobs import Job
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.runs import run_folder
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.resume import Cells, cell_path
from lensllm_jax.runs.run_folder import RUN, RunFolder, command, file_name_of

LONGEST_FILE_NAME = 255  # bytes
OPENS = """
import sys
from experiments.common import cli
from lensllm_jax.runs.run_folder import RunFolder
def main(argv):
    folder = RunFolder.open("{path}", {settings}, shared={shared})
    print("open", flush=True)
    sys.stdin.readline()
sys.argv = ["x"]
cli.run(main)
"""
PIECE = {"test_loss": 1.25, "spectrum": [1.0, 2.0]}


@given(st.lists(st.text(st.sampled_from("abA-/.~_@ \\\n\0é"), max_size=9), min_size=2, unique=True))
@example(["x--y", "x/y", "x-/-y", "/x--y", "x/y/", "..", ".", "", "../..", "x//y"])
@example(["x/y", "X/Y", "X--Y", "\u00e9", "e\u0301", "\u212b", "\u00c5"])
@example(["a" * 300, "a" * 301, "a" * 300 + "/", "b" * 128, "b" * 129])
def test_every_name_has_a_file_name_of_its_own_within_the_folder(names):
    files = [file_name_of(name) for name in names]
    assert len({file.casefold() for file in files}) == len(files)
    for file in files:
        assert file not in ("", ".", "..")
        assert not file.startswith((".", "-"))
        assert not set(file) & set("/\\\n\0 ")
        assert len(file.encode()) < LONGEST_FILE_NAME


def test_short_names_of_few_characters_never_share_a_file():
    names = ["".join(t) for n in range(1, 5) for t in itertools.product("aA/.~-", repeat=n)]
    assert len({file_name_of(name).casefold() for name in names}) == len(names)


def test_hub_ids_and_bundled_candidates_stay_legible():
    assert file_name_of("zoo/gpt2-xs") == "zoo--gpt2-xs"
    assert file_name_of("Qwen/Qwen2.5-0.5B") == "Qwen--Qwen2.5-0.5B~b3a114d7599169f6"


@pytest.mark.parametrize("name", ["con", "nul.txt", "com1", "model.", "a/model."])
def test_names_that_windows_lacks_end_in_a_digest(name):
    assert "~" in file_name_of(name)
    assert "~" not in file_name_of(f"x{name}s")


def test_candidates_of_similar_names_get_their_own_losses(tmp_path):
    cells = Cells(RunFolder.open(tmp_path, {}), Progress(total=1.0, quiet=True))
    names = ["x--y", "x/y", "m", "m/", "/m", "..", "../m"]
    jobs = [
        Job(name, 1, 4, MeasurementConfig(), path=tmp_path / cell_path(name, 4)) for name in names
    ]
    for loss, job in enumerate(jobs, start=1):
        assert cells.unfinished([job]) == [job]
        cells.keep(job, {"test_loss": float(loss), "records": np.ones((2, 1))})
    read = [cells.folder.read_piece(cell_path(name, 4))["test_loss"] for name in names]
    assert read == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert all(job.path.resolve().is_relative_to(tmp_path / "cells") for job in jobs)


DAMAGES = {
    "cut": lambda content: content[: len(content) // 2],
    "empty": lambda content: b"",
    "another loss": lambda content: content.replace(b"1.25", b"1.26"),
    "not a number": lambda content: content.replace(b"1.25", b"NaN"),
    "not ours": lambda content: b'{"test_loss": 1.25}',
    "a list": lambda content: b"[]",
    "null": lambda content: b"null",
    "no text": lambda content: b"\xff\xfe",
    "deep": lambda content: b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_piece_is_named_and_made_again(tmp_path, capsys, damage):
    folder = RunFolder.open(tmp_path, {})
    assert folder.remember("cells/a.json", lambda: PIECE) == PIECE
    path = tmp_path / "cells/a.json"
    whole = path.read_bytes()
    path.write_bytes(DAMAGES[damage](whole))
    assert folder.remember("cells/a.json", lambda: PIECE) == PIECE
    assert path.read_bytes() == whole
    assert capsys.readouterr().err == f"{path} is damaged: it is made again\n"
    folder.remember("cells/a.json", lambda: 1 / 0)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_damaged_array_is_named_and_made_again(tmp_path, capsys, damage):
    folder = RunFolder.open(tmp_path, {})
    digest = folder.write_array("ntk.npy", np.eye(3))
    folder.write_piece("ntk.json", {"npy_sha256": digest})
    assert folder.has_array("ntk.npy", "ntk.json")
    path = tmp_path / "ntk.npy"
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(DAMAGES[damage](path.read_bytes()))
    assert not folder.has_array("ntk.npy", "ntk.json")
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    "record", ["[]", "{}", "null", '{"settings": []}', '{"settings": null}', '{"settings": {}}',
               '{"settings": {}, "command": 1}', "[" * 100_000, "\udcff", '{"settings": "ab"}',
               '{"settings": [[1, 2]]}'],
)  # fmt: skip
def test_a_record_that_is_not_ours_is_refused(tmp_path, record):
    (tmp_path / RUN).write_bytes(record.encode(errors="surrogateescape"))
    with pytest.raises(UserError, match=r"`output_dir` must hold a run.json of ours, got one that"):
        RunFolder.open(tmp_path, {})


def opened(path, *, shared, settings=None):
    """A process that has the folder open, or has said why not."""
    script = OPENS.format(path=path, shared=shared, settings=settings or {})
    process = subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    return process, process.stdout.readline()


def test_a_folder_is_open_in_one_process_at_a_time(tmp_path):
    folder = RunFolder.open(tmp_path, {})
    assert RunFolder.open(tmp_path, {}).path == folder.path  # again in this process
    process, line = opened(tmp_path, shared=False)
    _, error = process.communicate()
    assert (process.returncode, line) == (2, "")
    assert error.startswith("error: ")
    assert "`output_dir` must belong to one process at a time, got " in error
    assert error.count("\n") == 1
    del folder  # the lock goes with it
    process, line = opened(tmp_path, shared=True)
    assert line == "open\n"
    with pytest.raises(UserError, match="one process at a time"):
        RunFolder.open(tmp_path, {})
    RunFolder.open(tmp_path, {}, shared=True)
    process.kill()
    process.communicate()
    RunFolder.open(tmp_path, {})  # a killed process holds nothing


GROWING = ("sizes", "sha256")


def test_settings_that_may_grow_are_written_anew(tmp_path):
    small, large = {"sizes": [0, 8], "sha256": {"a": "1"}}, {"sizes": [0, 4, 8], "sha256": {}}
    large["sha256"] = {"b": "2", "a": "1"}
    folder = RunFolder.open(tmp_path, small, growing=GROWING, command="first")
    folder.write_piece("a.json", PIECE)
    with pytest.raises(UserError, match=r"with sha256 of b=None there, '2' now; sizes=\[0, 8\]"):
        RunFolder.open(tmp_path, large)  # the control
    folder = RunFolder.open(tmp_path, large, growing=GROWING, command="second")
    assert folder.remember("a.json", lambda: 1 / 0) == PIECE
    stored = folder.read_json(RUN)
    assert (stored["settings"], stored["command"]) == (large, "second")
    for different in (
        small,
        {**large, "sizes": [4, 8, 16]},
        {**large, "sha256": {"a": "3", "b": "2"}},
        {**large, "sizes": None},
        {**large, "seed": 1},
    ):
        with pytest.raises(UserError, match="must hold results of these settings"):
            RunFolder.open(tmp_path, different, growing=GROWING)
    assert folder.read_json(RUN) == stored
    RunFolder.open(tmp_path, large, growing=GROWING, command="third")
    assert folder.read_json(RUN) == stored  # as long as nothing grows


def test_the_lock_of_a_folder_goes_to_its_new_record(tmp_path):
    large = {"sizes": [8, 16]}
    before = RunFolder.open(tmp_path, {"sizes": [8]}, growing=GROWING)
    folder = RunFolder.open(tmp_path, large, growing=GROWING)
    del before  # which had it first, in this process
    process, line = opened(tmp_path, shared=False, settings=large)
    assert "one process at a time" in process.communicate()[1]
    assert line == ""
    del folder
    process, line = opened(tmp_path, shared=False, settings=large)
    assert line == "open\n"
    with pytest.raises(UserError, match="one process at a time"):  # and nothing is written
        RunFolder.open(tmp_path, {"sizes": [8, 16, 32]}, growing=GROWING)
    process.communicate()
    assert RunFolder.open(tmp_path, large).read_json(RUN)["settings"] == large


def test_a_record_that_was_replaced_is_not_locked(tmp_path):
    """Another process may put its own there between opening and locking."""
    RunFolder.open(tmp_path, {})
    lock = run_folder._Lock(tmp_path / RUN)
    replace(tmp_path / RUN, (tmp_path / RUN).read_bytes())
    with pytest.raises(UserError, match="one process at a time"):
        lock.take(tmp_path, fcntl.LOCK_EX)


def test_a_file_system_without_locks_is_used_without(tmp_path, monkeypatch):
    def unsupported(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(run_folder.fcntl, "flock", unsupported)
    assert RunFolder.open(tmp_path, {}).remember("a.json", lambda: PIECE) == PIECE
    assert sorted(os.listdir(tmp_path)) == ["a.json", RUN]
    for settings in ({"sizes": [8]}, {"sizes": [8, 16]}):
        grown = RunFolder.open(tmp_path / "grown", settings, growing=GROWING)
        assert grown.read_json(RUN)["settings"] == settings


def test_the_command_can_be_pasted(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/x/rank_curves.py", "--curves=my tables/a.csv", "--x=$1"])
    assert command() == ("python -m experiments.rank_curves '--curves=my tables/a.csv' '--x=$1'")


def test_pieces_are_the_same_bytes_for_the_same_content(tmp_path):
    folder = RunFolder.open(tmp_path, {})
    folder.write_piece("a.json", {"b": 1, "a": 0.1})
    folder.write_piece("b.json", {"a": 0.1, "b": 1})
    assert (tmp_path / "a.json").read_bytes() == (tmp_path / "b.json").read_bytes()
    assert set(json.loads((tmp_path / "a.json").read_text())) == {"a", "b", "digest"}


def test_what_a_killed_writer_left_is_removed(tmp_path):
    RunFolder.open(tmp_path, {}).write_piece("cells/a.json", {})
    left = [tmp_path / f".losses.csv.00{PARTIAL}", tmp_path / "cells" / f".b.json.00{PARTIAL}"]
    for path in left:
        path.write_text("half")
    RunFolder.open(tmp_path, {})
    assert not any(path.exists() for path in left)
