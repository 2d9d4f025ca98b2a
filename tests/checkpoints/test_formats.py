"""Every format gives the same parameters, nothing is unpickled, and loading needs little memory."""

import json
import pickle
import shutil
import sys

import jax
import ml_dtypes
import numpy as np
import pytest
import safetensors
from flax import serialization, traverse_util
from safetensors.numpy import load_file, save_file

from lensllm_jax import checks
from lensllm_jax.checkpoints import stored_tensor, weights
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.folder import INDEX, SINGLE
from lensllm_jax.checkpoints.formats import open_tensors, write_safetensors
from lensllm_jax.checkpoints.zoo import FOLDER
from tests.models.encoder_decoders import ENCODER_DECODERS
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS


@pytest.fixture
def folder(tmp_path):
    return shutil.copytree(FOLDER / "gpt2-xs", tmp_path / "gpt2-xs")


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a.params, b.params))


def as_flax(tensors):
    """The tree that transformers' Flax GPT-2 stored: transposed kernels, scales, embeddings."""
    tree = {}
    for name, values in tensors.items():
        *modules, leaf = name.split(".")
        if leaf == "weight" and modules[-1] in ("wte", "wpe"):
            leaf = "embedding"
        elif leaf == "weight":
            leaf, values = ("scale", values) if values.ndim == 1 else ("kernel", values.T)
        tree[(*modules, leaf)] = np.ascontiguousarray(values)
    return tree


def test_flax_msgpack_loads_the_same_parameters(folder):
    whole, flat = load_folder(folder), as_flax(load_file(folder / SINGLE))
    (folder / SINGLE).unlink()
    file = folder / "flax_model.msgpack"
    file.write_bytes(serialization.msgpack_serialize(traverse_util.unflatten_dict(flat)))
    assert same(load_folder(folder), whole)
    names, weight_map = list(flat), {}
    for i, members in enumerate((names[::2], names[1::2])):
        shard = traverse_util.unflatten_dict({name: flat[name] for name in members})
        (folder / f"shard{i}.msgpack").write_bytes(serialization.msgpack_serialize(shard))
        weight_map |= {"/".join(name): f"shard{i}.msgpack" for name in members}
    (folder / "flax_model.msgpack.index.json").write_text(json.dumps({"weight_map": weight_map}))
    file.unlink()
    assert same(load_folder(folder), whole)


def test_damaged_msgpack_is_named(folder):
    (folder / SINGLE).unlink()
    (folder / "flax_model.msgpack").write_bytes(b"\x85\xa1")
    with pytest.raises(checks.UserError, match=r"flax_model\.msgpack"):
        load_folder(folder)


def test_bin_without_pytorch_says_what_to_do(folder, monkeypatch):
    (folder / SINGLE).rename(folder / "pytorch_model.bin")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(checks.UserError, match="pip install torch"):
        load_folder(folder)


@pytest.mark.torch
@pytest.mark.parametrize("legacy", [False, True])
def test_bin_loads_the_same_parameters(folder, legacy):
    torch = pytest.importorskip("torch")
    whole = load_folder(folder)
    tensors = {name: torch.tensor(v) for name, v in load_file(folder / SINGLE).items()}
    (folder / SINGLE).unlink()
    file = folder / "pytorch_model.bin"
    torch.save(tensors, file, _use_new_zipfile_serialization=not legacy)
    assert same(load_folder(folder), whole)
    halves = {name: v.to(torch.bfloat16) for name, v in tensors.items()}
    torch.save(halves, file)
    got = load_folder(folder, dtype="bfloat16").params
    expected = jax.tree.map(lambda x: x.astype("bfloat16"), whole.params)
    assert jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), got, expected))


class Harm:
    def __reduce__(self):
        return (print, ("this ran while a checkpoint was read",))


@pytest.mark.torch
def test_bin_that_would_run_something_is_refused(folder, capsys):
    torch = pytest.importorskip("torch")
    (folder / SINGLE).unlink()
    torch.save({"transformer.wte.weight": Harm()}, folder / "pytorch_model.bin")
    with pytest.raises(checks.UserError, match=r"pytorch_model\.bin"):
        load_folder(folder)
    assert capsys.readouterr().out == ""
    pickle.loads(pickle.dumps(Harm()))  # the control: an unpickler does run it
    assert "this ran" in capsys.readouterr().out


@pytest.mark.torch
def test_bin_of_something_else_than_tensors_is_refused_by_name(folder):
    torch = pytest.importorskip("torch")
    (folder / SINGLE).unlink()
    state = {"model": {"transformer.wte.weight": torch.ones(2, 2)}, "step": 3}
    torch.save(state, folder / "pytorch_model.bin")
    with pytest.raises(checks.UserError, match=r"tensors by their names, got dict for 'model'"):
        load_folder(folder)


def test_a_tensor_read_in_small_pieces_is_the_same(tmp_path, monkeypatch):
    """Transposed, joined, interleaved and shifted tensors, each cut into pieces of a few rows."""
    for variant in ("pythia", "gemma2", "phi3", "gpt2"):
        folder = tmp_path / variant
        folder.mkdir()
        write_tiny_checkpoint(VARIANTS[variant], folder)
        whole = load_folder(folder)
        with monkeypatch.context() as patch:
            patch.setattr(stored_tensor, "BLOCK_BYTES", 100)
            assert same(load_folder(folder), whole)


def test_what_a_checkpoint_may_lack_is_zero(tmp_path, monkeypatch):
    """BART's bias of the logits, where the memory that it takes held something else before."""
    write_tiny_checkpoint(ENCODER_DECODERS["bart"], tmp_path)
    tensors = load_file(tmp_path / SINGLE)
    bias = tensors.pop("final_logits_bias")
    assert np.abs(load_folder(tmp_path).params["logit_bias"]["constant"] - bias).max() == 0
    save_file(tensors, tmp_path / SINGLE)
    monkeypatch.setattr(weights, "_aligned", lambda shape, dtype: np.full(shape, 7, dtype))
    assert np.abs(load_folder(tmp_path).params["logit_bias"]["constant"]).max() == 0


def test_an_index_that_names_the_wrong_shard_is_refused(folder):
    tensors = load_file(folder / SINGLE)
    (folder / SINGLE).rename(folder / "a.safetensors")
    save_file({"x": np.ones(1)}, folder / "b.safetensors")
    weight_map = dict.fromkeys(tensors, "a.safetensors") | {
        "transformer.ln_f.bias": "b.safetensors"
    }
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(checks.UserError, match=r"b\.safetensors.*transformer\.ln_f\.bias"):
        load_folder(folder)
    (folder / INDEX).write_text("[]")
    with pytest.raises(checks.UserError, match="weight_map"):
        load_folder(folder)


def test_what_is_written_is_what_the_library_and_we_read(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "turned": rng.standard_normal((3, 5)).T,  # not contiguous
        "float": rng.standard_normal((2, 3)).astype(np.float32),
        "half": rng.standard_normal(7).astype(np.float16),
        "brain": rng.standard_normal(3).astype(ml_dtypes.bfloat16),
        "count": np.array(7, np.int32),
        "bits": rng.integers(0, 2**32, (2, 2), np.uint32),
        "flags": np.array([True, False, True]),
        "none": np.zeros((0, 4), np.float32),
    }
    path = tmp_path / "a.safetensors"
    write_safetensors(path, tensors, {"seed": "0"})
    assert list(tmp_path.iterdir()) == [path]
    ours = {name: tensor.whole() for name, tensor in open_tensors(path).items()}
    with safetensors.safe_open(path, framework="numpy") as file:
        assert file.metadata() == {"seed": "0"}
        by_library = {name: file.get_tensor(name) for name in tensors if name != "brain"}
    for name, values in tensors.items():
        for read in (ours, by_library):
            if name in read:
                np.testing.assert_array_equal(read[name], values)
                assert (read[name].dtype, read[name].shape) == (values.dtype, values.shape)
    assert ours.keys() == tensors.keys()
