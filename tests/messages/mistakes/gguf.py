"""Mistakes with GGUF files, written here byte by byte; part of the room of checkpoints."""

import struct

import numpy as np

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.gguf.header import read_header
from lensllm_jax.checkpoints.gguf.tokenizer import read_gguf_tokenizer

SIZES = {
    "general.architecture": "llama", "llama.context_length": 8, "llama.block_count": 1,
    "llama.embedding_length": 8, "llama.feed_forward_length": 8, "llama.attention.head_count": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "llama.rope.dimension_count": 4,
}  # fmt: skip
EMBEDDING = {"token_embd.weight": (0, (4, 8))}
BYTE_LEVEL = {
    "tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"],
    "tokenizer.ggml.merges": ["a b"],
}  # fmt: skip


def string(text):
    return struct.pack("<Q", len(text.encode())) + text.encode()


def value(content):
    if isinstance(content, list):
        return struct.pack("<IIQ", 9, 8, len(content)) + b"".join(map(string, content))
    if isinstance(content, str):
        return struct.pack("<I", 8) + string(content)
    number = ("<II", 4) if isinstance(content, int) else ("<If", 6)
    return struct.pack(*number, content)


def written(folder, metadata=SIZES, tensors=EMBEDDING):
    """A file of zeros; ``tensors``: name -> number of its type, and shape."""
    content = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata))
    content += b"".join(string(key) + value(item) for key, item in metadata.items())
    offset = 0
    for name, (kind, shape) in tensors.items():
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        content += string(name) + axes + struct.pack("<IQ", kind, offset)
        offset += -(-int(np.prod(shape)) * 4 // 32) * 32
    content += bytes(-len(content) % 32) + bytes(offset)
    (folder / "a.gguf").write_bytes(content)
    return folder / "a.gguf"


def loaded(folder, changes=(), tensors=EMBEDDING):
    return load_folder(written(folder, {**SIZES, **dict(changes)}, tensors))


def tokenizer(folder, **changes):
    stored = {**BYTE_LEVEL, **{f"tokenizer.ggml.{key}": item for key, item in changes.items()}}
    return read_gguf_tokenizer(read_header(written(folder, {**SIZES, **stored})))


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("a.gguf", "a GGUF file ... got No such file", lambda tmp: load_folder(tmp / "a.gguf")),
    (
        "a.gguf",
        "a complete GGUF file ... got ffn in blocks of type 99",
        lambda tmp: loaded(tmp, tensors={"ffn": (99, (4, 8))}),
    ),
    (
        "general.architecture",
        "one of gemma ... got 'mamba'",
        lambda tmp: loaded(tmp, {"general.architecture": "mamba"}),
    ),
    ("a.gguf", "hold a language model ... got none", lambda tmp: loaded(tmp, tensors={})),
    (
        "a.gguf",
        "a dense model ... got one of experts",
        lambda tmp: loaded(tmp, {"llama.expert_count": 8}),
    ),
    (
        "llama.context_length",
        "a number ... got 'long'",
        lambda tmp: loaded(tmp, {"llama.context_length": "long"}),
    ),
    (
        "a.gguf",
        "at least as wide as it has heads ... got 8 and 9",
        lambda tmp: loaded(
            tmp,
            {
                **{key.replace("llama", "gptneox"): number for key, number in SIZES.items()},
                "general.architecture": "gptneox",
                "gptneox.attention.head_count": 9,
                "gptneox.attention.layer_norm_epsilon": 1e-5,
            },
        ),
    ),
    (
        "rope_freqs.weight",
        "that of Llama 3 ... got others up to 0",
        lambda tmp: loaded(tmp, tensors={**EMBEDDING, "rope_freqs.weight": (0, (2,))}),
    ),
    (
        "a.gguf",
        "store vectors as numbers ... got one in Q4_0",
        lambda tmp: loaded(tmp, tensors={**EMBEDDING, "output_norm.weight": (2, (32,))}),
    ),
    (
        "tokenizer.ggml.model",
        "one of gpt2, llama, t5 ... got 'rwkv'",
        lambda tmp: tokenizer(tmp, model="rwkv"),
    ),
    (
        "tokenizer.ggml.pre",
        "one of ... got 'future'",
        lambda tmp: tokenizer(tmp, pre="future"),
    ),
    ("a.gguf", "hold the tokenizer's tokens ... got str", lambda tmp: tokenizer(tmp, tokens="a")),
    (
        "a.gguf",
        "hold a score for each of 2 tokens ... got none",
        lambda tmp: tokenizer(tmp, model="llama"),
    ),
    (
        "a.gguf",
        "hold merges of its own tokens ... got",
        lambda tmp: tokenizer(tmp, merges=["a c"]),
    ),
]
