"""A summary is that of the loaded candidate, and is made without the values of its weights."""

import json
import shutil

import pytest
from safetensors import safe_open

import lensllm_jax as lens
from lensllm_jax.checkpoints.summary import describe_candidate
from lensllm_jax.checkpoints.zoo import folder_of
from lensllm_jax.checks import UserError


@pytest.fixture
def copy(tmp_path):
    return shutil.copytree(folder_of("zoo/gpt2-xs"), tmp_path / "copy")


@pytest.mark.parametrize("name", lens.list_zoo())
def test_a_summary_is_that_of_the_loaded_candidate(name):
    summary, candidate = describe_candidate(name), lens.load_candidate(name)
    assert summary.num_params == candidate.num_params
    assert (summary.name, summary.family) == (name, candidate.family.name)
    assert summary.config == candidate.config
    assert summary.tokenizer.get_vocab() == candidate.tokenizer.get_vocab()


def test_no_value_of_a_weight_is_read(copy):
    weights = copy / "model.safetensors"
    with safe_open(weights, "numpy") as tensors:
        first = sorted(tensors.keys())[0]
    header = int.from_bytes(weights.read_bytes()[:8], "little")
    content = bytearray(weights.read_bytes())
    content[8 + header :] = b"\xff" * (len(content) - 8 - header)  # NaN everywhere
    weights.write_bytes(content)
    assert describe_candidate(str(copy)).num_params == describe_candidate("zoo/gpt2-xs").num_params
    with pytest.raises(UserError, match=f"{first} holds values that are not finite"):
        lens.load_candidate(str(copy))  # the control: loading reads them


def test_a_file_that_was_cut_off_or_a_shard_that_is_absent_is_refused(copy):
    weights = copy / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    with pytest.raises(UserError, match=r"model\.safetensors"):
        describe_candidate(copy)
    weights.write_bytes(content)
    with safe_open(weights, "numpy") as tensors:
        weight_map = dict.fromkeys(tensors.keys(), "model-00001-of-00001.safetensors")
    weights.rename(copy / "model-00001-of-00001.safetensors")
    index = copy / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    assert describe_candidate(copy).num_params == describe_candidate("zoo/gpt2-xs").num_params
    index.write_text(json.dumps({"weight_map": {**weight_map, "more": "model-2.safetensors"}}))
    with pytest.raises(UserError, match=r"no file model-2\.safetensors"):
        describe_candidate(copy)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        ("model.safetensors", "no weights"),
        ("tokenizer.json", "must hold a tokenizer"),
        ("config.json", "must be a checkpoint folder"),
    ],
)
def test_a_missing_file_is_refused_by_name(copy, missing, message):
    (copy / missing).unlink()
    with pytest.raises(UserError, match=message):
        describe_candidate(str(copy))


def test_a_digest_is_of_what_is_read_wherever_it_lies(copy):
    bundled = describe_candidate("zoo/gpt2-xs")
    assert describe_candidate(str(copy)).sha256 == bundled.sha256
    assert bundled.sha256 != describe_candidate("zoo/gpt2-s").sha256
    for name in ("README.md", "merges.txt"):  # a tokenizer.json has its merges
        (copy / name).write_text("what is not read")
    (copy / "adapter_model.safetensors").symlink_to("nothing")  # without an adapter's config
    assert describe_candidate(copy).sha256 == bundled.sha256


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda folder: _flip_a_bit(folder / "model.safetensors"), id="one weight"),
        pytest.param(
            lambda folder: _replace(
                folder / "tokenizer_config.json", 'eos_token": "<|endoftext|>', 'eos_token": "</s>'
            ),
            id="end token",
        ),
        pytest.param(lambda folder: _replace(folder / "config.json", "1e-05", "2e-05"), id="norm"),
        pytest.param(
            lambda folder: (folder / "chat_template.jinja").write_text("{{ messages }}"),
            id="a file that is new",
        ),
    ],
)
def test_a_digest_tells_another_candidate_of_the_same_name(copy, change):
    before = describe_candidate(copy).sha256
    change(copy)
    assert describe_candidate(copy).sha256 != before


def _flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)


def _replace(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
