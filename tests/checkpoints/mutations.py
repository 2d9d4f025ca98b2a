"""Mutated configs and weight files, to be read without harm."""

import json

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
