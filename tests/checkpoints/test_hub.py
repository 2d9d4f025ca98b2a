"""What a user may call a candidate, and the hub's cache."""

import shutil
from pathlib import Path

import huggingface_hub
import jax
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.hub import HubModel
from lensllm_jax.checkpoints.zoo import FOLDER, folder_of

SMALLEST = FOLDER / "gpt2-xs"


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("gpt2", ("gpt2", None)),
        ("facebook/opt-350m", ("facebook/opt-350m", None)),
        ("facebook/opt-350m@refs/pr/3", ("facebook/opt-350m", "refs/pr/3")),
        ("facebook/opt-350m@4f0a", ("facebook/opt-350m", "4f0a")),
        ("https://huggingface.co/facebook/opt-350m", ("facebook/opt-350m", None)),
        ("https://huggingface.co/facebook/opt-350m/", ("facebook/opt-350m", None)),
        ("https://huggingface.co/facebook/opt-350m/tree/v2", ("facebook/opt-350m", "v2")),
        ("https://hf.co/facebook/opt-350m/blob/main/config.json", ("facebook/opt-350m", "main")),
        ("huggingface.co/facebook/opt-350m/tree/v2", ("facebook/opt-350m", "v2")),
        ("https://huggingface.co/datasets/a/b", None),
        ("https://huggingface.co/gpt2?library=transformers", ("gpt2", None)),
        ("hf://facebook/opt-350m@v2", ("facebook/opt-350m", "v2")),
        ("https://example.com/facebook/opt-350m", None),
        ("a/b/c", None),
        ("", None),
        ("a b", None),
    ],
)
def test_a_model_on_the_hub_has_many_names(name, model):
    assert HubModel.named(name) == (model and HubModel(*model))


def cached(tmp_path, monkeypatch, **revisions):
    """A hub cache with one model; the revisions' checkpoints, and where each is."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    top = tmp_path / "models--somebody--small"
    (top / "refs").mkdir(parents=True)
    for ref, commit in revisions.items():
        shutil.copytree(SMALLEST, top / "snapshots" / commit, dirs_exist_ok=True)
        (top / "refs" / ref).write_text(commit)
    return top


def test_a_revision_is_that_of_the_name(tmp_path, monkeypatch):
    top = cached(tmp_path, monkeypatch, main="1234", v2="5678")
    assert folder_of("somebody/small") == top / "snapshots" / "1234"
    assert folder_of("somebody/small@v2") == top / "snapshots" / "5678"
    page = "https://huggingface.co/somebody/small/tree/v2"
    assert folder_of(page) == top / "snapshots" / "5678"
    with pytest.raises(checks.UserError, match="hf download somebody/small --revision v3 --local"):
        folder_of("somebody/small@v3")


def test_the_top_folder_of_a_cached_model_is_its_main_revision(tmp_path, monkeypatch):
    top = cached(tmp_path, monkeypatch, main="1234", v2="5678")
    assert folder_of(top) == folder_of(str(top)) == top / "snapshots" / "1234"
    (top / "refs" / "main").unlink()
    with pytest.raises(checks.UserError, match=r"one revision.*got 1234, 5678: give one"):
        folder_of(top)
    shutil.rmtree(top / "snapshots" / "1234")
    assert folder_of(top) == top / "snapshots" / "5678"


def test_paths_are_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = shutil.copytree(SMALLEST, tmp_path / "zoo" / "mine")
    for name in (Path("zoo/mine"), "zoo/mine", "./zoo/mine", "~/zoo/mine", folder, f"{folder}/"):
        assert folder_of(name).resolve() == folder, name
    assert folder_of("zoo/gpt2-xs") == SMALLEST
    candidate = lens.load_candidate(folder)
    assert candidate.name == str(folder)
    whole = lens.load_candidate("zoo/gpt2-xs")
    equal = jax.tree.map(lambda x, y: bool((x == y).all()), candidate.params, whole.params)
    assert jax.tree.all(equal)


@pytest.mark.parametrize(
    "name", ["./nothing", "~/nothing", "/nothing", Path("zoo/gpt2-xs"), "a/b/c"]
)
def test_a_path_to_nothing_is_no_model_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(checks.UserError, match="nothing there"):
        folder_of(name)
    assert not list(tmp_path.iterdir())


def test_a_file_of_a_checkpoint_is_not_its_folder():
    with pytest.raises(checks.UserError, match="a file: give the folder"):
        folder_of(SMALLEST / "config.json")
