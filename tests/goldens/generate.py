"""Writes logits_<model type>.npz: logits of PyTorch's tiny models, for machines without it.

    .venv-torch/bin/python -m tests.goldens.generate [model type ...]

A file has two arrays per variant of ``tests/models`` of that type: "<variant>/logits",
in float64, and "<variant>/checksum", that of the weights, which are drawn from the names of
the tensors wherever they are used.
"""

import sys
import zlib
from pathlib import Path

import numpy as np

from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.variants import VARIANTS, batch

FOLDER = Path(__file__).parent
ALL_VARIANTS = {**VARIANTS, **ENCODER_DECODERS}


def golden_path(attributes):
    """The file of a variant's type."""
    return FOLDER / f"logits_{attributes['model_type']}.npz"


def golden_batch(variant):
    """The input batch of a variant."""
    return seq2seq_batch() if variant in ENCODER_DECODERS else batch()


def checksum(tensors):
    """Of names and float32 values of weights, whatever their order."""
    total = 0
    for name, values in sorted(tensors.items()):
        total = zlib.crc32(np.ascontiguousarray(values, np.float32).tobytes(), total)
        total = zlib.crc32(name.encode(), total)
    return np.uint32(total)


def golden_arrays(variant):
    """Logits and checksum of PyTorch's model of a variant."""
    from tests.models.torch_oracle import computing_in, logits_and_loss, random_model

    with computing_in("float64"):
        model = random_model(ALL_VARIANTS[variant], "float64")
        logits, _ = logits_and_loss(model, golden_batch(variant))
    weights = {name: p.detach().numpy() for name, p in model.named_parameters()}
    return {f"{variant}/logits": logits.detach().numpy(), f"{variant}/checksum": checksum(weights)}


def main(model_types):
    files = {}
    for variant, attributes in ALL_VARIANTS.items():
        if not model_types or attributes["model_type"] in model_types:
            files.setdefault(golden_path(attributes), {}).update(golden_arrays(variant))
    for path, arrays in files.items():
        np.savez_compressed(path, **arrays)
        print(path.name, path.stat().st_size, "bytes")


if __name__ == "__main__":
    main(sys.argv[1:])
