"""A file has the content before or the content after, never a part of it."""

import contextlib
import errno
import os
import re
import resource

import numpy as np
import pytest

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.formats import write_safetensors


def test_a_writer_that_fails_leaves_the_file_before_and_nothing_else(tmp_path):
    target = tmp_path / "a.txt"
    durable.replace(target, b"before")

    def half():
        with durable.writing(target) as aside:
            aside.write_bytes(b"half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half()
    assert target.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [target]


def test_nothing_has_the_name_before_it_is_whole(tmp_path):
    target = tmp_path / "folder" / "a.txt"
    with durable.writing(target) as aside:
        aside.write_bytes(b"half")
        assert not target.exists()
        assert aside.name.endswith(durable.PARTIAL)
        aside.write_bytes(b"whole")
    assert target.read_bytes() == b"whole"


def test_a_folder_is_whole_or_not_there(tmp_path):
    target = tmp_path / "folder"

    def write(text, *, fails=False):
        with durable.writing_folder(target) as aside:
            (aside / text).write_text(text)
            assert not (target / text).exists()
            if fails:
                raise ZeroDivisionError

    write("before")
    left = tmp_path / f".folder{durable.PARTIAL}"
    left.mkdir()
    (left / "half").write_text("of a killed writer")
    with pytest.raises(ZeroDivisionError):
        write("half", fails=True)
    assert [file.name for file in target.iterdir()] == ["before"]
    write("after")
    assert [file.name for file in target.iterdir()] == ["after"]
    assert list(tmp_path.iterdir()) == [target]


@pytest.mark.parametrize("is_another_disk", [False, True])
def test_a_folder_is_moved_to_any_disk(is_another_disk, tmp_path, monkeypatch):
    source, target, replace = tmp_path / "a", tmp_path / "b" / "c", os.replace
    source.mkdir()
    (source / "file").write_text("whole")

    def within_a_disk(old, new):
        if is_another_disk and old == source:
            raise OSError(errno.EXDEV, "another disk")
        replace(old, new)

    monkeypatch.setattr(os, "replace", within_a_disk)
    durable.move_folder(source, target)
    assert (target / "file").read_text() == "whole"
    assert not source.exists()
    assert list(target.parent.iterdir()) == [target]


@contextlib.contextmanager
def disk_of(num_bytes):
    """Files of this process cannot grow further, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("is_safetensors", [False, True])
def test_a_full_disk_is_named_and_leaves_the_earlier_file(is_safetensors, tmp_path):
    target, large = tmp_path / "a.bin", np.ones(2000)
    target.write_bytes(b"whole")
    write = write_safetensors if is_safetensors else durable.replace
    with disk_of(1000), pytest.raises(OSError, match=re.escape(str(target))):
        write(target, {"w": large} if is_safetensors else large.tobytes())
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"whole"]


def test_a_folder_does_not_take_the_place_of_files(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).write_text(name)
    with pytest.raises(OSError, match="not empty"):
        durable.move_folder(tmp_path / "a", tmp_path / "b")


def test_the_first_of_two_writers_creates(tmp_path):
    target = tmp_path / "a.txt"
    assert durable.create(target, b"first")
    assert not durable.create(target, b"second")
    assert target.read_bytes() == b"first"


def test_differences_name_what_is_added_lost_and_changed():
    assert durable.differences({"a": 1, "b": 2, "c": 3}, {"b": 2, "c": 4, "d": 5}) == [
        "a=1 there, None now", "c=3 there, 4 now", "d=None there, 5 now",
    ]  # fmt: skip


def test_what_a_living_writer_has_not_finished_stays(tmp_path):
    target = tmp_path / "a.[0]txt"
    left = target.with_name(f".{target.name}.0{durable.PARTIAL}")
    left.write_bytes(b"of a killed writer")
    with durable.writing(target) as aside:
        aside.write_bytes(b"whole")
        durable.remove_partials(target)
        assert aside.exists()
        assert not left.exists()
    assert target.read_bytes() == b"whole"


@pytest.mark.parametrize("name", ["dangling", "circle", "file/a", "a" * 300, "a\0b"])
def test_a_name_that_can_be_no_folder_is_refused(name, tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to("nowhere")
    (tmp_path / "circle").symlink_to("circle")
    with pytest.raises(checks.UserError, match="`out` must be a folder that can be made, got"):
        durable.open_folder("out", tmp_path / name, {}, record="run.json")
