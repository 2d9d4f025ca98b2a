"""What lies in a folder loads as Hugging Face loads it, or is said in one line."""

import json
import os
import shutil

import jax
import pytest
from safetensors.numpy import load_file, save_file

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import CONFIG
from lensllm_jax.checkpoints.folder import INDEX, SINGLE
from lensllm_jax.checkpoints.zoo import FOLDER

ZOO = FOLDER / "gpt2-xs"


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(ZOO, tmp_path / "gpt2-xs")


@pytest.fixture(scope="module")
def whole():
    return load_folder(ZOO)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a.params, b.params))


def refusal(folder):
    with pytest.raises(checks.UserError) as caught:
        load_folder(folder)
    (line,) = str(caught.value).splitlines()
    return line


def write_shards(folder, tensors, total=3):
    names = sorted(tensors)
    files = [f"model-{i + 1:05}-of-{total:05}.safetensors" for i in range(total)]
    for i, file in enumerate(files):
        save_file({name: tensors[name] for name in names[i::total]}, folder / file)
    return {name: files[i % total] for i, name in enumerate(names)}


def test_the_whole_file_is_read_before_an_index_left_by_an_earlier_save(folder, whole):
    tensors = load_file(folder / SINGLE)
    stale = {name: values * 2 for name, values in tensors.items()}
    (folder / INDEX).write_text(json.dumps({"weight_map": write_shards(folder, stale)}))
    assert same(load_folder(folder), whole)
    (folder / SINGLE).unlink()
    assert not same(load_folder(folder), whole)  # the control: the shards are other weights


def test_shards_without_their_index_load_if_all_are_there(folder, whole):
    write_shards(folder, load_file(folder / SINGLE))
    (folder / SINGLE).unlink()
    assert same(load_folder(folder), whole)
    (folder / "model-00002-of-00003.safetensors").unlink()
    assert "all 3 shards of the weights, got no shard 2" in refusal(folder)


@pytest.mark.parametrize("name", ["model.fp16.safetensors", "weights.safetensors"])
def test_the_only_file_of_weights_loads_whatever_its_name(folder, whole, name):
    (folder / SINGLE).rename(folder / name)
    assert same(load_folder(folder), whole)


def test_of_several_variants_one_must_be_chosen(folder, whole):
    shutil.copy(folder / SINGLE, folder / "model.fp16.safetensors")
    (folder / SINGLE).rename(folder / "model.bf16.safetensors")
    assert "one variant of the weights, got bf16, fp16: rename one" in refusal(folder)
    write_shards(folder, load_file(folder / "model.fp16.safetensors"))
    (folder / "model.fp16.safetensors").unlink()
    (folder / "model.bf16.safetensors").rename(folder / SINGLE)
    assert same(load_folder(folder), whole)  # one without a variant comes first


@pytest.mark.parametrize(
    "wrapper",
    [
        "_orig_mod.",
        "module.",
        "base_model.model.",
        "module._orig_mod.",
        "_fsdp_wrapped_module.",
        "_forward_module.module.",
    ],
)
def test_what_training_put_before_the_names_is_taken_off(folder, whole, wrapper):
    tensors = {wrapper + name: values for name, values in load_file(folder / SINGLE).items()}
    save_file(tensors, folder / SINGLE)
    assert same(load_folder(folder), whole)
    weight_map = write_shards(folder, tensors)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert same(load_folder(folder), whole)
    save_file({**tensors, "stranger": tensors[next(iter(tensors))]}, folder / SINGLE)
    assert "missing" in refusal(folder)  # the control: not before all of them


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4f\nsize 20\n"


@pytest.mark.parametrize("file", [SINGLE, CONFIG])
def test_a_pointer_of_git_lfs_says_how_to_fetch_the_content(folder, file):
    (folder / file).write_text(POINTER)
    assert f"{file}` must hold the content itself, got a git-lfs pointer" in (
        line := refusal(folder)
    )
    assert "git lfs pull" in line


def test_a_link_to_a_file_that_is_gone_is_named(folder):
    (folder / SINGLE).unlink()
    (folder / SINGLE).symlink_to("../blobs/4f")
    assert f"{SINGLE}` must be a file, got a link to ../blobs/4f, which is gone" in refusal(folder)


def test_a_tokenizer_that_is_a_pointer_or_gone_is_named(folder):
    path = folder / "tokenizer.json"
    path.write_text(POINTER)
    with pytest.raises(checks.UserError, match="json` must hold the content itself, got a git-lfs"):
        _ = load_folder(folder).tokenizer
    path.unlink()
    path.symlink_to("../blobs/4f")
    with pytest.raises(
        checks.UserError, match=r"json` must be a file, got a link to \.\./blobs/4f"
    ):
        _ = load_folder(folder).tokenizer


def test_a_pipe_is_not_waited_for(folder):
    (folder / SINGLE).unlink()
    os.mkfifo(folder / SINGLE)
    assert "must be a regular file" in refusal(folder)


@pytest.mark.parametrize(
    ("files", "phrase"),
    [
        (("model.safetensors.incomplete",), "unfinished download (model.safetensors.incomplete)"),
        ((".cache/huggingface/download/model.safetensors.4f.incomplete",), "unfinished download"),
        (("checkpoint-500/config.json", "checkpoint-900/config.json"), "(checkpoint-500, checkpo"),
        (("a.gguf",), "GGUF files (a.gguf): give the path"),
        (("consolidated.safetensors", "params.json"), "layout of their own (consolidated.safe"),
        (("consolidated.00.pth",), "layout of their own"),
        (("adapter_model.bin",), "an adapter of another model (adapter_model.bin)"),
        (("tf_model.h5",), "only tf_model.h5: save the model again"),
        (("a.safetensors", "b.safetensors"), "several files of weights (a.safetensors, b.safe"),
        (("one/config.json", "two/config.json"), "folders of checkpoints (one, two): give one"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("has_config", [True, False])
def test_what_lies_there_instead_is_said(tmp_path, files, phrase, has_config):
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_bytes(b"")
    if has_config:
        shutil.copy(ZOO / CONFIG, tmp_path)
    assert phrase in refusal(tmp_path)


OUTSIDE = ["../{}", "{}/secret.safetensors", "sub/../../{}", "link.safetensors", "x" * 300, "a\0"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_an_index_names_no_file_outside_the_folder(folder, name):
    secret = folder.parent / "secret.safetensors"
    (folder / SINGLE).rename(secret)
    (folder / "link.safetensors").symlink_to(secret)
    file = name.format(secret.name if name.startswith("..") or "sub" in name else folder.parent)
    weight_map = dict.fromkeys(load_file(secret), file)
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    assert "must name files of its own folder" in refusal(folder)


def test_links_within_the_hub_cache_are_those_of_the_folder(tmp_path, whole):
    top = tmp_path / "models--a--b"
    snapshot = shutil.copytree(ZOO, top / "snapshots" / "4f")
    (top / "blobs").mkdir()
    (snapshot / SINGLE).rename(top / "blobs" / "77")
    (snapshot / "w.safetensors").symlink_to("../../blobs/77")
    names = load_file(top / "blobs" / "77")
    (snapshot / INDEX).write_text(json.dumps({"weight_map": dict.fromkeys(names, "w.safetensors")}))
    assert same(load_folder(snapshot), whole)


@pytest.mark.parametrize("content", ["{", "[" * 100_000, '{"a": ' + "9" * 5000 + "}", "[]", "null"])
def test_json_that_is_none_is_named(folder, content):
    (folder / CONFIG).write_text(content)
    assert f"{CONFIG}` must " in refusal(folder)
    shutil.copy(ZOO / CONFIG, folder)
    (folder / SINGLE).unlink()
    (folder / INDEX).write_text(content)
    assert f"{INDEX}` must be JSON" in refusal(folder)


def test_a_byte_order_mark_and_other_alphabets_are_read(folder, whole):
    config = json.loads((folder / CONFIG).read_text()) | {"license": "Lizenz für alle 許可"}
    (folder / CONFIG).write_text(json.dumps(config, ensure_ascii=False), encoding="utf-8-sig")
    assert same(load_folder(folder), whole)
