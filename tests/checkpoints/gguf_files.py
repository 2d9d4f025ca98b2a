"""GGUF files of tiny checkpoints, written as llama.cpp's convert_hf_to_gguf.py writes them.

Names come from the gguf package's own table and values are transformed as that script does, so
that nothing here is shared with what reads them.
"""

import json

import gguf
import numpy as np
from safetensors.numpy import load_file

from lensllm_jax.checkpoints.config import CONFIG
from lensllm_jax.checkpoints.folder import SINGLE
from tests.checkpoints.gguf_configs import MODELS
from tests.models.tiny import write_tiny_checkpoint


def write_gguf(folder, model, *, kind="F32", metadata=(), tensors=None):
    """A checkpoint folder and a GGUF file of the same tiny model.

    ``kind``: of the matrices whose rows divide into its blocks; vectors stay numbers.
    """
    architecture, attributes = MODELS[model]
    folder.mkdir(exist_ok=True)
    write_tiny_checkpoint(attributes, folder)
    stored = json.loads((folder / CONFIG).read_text())
    path = folder / f"{model}.gguf"
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in {**settings(architecture, stored), **dict(metadata)}.items():
        add(writer, f"{architecture}.{key}" if key.split(".")[0] != "tokenizer" else key, value)
    values = dict(converted(architecture, stored, load_file(folder / SINGLE)))
    for name, array in {**values, **(tensors or {})}.items():
        add_tensor(writer, name, array, gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder, path


def add(writer, key, value):
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def add_tensor(writer, name, array, kind):
    plain = kind in (gguf.GGMLQuantizationType.F32, gguf.GGMLQuantizationType.F16)
    per_block, _ = gguf.GGML_QUANT_SIZES[kind]
    if array.ndim < 2 or array.shape[-1] % per_block or kind == gguf.GGMLQuantizationType.F32:
        writer.add_tensor(name, array.astype(np.float32))
    elif plain:
        writer.add_tensor(name, array.astype(np.float16))
    else:
        writer.add_tensor(
            name, gguf.quants.quantize(array.astype(np.float32), kind), raw_dtype=kind
        )


def settings(architecture, hf):
    """The metadata of an architecture."""
    if architecture == "t5":
        return {
            "vocab_size": hf["vocab_size"], "context_length": 48,
            "embedding_length": hf["d_model"], "block_count": hf["num_layers"],
            "decoder_block_count": hf["num_decoder_layers"], "feed_forward_length": hf["d_ff"],
            "attention.head_count": hf["num_heads"], "attention.key_length": hf["d_kv"],
            "attention.layer_norm_epsilon": 1e-6,
            "attention.layer_norm_rms_epsilon": 1e-6, "decoder_start_token_id": 0,
            "attention.relative_buckets_count": hf["relative_attention_num_buckets"],
        }  # fmt: skip
    if architecture == "gpt2":
        return {
            "vocab_size": hf["vocab_size"],
            "context_length": hf["n_positions"], "embedding_length": hf["n_embd"],
            "block_count": hf["n_layer"], "feed_forward_length": 4 * hf["n_embd"],
            "attention.head_count": hf["n_head"],
            "attention.layer_norm_epsilon": hf["layer_norm_epsilon"],
        }  # fmt: skip
    head_dim = hf.get("head_dim", hf["hidden_size"] // hf["num_attention_heads"])
    fraction = hf.get("partial_rotary_factor", hf.get("rotary_pct", 1.0))
    given = {
        "vocab_size": hf["vocab_size"],
        "context_length": hf["max_position_embeddings"],
        "embedding_length": hf["hidden_size"],
        "block_count": hf["num_hidden_layers"],
        "feed_forward_length": hf["intermediate_size"],
        "attention.head_count": hf["num_attention_heads"],
        "attention.head_count_kv": hf.get("num_key_value_heads", hf["num_attention_heads"]),
        "attention.layer_norm_rms_epsilon": hf.get("rms_norm_eps"),
        "attention.layer_norm_epsilon": hf.get("layer_norm_eps"),
        "attention.key_length": hf.get("head_dim"),
        "attention.sliding_window": hf.get("sliding_window"),
        "rope.dimension_count": int(head_dim * fraction),
        "rope.freq_base": hf.get("rope_theta", 10000.0),
    }
    return {key: value for key, value in given.items() if value is not None}


def converted(architecture, hf, tensors):
    """llama.cpp's name and values of each tensor."""
    by_name = {name: arch for arch, name in gguf.MODEL_ARCH_NAMES.items()}
    table = gguf.get_tensor_name_map(by_name[architecture], 16)
    heads = hf.get("num_attention_heads")
    for name, values in tensors.items():
        stem, leaf = name.rsplit(".", 1)
        if stem == "lm_head" and hf.get("tie_word_embeddings"):
            continue
        theirs = table.get_name(stem)
        assert theirs, name
        if architecture in ("llama", "smollm3") and stem.endswith(("q_proj", "k_proj")):
            n = heads if stem.endswith("q_proj") else hf["num_key_value_heads"]
            values = (
                values.reshape(n, 2, len(values) // n // 2, *values.shape[1:])
                .swapaxes(1, 2)
                .reshape(values.shape)
            )
        if architecture == "gptneox" and stem.endswith("query_key_value"):
            parts = values.reshape(heads, 3, -1, *values.shape[1:])
            values = np.concatenate([parts[:, i].reshape(-1, *values.shape[1:]) for i in range(3)])
        conv1d = (".c_attn", ".c_proj", ".c_fc")
        if architecture == "gpt2" and stem.endswith(conv1d) and leaf == "weight":
            values = np.ascontiguousarray(values.T)
        if architecture.startswith("gemma") and stem.endswith("norm"):
            values = values + 1
        yield f"{theirs}.{leaf}", values
    if (scaling := hf.get("rope_scaling")) and scaling["rope_type"] == "llama3":
        yield "rope_freqs.weight", llama3_divisors(hf, scaling)


def llama3_divisors(hf, scaling):
    """As LlamaModel.generate_extra_tensors of llama.cpp's script."""
    base, dim, context = hf["rope_theta"], hf["head_dim"], 8192
    low_wavelength = context / scaling["low_freq_factor"]
    high_wavelength = context / scaling["high_freq_factor"]
    divisors = []
    for frequency in 1.0 / base ** (np.arange(0, dim, 2) / dim):
        wavelength = 2 * np.pi / frequency
        if wavelength < high_wavelength:
            divisors.append(1.0)
        elif wavelength > low_wavelength:
            divisors.append(scaling["factor"])
        else:
            smooth = (context / wavelength - scaling["low_freq_factor"]) / (
                scaling["high_freq_factor"] - scaling["low_freq_factor"]
            )
            divisors.append(1 / ((1 - smooth) / scaling["factor"] + smooth))
    return np.array(divisors, np.float32)


def byte_level(**changes):
    """Metadata of a tokenizer of 64 byte-level tokens."""
    tokens = ["a", "Ġa", "b", "ab", "<end>", "Ġ"]
    tokens += [f"unused{i}" for i in range(64 - len(tokens))]
    stored = {
        "model": "gpt2", "pre": "gpt-2", "tokens": tokens, "merges": ["a b", "Ġ a"],
        "token_type": [1, 1, 1, 1, 3, 1] + [5] * 58, "eos_token_id": 4, **changes,
    }  # fmt: skip
    return {f"tokenizer.ggml.{key}": value for key, value in stored.items()}
