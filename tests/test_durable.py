"""A folder belongs to the settings that were first written there."""

import json

import pytest

from lensllm_jax import durable
from lensllm_jax.checks import UserError

RECORD = "run.json"


def opened(path, settings, **notes):
    return durable.open_folder("output_dir", path, settings, record=RECORD, notes=notes)


def test_the_same_settings_open_a_folder_again_whatever_the_notes(tmp_path):
    opened(tmp_path / "out", {"sizes": (1, 2)}, command="first")
    folder = opened(tmp_path / "out", {"sizes": (1, 2)}, command="second")
    content = json.loads((folder / RECORD).read_text())
    assert content == {"settings": {"sizes": [1, 2]}, "command": "first"}
    with pytest.raises(UserError, match=r"sizes=.1, 2. there, .1, 3. now"):
        opened(tmp_path / "out", {"sizes": (1, 3)})


def test_a_setting_that_is_not_there_differs(tmp_path):
    opened(tmp_path, {"seed": 0})
    with pytest.raises(UserError, match=r"keep=None there, 0\.5 now"):
        opened(tmp_path, {"seed": 0, "keep": 0.5})


def test_files_that_were_never_finished_are_not_foreign(tmp_path):
    (tmp_path / f".a{durable.PARTIAL}").write_text("half")
    opened(tmp_path, {})
    (tmp_path / RECORD).unlink()
    (tmp_path / "letters.txt").write_text("")
    with pytest.raises(UserError, match=r"with letters\.txt"):
        opened(tmp_path, {})
    assert not (tmp_path / RECORD).exists()
