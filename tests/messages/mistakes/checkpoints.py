"""Mistakes with checkpoint folders: what lies in them, and what is missing."""

import json
import shutil
import sys

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensllm_jax as lens
from lensllm_jax.checkpoints import config, formats, tensors, tokenizer, zoo
from lensllm_jax.checkpoints.candidate import load_folder

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
    save_file({"x": np.ones(1)}, folder / WEIGHTS)
    return written(folder, INDEX, json.dumps({"weight_map": dict.fromkeys(names, WEIGHTS)}))


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


# the message, and what brings it about in an empty folder
MISTAKES = [
    ("`candidate` must be one of ..., got 'zoo/gpt5'", lambda tmp: lens.load_candidate("zoo/gpt5")),
    (
        (
            "`candidate` must be one of ..., or where there is one run `hf download "
            "nobody/has-this-model --local-dir FOLDER` and give the path of the folder"
        ),
        lambda tmp: lens.load_candidate("nobody/has-this-model"),
    ),
    (
        "`dtype` must be one of ..., got 'int8'",
        lambda tmp: lens.load_candidate("zoo/gpt2-xs", dtype="int8"),
    ),
    (
        (
            "`dtype` must be at most float32 while JAX's x64 mode is off, got 'float64': set "
            "JAX_ENABLE_X64=1"
        ),
        lambda tmp: lens.load_candidate("zoo/gpt2-xs", dtype="float64"),
    ),
    (
        "`zoo/gpt2-xs` must be an encoder-decoder, got a decoder alone",
        lambda tmp: lens.load_candidate("zoo/gpt2-xs").decoder_start_token_id,
    ),
    (
        "`DIR` must be a checkpoint folder with config.json, got none",
        lambda tmp: config.read_config(tmp),
    ),
    (
        "`DIR/config.json` must be JSON, got ...",
        lambda tmp: config.read_config(written(tmp, CONFIG, "{")),
    ),
    (
        "`DIR/config.json` must hold attributes, `model_type` among them, got [1]",
        lambda tmp: config.read_config(written(tmp, CONFIG, "[1]")),
    ),
    (
        "`model_type` in config.json must be one of ..., got 'mamba'",
        lambda tmp: config.parse_config({"model_type": "mamba"}),
    ),
    (
        "`config.json` must be a valid gpt2 config, got TypeError: ...",
        lambda tmp: config.parse_config({"model_type": "gpt2", "n_head": "many"}),
    ),
    (
        (
            "`config.json` must describe a gpt2 model with supported settings, got "
            "add_cross_attention=True (only False)"
        ),
        lambda tmp: config.parse_config({"model_type": "gpt2", "add_cross_attention": True}),
    ),
    (
        (
            "`DIR/model.safetensors` must be a complete safetensors file of tensors, got one that "
            "does not read (...): fetch it again"
        ),
        lambda tmp: formats.open_tensors(written(tmp, WEIGHTS, b"12345678") / WEIGHTS),
    ),
    (
        (
            "`DIR/pytorch_model.bin` must be read by PyTorch, got no PyTorch: install it (pip "
            "install torch), or save the model again with safe_serialization=True"
        ),
        lambda tmp: as_bin_without_pytorch(tmp),
    ),
    (
        (
            "`DIR` must hold model.safetensors, flax_model.msgpack, pytorch_model.bin, or an index "
            "of several such files, got no weights: save the model again with "
            "safe_serialization=True"
        ),
        lambda tmp: tensors.TensorFiles.of_folder(without(tmp, WEIGHTS)),
    ),
    (
        ("`DIR/model.safetensors.index.json` must be JSON with a `weight_map`, got TypeError: ..."),
        lambda tmp: tensors.TensorFiles.of_folder(written(tmp, INDEX, "[]")),
    ),
    (
        (
            "`DIR` must hold whole weights, got no file a.safetensors, where "
            "model.safetensors.index.json finds w (fetch it)"
        ),
        lambda tmp: list(
            tensors.TensorFiles.of_folder(
                written(tmp, INDEX, '{"weight_map": {"w": "a.safetensors"}}')
            ).open({"w"})
        ),
    ),
    (
        (
            "`DIR` must hold the tensors that its config.json describes, got: model.safetensors "
            "without transformer.h.0.attn.c_attn.bias, ... more, which "
            "model.safetensors.index.json finds there (fetch it again); unexpected x (in "
            "model.safetensors)"
        ),
        lambda tmp: load_folder(sharded(tmp)),
    ),
    (
        (
            "`params` must be finite in float16, got tensor transformer.ln_f.bias of magnitude "
            "1e+05: choose another `dtype`, or look why training diverged"
        ),
        lambda tmp: saved(tmp, dtype="float16"),
    ),
    (
        (
            "`folder` must not hold a sharded checkpoint, got one with "
            "model.safetensors.index.json: save to another folder"
        ),
        lambda tmp: saved(written(tmp, INDEX, "{}")),
    ),
    (
        (
            "`DIR/spiece.model` must be read by sentencepiece, got no such library: install it "
            "(pip install sentencepiece)"
        ),
        lambda tmp: sentencepiece_without_its_library(tmp),
    ),
    (
        (
            "`DIR` must hold the tensors that its config.json describes, got: "
            "transformer.h.0.mlp.c_fc.bias of shape (256,) (the config asks for (8,)) (in "
            "model.safetensors); ..."
        ),
        lambda tmp: load_folder(configured(tmp, n_inner=8)),
    ),
    (
        (
            "`DIR` must hold a tokenizer to read text, got none of tokenizer.json, vocab.json, "
            "spiece.model, tokenizer.model, vocab.txt: save it there with "
            "tokenizer.save_pretrained(folder)"
        ),
        lambda tmp: load_folder(without(tmp, "tokenizer.json", "tokenizer_config.json")).tokenizer,
    ),
    (
        (
            "`DIR` must hold a tokenizer to read text, got one that does not load (...): save it "
            "there with tokenizer.save_pretrained(folder)"
        ),
        lambda tmp: load_folder(written(without(tmp), "tokenizer.json", "{}")).tokenizer,
    ),
    (
        (
            "`...gpt2-xs/tokenizer.json` must have at most 100 tokens (rows of the embedding, "
            "tensor wte.weight), got 2048: put the tokenizer there that the weights were trained "
            "with"
        ),
        lambda tmp: tokenizer.read_tokenizer(SMALLEST, {}, vocab_size=100, table="wte.weight"),
    ),
    (
        (
            "tokenizer of `DIR` must have an end token (eos_token), got none there and none in "
            "config.json: set it, and save the tokenizer again"
        ),
        lambda tmp: load_folder(other_end(tmp)).tokenizer,
    ),
]
