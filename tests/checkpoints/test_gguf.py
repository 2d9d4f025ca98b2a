"""A GGUF file loads as the folder that it was converted from."""

import struct

import gguf
import jax
import numpy as np
import pytest
from flax import traverse_util

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import read_config
from lensllm_jax.checkpoints.gguf import header
from lensllm_jax.checkpoints.gguf.header import read_header
from lensllm_jax.checkpoints.summary import describe_candidate
from tests.checkpoints.gguf_configs import MODELS
from tests.checkpoints.gguf_files import byte_level, write_gguf
from tests.tolerances import assert_close, relative_difference

# bits per weight, largest to smallest, and how far the dequantized weights of each type may be
QUANTIZED = {
    "Q8_0": 0.01, "Q5_1": 0.06, "Q5_0": 0.06, "Q4_1": 0.12, "Q4_0": 0.12,
}  # fmt: skip
# of these types the package dequantizes, but quantizes none: random blocks must read
BLOCKS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS")


def flat(candidate):
    return traverse_util.flatten_dict(candidate.params, sep="/")


def batch(config):
    rng = np.random.default_rng(0)
    ids = rng.integers(0, config.vocab_size, (2, 9)).astype(np.int32)
    return {
        "input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids,
        "decoder_input_ids": ids[:, :5],
    }  # fmt: skip


def logits(candidate):
    return candidate.apply_fn(candidate.params, batch(candidate.config))


@pytest.mark.parametrize("model", MODELS)
def test_a_file_of_floats_has_the_folders_config_weights_and_logits(model, tmp_path):
    folder, path = write_gguf(tmp_path, model)
    ours, theirs = load_folder(path), load_folder(folder)
    assert ours.dequantized_from == ()
    ours_flat, theirs_flat = flat(ours), flat(theirs)
    assert ours_flat.keys() == theirs_flat.keys()
    for name, values in theirs_flat.items():
        # 1 + w - 1 of Gemma's norms rounds
        assert_close(ours_flat[name], values, "float32")
    assert_close(logits(ours), logits(theirs), "float32")
    scrambled = jax.tree.map(lambda leaf: leaf[..., ::-1], theirs.params)  # control
    assert relative_difference(
        theirs.apply_fn(scrambled, batch(theirs.config)), logits(theirs)
    ) > 1e-2  # fmt: skip


@pytest.mark.parametrize("kind", QUANTIZED)
@pytest.mark.parametrize("model", ["llama", "gpt2"])
def test_quantized_weights_are_close_and_named(model, kind, tmp_path):
    folder, path = write_gguf(tmp_path, model, kind=kind)
    ours, theirs = load_folder(path), load_folder(folder)
    assert ours.dequantized_from == (kind,)
    errors = [relative_difference(flat(ours)[k], v) for k, v in flat(theirs).items() if v.ndim > 2]
    assert 1e-4 < max(errors) < QUANTIZED[kind]


def test_half_precision_is_read_as_it_stands(tmp_path):
    folder, path = write_gguf(tmp_path, "llama", kind="F16")
    ours, theirs = load_folder(path), load_folder(folder)
    assert ours.dequantized_from == ()
    name = "blocks/attention/value/kernel"
    halves = np.asarray(flat(theirs)[name]).astype(np.float16)
    np.testing.assert_array_equal(flat(ours)[name], halves.astype(np.float32))


@pytest.mark.parametrize("kind", BLOCKS)
def test_rows_are_dequantized_as_the_whole_tensor_is(kind, tmp_path):
    """Rows of several widths of a block, of random bytes with finite scales."""
    from lensllm_jax.checkpoints.formats import open_tensors

    number = gguf.GGMLQuantizationType[kind]
    per_block, num_bytes = gguf.GGML_QUANT_SIZES[number]
    rng = np.random.default_rng(0)
    raw = rng.integers(0, 60, (6, 2 * num_bytes)).astype(np.uint8)  # small exponents of halves
    path = tmp_path / "a.gguf"
    writer = gguf.GGUFWriter(path, "qwen2")
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    (stored,) = open_tensors(path).values()
    assert stored.shape == (6, 2 * per_block)
    expected = gguf.quants.dequantize(raw, number)
    assert np.isfinite(expected).all()
    assert np.unique(expected).size > 10
    np.testing.assert_array_equal(stored.whole(), expected)
    np.testing.assert_array_equal(stored.rows(2, 5), expected[2:5])


def test_it_is_a_candidate_by_its_path(tmp_path):
    _, path = write_gguf(tmp_path, "llama", kind="Q8_0", metadata=byte_level().items())
    candidate = lens.load_candidate(path)
    assert candidate.name == str(path)
    assert candidate.notes == ("weights dequantized from Q8_0",)
    assert describe_candidate(path).notes == candidate.notes
    assert candidate.tokenizer("ab a")["input_ids"] == [3, 1]
    candidate.save(tmp_path / "saved")
    saved = lens.load_candidate(tmp_path / "saved")
    jax.tree.map(np.testing.assert_array_equal, saved.params, candidate.params)
    assert saved.tokenizer("ab a")["input_ids"] == [3, 1]


def test_largest_gemmas_scale_their_queries_by_the_width_of_a_head(tmp_path):
    _, path = write_gguf(tmp_path, "gemma2")
    assert read_config(path).attributes["query_pre_attn_scalar"] == 16  # the key's length
    from lensllm_jax.checkpoints.gguf.config import gguf_config

    tiny = read_header(path)
    large = {**tiny.metadata, "gemma2.block_count": 46}
    config = gguf_config(type(tiny)(tiny.path, large, tiny.tensors))
    assert config["query_pre_attn_scalar"] == 8  # 32 / 4


def refused(path, message):
    with pytest.raises(checks.UserError, match=message) as error:
        load_folder(path)
    assert "\n" not in str(error.value)


def test_other_architectures_and_settings_are_refused_by_name(tmp_path):
    def written(folder, **metadata):
        return write_gguf(tmp_path / folder, "llama", metadata=metadata.items())[1]

    refused(written("experts", expert_count=8), "dense model, got one of experts")
    refused(written("yarn", **{"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0}), "yarn")
    refused(written("layers", block_count=3), r"missing model\.layers\.2\.")
    refused(written("wide", embedding_length=64), "shape")
    refused(written("heads", **{"attention.head_count": [4, 4]}), "must be a number, got")
    stretched = {"rope_freqs.weight": np.array([1.0, 2.0, 3.0, 9.0], np.float32)}
    _, path = write_gguf(tmp_path / "freqs", "llama", tensors=stretched)
    refused(path, "must be that of Llama 3")
    strange = {"blk.0.ssm_a.weight": np.ones((2, 32), np.float32)}
    _, path = write_gguf(tmp_path / "strange", "llama", tensors=strange)
    refused(path, "unexpected blk.0.ssm_a.weight")
    path = tmp_path / "mamba.gguf"
    writer = gguf.GGUFWriter(path, "mamba")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    refused(path, "general.architecture.*must be one of gemma.*got 'mamba'")


@pytest.mark.parametrize(
    ("model", "key", "value"),
    [
        ("phi3", "rope.dimension_count", "half"),
        ("phi3", "attention.head_count", 33),
        ("gptneox", "attention.head_count", 33),
        ("llama3", "rope.freq_base", "10000"),
    ],
)
def test_metadata_that_are_no_numbers_or_do_not_fit_are_refused(model, key, value, tmp_path):
    refused(write_gguf(tmp_path, model, metadata={key: value}.items())[1], "must be")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b"", "begins with b''"),
        (lambda b: b"PK\3\4" + b[4:], "begins with"),
        (lambda b: b[:4] + struct.pack("<I", 1) + b[8:], "version 1"),
        (lambda b: b[:200], "end"),
        (lambda b: b[:-40], "only .* bytes, where"),
        (lambda b: b[:8] + struct.pack("<Q", 2**60) + b[16:], "count of 1152921504606846976"),
        (lambda b: b.replace(b"general.architecture", b"general.architectuRe"), "None"),
    ],
)  # fmt: skip
def test_damaged_files_are_refused_in_one_line(change, message, tmp_path):
    _, path = write_gguf(tmp_path, "llama")
    path.write_bytes(change(path.read_bytes()))
    refused(path, f"`.*` must be a complete GGUF file.*{message}.*fetch it again")


def test_names_with_line_breaks_and_codes_of_a_terminal_are_shown_escaped(tmp_path):
    _, path = write_gguf(tmp_path, "llama", tensors={"a\n\x1b[2J.weight": np.ones((2, 32))})
    refused(path, r"unexpected a\\n\\x1b\[2J\.weight")


def test_an_unknown_type_of_blocks_is_refused(tmp_path):
    _, path = write_gguf(tmp_path, "llama")
    content = path.read_bytes()
    at = content.index(b"blk.0.ffn_up.weight") + len(b"blk.0.ffn_up.weight") + 4 + 2 * 8
    path.write_bytes(content[:at] + struct.pack("<I", 99) + content[at + 4 :])
    refused(path, "ffn_up.weight in blocks of type 99, which cannot be dequantized")


def test_blocks_are_those_of_the_package_that_dequantizes_them():
    for number, (name, per_block, num_bytes) in header._BLOCKS.items():
        known = gguf.GGMLQuantizationType(number)
        assert (known.name, gguf.GGML_QUANT_SIZES[known]) == (name, (per_block, num_bytes))
        if name != "F64":  # read as it stands
            raw = np.zeros((2, num_bytes), np.uint8)
            assert gguf.quants.dequantize(raw, known).shape == (2, per_block)
