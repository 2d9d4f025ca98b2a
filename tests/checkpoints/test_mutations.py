"""Whatever stands in a config or a weight file, it is read or refused in one line."""

import contextlib
import json
import os
import resource

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import parse_config, read_config
from lensllm_jax.checkpoints.folder import SINGLE
from lensllm_jax.checkpoints.formats import open_tensors
from lensllm_jax.checkpoints.gguf.header import read_header
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.checkpoints.tokenizer import read_tokenizer
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.checkpoints.zoo import FOLDER
from tests.checkpoints.gguf_files import byte_level, write_gguf
from tests.checkpoints.mutations import (
    mutated_bytes,
    mutated_config,
    mutated_header,
    mutated_metadata,
)
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS

CONTENT = (FOLDER / "gpt2-xs" / SINGLE).read_bytes()


@contextlib.contextmanager
def bounded_memory(num_bytes=2**30):
    """No more than so much above what the process holds already."""
    with open("/proc/self/statm") as file:
        held = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (held + num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


FIRST = int(os.environ.get("FUZZ_FIRST", "0"))  # others than those of an earlier run


def read_all(make, read, num_cases, seed):
    """How many cases are read and how many refused; any other end fails."""
    rng, num_read, num_refused = np.random.default_rng([seed, FIRST]), 0, 0
    with bounded_memory():
        for _ in range(num_cases):
            try:
                read(make(rng))
                num_read += 1
            except checks.UserError as refused:
                num_refused += 1
                message = str(refused)
                assert "must" in message
                assert len(message.splitlines()) == 1
    return num_read, num_refused


def read_shapes(config):
    parameter_shapes(parse_config(config).config)


# 100,000 in `make fuzz`
NUM_CASES = int(os.environ.get("FUZZ_FILES", "1000"))
NUM_GGUF = int(os.environ.get("FUZZ_FILES", "250")) // 5  # of each model


def test_configs():
    num_read, num_refused = read_all(mutated_config, parse_config, NUM_CASES, 0)
    assert min(num_read, num_refused) > NUM_CASES / 10


def test_shapes_of_configs_that_are_read():
    num_read, _ = read_all(mutated_config, read_shapes, 100, 1)
    assert num_read > 10


@pytest.mark.parametrize("mutated", [mutated_bytes, mutated_header])
def test_headers(mutated, tmp_path):
    path = tmp_path / SINGLE
    # the header and few of the values: what is read is the same
    length = int.from_bytes(CONTENT[:8], "little")
    whole = CONTENT if mutated is mutated_header else CONTENT[: 8 + length]

    def read(content):
        path.write_bytes(content)
        for tensor in open_tensors(path).values():
            assert all(0 <= side < 2**63 for side in tensor.shape)

    _, num_refused = read_all(lambda rng: mutated(rng, whole), read, NUM_CASES, NUM_CASES)
    assert num_refused > 0


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("model", ["llama3", "gemma2", "phi3", "gptneox", "t5"])
def test_gguf_files(model, tmp_path):
    """Header, config, tensors and tokenizer of files with other bytes and other metadata."""
    _, path = write_gguf(tmp_path, model, metadata=byte_level().items())
    content, header = path.read_bytes(), read_header(path)
    end = min(tensor.offset for tensor in header.tensors.values())

    def make(rng):
        if rng.random() < 0.7:
            return mutated_metadata(rng, header, content)
        mutated = bytearray(content)
        for at in rng.integers(0, end, rng.integers(1, 4)):
            mutated[at] = rng.integers(0, 256)
        return mutated

    def read(mutated):
        path.write_bytes(mutated)
        described, files = read_config(path), TensorFiles.of_folder(path)
        for _, tensor in files.open(set(files.file_of)):
            tensor.rows(0, 1)
        read_tokenizer(path, described.attributes, vocab_size=64, table="embedding")

    read(content)
    num_read, num_refused = read_all(make, read, NUM_GGUF, 3)
    assert min(num_read, num_refused) > NUM_GGUF / 20


def test_folders(tmp_path):
    """Whole folders, tiny, with a header of other shapes: nothing of their size is made."""
    folder = write_tiny_checkpoint(VARIANTS["llama-tied-grouped"], tmp_path)
    content = (folder / SINGLE).read_bytes()

    def read(mutated):
        (folder / SINGLE).write_bytes(mutated)
        load_folder(folder)

    read(content)
    _, num_refused = read_all(lambda rng: mutated_header(rng, content), read, 50, 2)
    assert num_refused > 25


@pytest.mark.parametrize(
    "sizes",
    [
        {"vocab_size": 10**11},
        {"hidden_size": 10**6, "num_attention_heads": 10**5},
        {"head_dim": 10**12},
    ],
)
def test_a_config_of_another_size_than_its_tensors_allocates_nothing(tmp_path, sizes):
    folder = write_tiny_checkpoint(VARIANTS["llama-tied-grouped"], tmp_path)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **sizes}))
    with bounded_memory(), pytest.raises(checks.UserError, match="must"):
        load_folder(folder)
