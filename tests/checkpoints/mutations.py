"""Mutated configs and weight files, to be read without harm."""

import json
import struct

import numpy as np

from tests.models.published import PUBLISHED as DECODERS
from tests.models.published_encoder_decoders import PUBLISHED as ENCODER_DECODERS

CONFIGS = tuple({**DECODERS, **ENCODER_DECODERS}.values())
VALUES = (
    None, True, False, 0, 1, -1, 3, 7, 2**31, 10**9, 10**12, 10**30, -(10**30), 0.0, -0.5, 1e30,
    float("nan"), float("inf"), "", "gelu", "a\nb", "🦙" * 50, [], [1], [[[1]]], ["full_attention"],
    {}, {"rope_type": "yarn"}, {"rope_theta": None}, {"factor": "x"}, {"a": {"b": {"c": []}}},
)  # fmt: skip


def mutated_config(rng):
    """A published config with one to three entries changed, taken away or added."""
    config = dict(CONFIGS[rng.integers(len(CONFIGS))])
    for _ in range(rng.integers(1, 4)):
        name = str(rng.choice([*config, "rope_scaling", "rope_parameters", "layer_types", "extra"]))
        if rng.random() < 0.2:
            config.pop(name, None)
        else:
            config[name] = VALUES[rng.integers(len(VALUES))]
    return config


def mutated_bytes(rng, content):
    """A file with some bytes changed, cut off, or put in."""
    data = bytearray(content)
    for _ in range(rng.integers(1, 6)):
        place = int(rng.integers(len(data)))
        match rng.integers(4):
            case 0:
                data[place] = int(rng.integers(256))
            case 1:
                data[place : place + int(rng.integers(1, 9))] = b""
            case 2:
                data[place:place] = bytes(rng.integers(0, 256, rng.integers(1, 9), dtype=np.uint8))
            case 3:
                digits = str(10 ** int(rng.integers(1, 25))).encode()
                data[place : place + len(digits)] = digits
        if not data:
            break
    return bytes(data)


def mutated_header(rng, content):
    """A safetensors file whose header says something else."""
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    entry = header[str(rng.choice([name for name in header if name != "__metadata__"]))]
    entry[str(rng.choice([*entry]))] = VALUES[rng.integers(len(VALUES))]
    if rng.random() < 0.5:
        entry["shape"] = [int(10 ** rng.integers(0, 20)) for _ in range(rng.integers(0, 4))]
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + content[8 + length :]


# what metadata of a GGUF file can be, of every kind
GGUF_VALUES = (
    True, False, 0, 1, -1, 3, 64, 2**31 - 1, -(2**31), 0.0, -0.5, 1e-6, 1e30, float("nan"),
    float("inf"), "", "llama", "a\nb", "\x1b[31m", "🦙" * 50, "yarn", "linear", [], [0], [1, 2, 3],
    [-1] * 64, [2**30] * 64, [0.5] * 64, [""] * 64, ["a"] * 64, ["a b", "b"], ["a", "b"],
)  # fmt: skip


def mutated_metadata(rng, header, content):
    """A GGUF file of float32, with one to three of its metadata changed or taken away."""
    metadata = dict(header.metadata)
    for _ in range(rng.integers(1, 4)):
        key = str(rng.choice([*metadata]))
        if rng.random() < 0.1:
            metadata.pop(key)
        else:
            metadata[key] = GGUF_VALUES[rng.integers(len(GGUF_VALUES))]
    start = min(tensor.offset for tensor in header.tensors.values())
    table = b"".join(
        gguf_text(name)
        + struct.pack("<I", len(tensor.shape))
        + struct.pack(f"<{len(tensor.shape)}Q", *tensor.shape[::-1])
        + struct.pack("<IQ", 0, tensor.offset - start)
        for name, tensor in header.tensors.items()
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, len(header.tensors), len(metadata))
    head += b"".join(gguf_text(key) + gguf_value(value) for key, value in metadata.items()) + table
    return head + b"\0" * (-len(head) % 32) + content[start:]


def gguf_text(text):
    """Length and bytes."""
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def gguf_value(value):
    """Type and bytes."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + gguf_text(value)
    if isinstance(value, list):
        items = [gguf_value(item) for item in value] or [gguf_value(0)]
        kinds = items[0][:4] + struct.pack("<Q", len(value))
        return struct.pack("<I", 9) + kinds + b"".join(item[4:] for item in items[: len(value)])
    kind, form = {bool: (7, "?"), int: (5, "i"), float: (6, "f")}[type(value)]
    return struct.pack(f"<I{form}", kind, value)
