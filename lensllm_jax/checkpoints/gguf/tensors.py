"""Tensors of a GGUF file under Hugging Face's names, with Hugging Face's values.

llama.cpp's converter renames tensors, and for some architectures moves rows or adds a constant;
each is undone while rows are read, so that never more than a few rows are dequantized at a time:

* Llama, SmolLM3: rows of q and k are interleaved in pairs (its rotary rotates neighbours)
* GPT-NeoX: rows of q, k and v, one head after the other there, are one block each
* GPT-2: matrices are transposed (Hugging Face stores ``Conv1D``)
* Gemma: 1 is added to the scale of every norm
"""

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.checkpoints.gguf.header import Header, StoredBlocks, read_header
from lensllm_jax.checkpoints.stored_tensor import StoredTensor, Tensors

_FLOATS = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}

# llama.cpp's name -> Hugging Face's; N is the number of a block
_LLAMA = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
    "blk.N.attn_norm": "model.layers.N.input_layernorm",
    "blk.N.attn_q": "model.layers.N.self_attn.q_proj",
    "blk.N.attn_k": "model.layers.N.self_attn.k_proj",
    "blk.N.attn_v": "model.layers.N.self_attn.v_proj",
    "blk.N.attn_output": "model.layers.N.self_attn.o_proj",
    "blk.N.attn_q_norm": "model.layers.N.self_attn.q_norm",
    "blk.N.attn_k_norm": "model.layers.N.self_attn.k_norm",
    "blk.N.ffn_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.ffn_gate": "model.layers.N.mlp.gate_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.up_proj",
    "blk.N.ffn_down": "model.layers.N.mlp.down_proj",
}
_OLMO2 = {
    **_LLAMA,
    "blk.N.post_attention_norm": "model.layers.N.post_attention_layernorm",
    "blk.N.post_ffw_norm": "model.layers.N.post_feedforward_layernorm",
}
_PHI3 = {
    **_LLAMA,
    "blk.N.attn_qkv": "model.layers.N.self_attn.qkv_proj",
    "blk.N.ffn_up": "model.layers.N.mlp.gate_up_proj",
}
_GEMMA2 = {**_OLMO2, "blk.N.ffn_norm": "model.layers.N.pre_feedforward_layernorm"}
_PHI2 = {
    **_LLAMA,
    "output_norm": "model.final_layernorm",
    "blk.N.attn_output": "model.layers.N.self_attn.dense",
    "blk.N.ffn_up": "model.layers.N.mlp.fc1",
    "blk.N.ffn_down": "model.layers.N.mlp.fc2",
}
_GPT2 = {
    "token_embd": "transformer.wte",
    "position_embd": "transformer.wpe",
    "output_norm": "transformer.ln_f",
    "output": "lm_head",
    "blk.N.attn_norm": "transformer.h.N.ln_1",
    "blk.N.attn_qkv": "transformer.h.N.attn.c_attn",
    "blk.N.attn_output": "transformer.h.N.attn.c_proj",
    "blk.N.ffn_norm": "transformer.h.N.ln_2",
    "blk.N.ffn_up": "transformer.h.N.mlp.c_fc",
    "blk.N.ffn_down": "transformer.h.N.mlp.c_proj",
}
_GPT_NEOX = {
    "token_embd": "gpt_neox.embed_in",
    "output_norm": "gpt_neox.final_layer_norm",
    "output": "embed_out",
    "blk.N.attn_norm": "gpt_neox.layers.N.input_layernorm",
    "blk.N.attn_qkv": "gpt_neox.layers.N.attention.query_key_value",
    "blk.N.attn_output": "gpt_neox.layers.N.attention.dense",
    "blk.N.ffn_norm": "gpt_neox.layers.N.post_attention_layernorm",
    "blk.N.ffn_up": "gpt_neox.layers.N.mlp.dense_h_to_4h",
    "blk.N.ffn_down": "gpt_neox.layers.N.mlp.dense_4h_to_h",
}
_T5 = {
    "token_embd": "shared",
    "output": "lm_head",
    "enc.output_norm": "encoder.final_layer_norm",
    "dec.output_norm": "decoder.final_layer_norm",
    **{
        f"{short}.blk.N.{theirs}": f"{stack}.block.N.layer.{ours}"
        for short, stack, last in (("enc", "encoder", 1), ("dec", "decoder", 2))
        for theirs, ours in {
            "attn_norm": "0.layer_norm",
            "attn_q": "0.SelfAttention.q",
            "attn_k": "0.SelfAttention.k",
            "attn_v": "0.SelfAttention.v",
            "attn_o": "0.SelfAttention.o",
            "attn_rel_b": "0.SelfAttention.relative_attention_bias",
            "cross_attn_norm": "1.layer_norm",
            "cross_attn_q": "1.EncDecAttention.q",
            "cross_attn_k": "1.EncDecAttention.k",
            "cross_attn_v": "1.EncDecAttention.v",
            "cross_attn_o": "1.EncDecAttention.o",
            "cross_attn_rel_b": "1.EncDecAttention.relative_attention_bias",
            "ffn_norm": f"{last}.layer_norm",
            "ffn_up": f"{last}.DenseReluDense.wi",
            "ffn_down": f"{last}.DenseReluDense.wo",
        }.items()
    },
}
_T5_GATED = {
    **_T5,
    **{
        f"{short}.blk.N.ffn_{part}": f"{stack}.block.N.layer.{last}.DenseReluDense.{ours}"
        for short, stack, last in (("enc", "encoder", 1), ("dec", "decoder", 2))
        for part, ours in (("gate", "wi_0"), ("up", "wi_1"))
    },
}
_NAMES: Mapping[str, Mapping[str, str]] = {
    "gemma": _LLAMA, "gemma2": _GEMMA2, "gemma3": _GEMMA2, "gpt2": _GPT2, "gptneox": _GPT_NEOX,
    "llama": _LLAMA, "olmo2": _OLMO2, "phi2": _PHI2, "phi3": _PHI3, "qwen2": _LLAMA,
    "qwen3": _LLAMA, "smollm3": _LLAMA, "stablelm": _LLAMA, "t5": _T5,
}  # fmt: skip
# computed from the config, or of no use to the model itself
_IGNORED = re.compile(r"rope_freqs\.weight|rope_factors_(long|short)\.weight|.*\.attn_rot_embd")
_BLOCK = re.compile(r"(?<=blk\.)\d+")


def open_gguf(path: str | Path) -> Tensors:
    """Hugging Face's name of each tensor -> the tensor.

    Raises:
        UserError: if the file does not read, or a type of its blocks cannot be dequantized.
    """
    header = read_header(path)
    names = _NAMES.get(header.architecture, {})
    if "enc.blk.0.ffn_gate.weight" in header.tensors:
        names = _T5_GATED
    tensors = {}
    for name, blocks in header.tensors.items():
        if not _IGNORED.fullmatch(name):
            stem, _, leaf = name.rpartition(".")
            theirs = names.get(_BLOCK.sub("N", stem), stem)  # loading refuses an unknown name
            layer = _BLOCK.search(stem)
            theirs = theirs.replace(".N.", f".{layer[0]}.") if layer else theirs
            tensors[f"{theirs}.{leaf}"] = _stored(header, name, blocks)
    return tensors


def read_values(header: Header, name: str) -> Float[np.ndarray, "..."]:
    """All values of a tensor, as llama.cpp has them."""
    blocks = header.tensors[name]
    return _rows_of(header.path, blocks)(0, blocks.shape[0])


def _stored(header: Header, name: str, blocks: StoredBlocks) -> StoredTensor:
    """A tensor with Hugging Face's values."""
    read, shape = _rows_of(header.path, blocks), blocks.shape
    dtype = np.dtype(_FLOATS.get(blocks.type_name, np.float32))
    if header.architecture.startswith("gemma") and name.endswith("norm.weight"):
        scale = lambda a, b: read(a, b).astype(np.float32) - 1  # noqa: E731
        return StoredTensor(shape, "float32", 4, scale)
    if header.architecture == "gpt2" and len(shape) == 2 and name.startswith("blk."):
        # a matrix of one block: small enough to be transposed whole
        transposed = lambda a, b: read(0, shape[0]).T[a:b]  # noqa: E731
        return StoredTensor(shape[::-1], str(dtype), dtype.itemsize, transposed)
    if (order := _row_order(header, name, shape)) is not None:
        return StoredTensor(shape, str(dtype), dtype.itemsize, _ordered(read, order))
    return StoredTensor(shape, str(dtype), dtype.itemsize, read)


def _rows_of(path: Path, blocks: StoredBlocks) -> Callable[[int, int], np.ndarray]:
    """From start and stop of the first axis to values."""
    shape, inner = blocks.shape, blocks.shape[1:]
    # one axis: a row of the file is all of it
    bytes_per_row = blocks.row_bytes // shape[0] if not inner else blocks.row_bytes
    if not inner and blocks.type_name not in _FLOATS:
        raise checks.UserError(
            f"`{path}` must store vectors as numbers, got one in {blocks.type_name}"
        )
    for length in inner[:-1]:
        bytes_per_row *= length

    def rows(start: int, stop: int) -> np.ndarray:
        raw = np.fromfile(
            path, np.uint8, (stop - start) * bytes_per_row,
            offset=blocks.offset + start * bytes_per_row,
        )  # fmt: skip
        if blocks.type_name in _FLOATS:
            values = raw.view(_FLOATS[blocks.type_name])
        else:
            values = _dequantized(raw.reshape(-1, blocks.row_bytes), blocks.type_name)
        return values.reshape(stop - start, *inner)

    return rows


def _dequantized(rows: np.ndarray, type_name: str) -> Float[np.ndarray, "rows width"]:
    import gguf

    return gguf.quants.dequantize(rows, gguf.GGMLQuantizationType[type_name])


def _row_order(
    header: Header, name: str, shape: tuple[int, ...]
) -> Int[np.ndarray, " rows"] | None:
    """Which row of the file is each row of Hugging Face's tensor, where they are moved."""
    heads = header.architecture_value("attention.head_count")
    part = name.split(".")[-2]
    rows = np.arange(shape[0])
    if header.architecture in ("llama", "smollm3") and part in ("attn_q", "attn_k"):
        if part == "attn_k":
            heads = header.architecture_value("attention.head_count_kv", heads)
        if shape[0] % (2 * heads) == 0:  # else loading finds a wrong shape
            return rows.reshape(heads, -1, 2).swapaxes(1, 2).ravel()
    if header.architecture == "gptneox" and part == "attn_qkv" and shape[0] % (3 * heads) == 0:
        return rows.reshape(3, heads, -1).swapaxes(0, 1).ravel()
    return None


def _ordered(
    read: Callable[[int, int], np.ndarray], order: Int[np.ndarray, " rows"]
) -> Callable[[int, int], np.ndarray]:
    """Rows in another order; those of one call may lie anywhere within their span."""

    def rows(start: int, stop: int) -> np.ndarray:
        wanted = order[start:stop]
        first = int(wanted.min())
        return read(first, int(wanted.max()) + 1)[wanted - first]

    return rows
