"""Loading holds the parameters once, in the type that was asked for, and little beside them."""

import json
import subprocess
import sys

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from lensllm_jax.checkpoints.config import CONFIG
from lensllm_jax.checkpoints.folder import INDEX
from tests.checkpoints.gguf_files import add, add_tensor, settings, write_gguf
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

# VmHWM, not getrusage: that one starts from the memory of the process that started this one
MEASURE = """
import re, sys, jax
from lensllm_jax.checkpoints.candidate import load_folder
def peak_bytes():
    return 1024 * int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1])
small, large, dtype = sys.argv[1:]
load_folder(small, dtype=dtype)  # what libraries need anyway
before = peak_bytes()
candidate = load_folder(large, dtype=dtype)
print(peak_bytes() - before, sum(leaf.nbytes for leaf in jax.tree.leaves(candidate.params)))
"""
WIDTH, INNER, NUM_LAYERS = 256, 768, 40
LLAMA = {
    "model_type": "llama", "hidden_size": WIDTH, "intermediate_size": INNER, "vocab_size": 131072,
    "num_hidden_layers": NUM_LAYERS, "num_attention_heads": 4, "tie_word_embeddings": True,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "num_key_value_heads": 4,
}  # fmt: skip


def tensors():
    """Of a Llama: 3 MB a layer and 134 MB of embedding, in float32."""
    blocks = [f"model.layers.{i}" for i in range(NUM_LAYERS)]
    shapes = {"model.embed_tokens": (LLAMA["vocab_size"], WIDTH), "model.norm": (WIDTH,)}
    for block in blocks:
        shapes |= {f"{block}.self_attn.{p}_proj": (WIDTH, WIDTH) for p in "qkvo"}
        shapes |= {f"{block}.mlp.{p}_proj": (INNER, WIDTH) for p in ("gate", "up")}
        shapes |= {f"{block}.mlp.down_proj": (WIDTH, INNER)}
        shapes |= {f"{block}.{n}_layernorm": (WIDTH,) for n in ("input", "post_attention")}
    return {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}


def folder_of_shards(path, num_shards=4):
    """A large checkpoint in float32, and a small one."""
    path.mkdir()
    weight_map, stored = {}, [(f"{name}.weight", values) for name, values in tensors().items()]
    for shard in range(num_shards):
        file = f"model-{shard}.safetensors"
        save_file(dict(stored[shard::num_shards]), path / file)
        weight_map |= {name: file for name, _ in stored[shard::num_shards]}
    (path / CONFIG).write_text(json.dumps(LLAMA))
    (path / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (path / "small").mkdir()
    return write_tiny_checkpoint(VARIANTS["llama"], path / "small"), path


def quantized_file(path):
    """The same in a GGUF file of 8 bits, and a small one."""
    path.mkdir()
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, NUM_LAYERS)
    writer = gguf.GGUFWriter(path / "large.gguf", "llama")
    for key, value in settings("llama", LLAMA).items():
        add(writer, f"llama.{key}", value)
    for name, values in tensors().items():
        kind = gguf.GGMLQuantizationType.Q8_0
        add_tensor(writer, f"{names.get_name(name)}.weight", values, kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return write_gguf(path / "small", "llama", kind="Q8_0")[1], path / "large.gguf"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    folder = tmp_path_factory.mktemp("memory")
    return {make: make(folder / make.__name__) for make in (folder_of_shards, quantized_file)}


# without a copy in float32, which would be twice a bfloat16's size
@pytest.mark.parametrize(
    ("made", "dtype", "bytes_per_value"),
    [
        (folder_of_shards, "float32", 4),
        (folder_of_shards, "bfloat16", 2),
        (quantized_file, "bfloat16", 2),
    ],
)  # fmt: skip
def test_loading_holds_the_parameters_once(made, dtype, bytes_per_value, checkpoints):
    run = subprocess.run(
        [sys.executable, "-c", MEASURE, *map(str, checkpoints[made]), dtype],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak, size = map(int, run.stdout.split())
    assert size > 65e6 * bytes_per_value
    assert 0.9 < peak / size <= 1.15, peak / size
