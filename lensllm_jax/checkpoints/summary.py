"""Summary: what is known of a candidate before its weights are read.

Parameters are counted from the shapes that the config implies; of the weight files only the tables
of contents are read, which shows a file that is absent or was cut off, and a head that may be the
embedding.

Example:
    >>> summary = describe_candidate("zoo/gpt2-xs")
    >>> summary.family, summary.num_params
    ('gpt2', 239360)
"""

import dataclasses
import functools
import hashlib
import math
from pathlib import Path
from typing import Any

from lensllm_jax.checkpoints.adapters import ADAPTER_FILES, is_adapter, read_adapter
from lensllm_jax.checkpoints.candidate import notes_of
from lensllm_jax.checkpoints.config import CONFIG, read_config
from lensllm_jax.checkpoints.files import file_sha256
from lensllm_jax.checkpoints.gguf.header import is_gguf
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.checkpoints.tokenizer import has_tokenizer, read_tokenizer, tokenizer_files
from lensllm_jax.checkpoints.weights import embedding_tensor, parameter_shapes, with_stored_head
from lensllm_jax.checkpoints.zoo import base_of, folder_of
from lensllm_jax.models.family import CONSTANT, ModelConfig


@dataclasses.dataclass(frozen=True)
class CandidateSummary:
    """A candidate without its weights."""

    name: str  # as ``load_candidate`` takes it
    family: str  # Hugging Face's ``model_type``
    num_params: int  # a shared one counted once, constants not at all
    config: ModelConfig
    tokenizer: Any = dataclasses.field(repr=False)
    notes: tuple[str, ...] = ()  # what a user may want to know of it, a line each
    files: tuple[Path, ...] = dataclasses.field(default=(), repr=False)  # what it is read from

    @functools.cached_property
    def sha256(self) -> str:
        """Of the names and contents of its files, by which it is known from another of its name."""
        whole = hashlib.sha256()
        for path in self.files:
            whole.update(f"{path.name} {file_sha256(path)}\n".encode())
        return whole.hexdigest()


def describe_candidate(name: str | Path) -> CandidateSummary:
    """The summary of a candidate that can be loaded and can read text.

    Args:
        name: as ``load_candidate`` takes it; a model on the hub is fetched.

    Raises:
        UserError: if there is no such candidate, its config is not supported, or a weight file
            or the tokenizer is absent or damaged.
    """
    folder = tokens = folder_of(name)
    adapter = read_adapter(folder) if is_adapter(folder) else None
    if adapter is not None:
        folder = base_of(adapter)
        tokens = tokens if has_tokenizer(tokens) else folder
    described = read_config(folder)
    family, files = described.family, TensorFiles.of_folder(folder)
    for _ in files.open(set(files.file_of)):
        pass  # raises UserError where a file is absent or cut off; no value is read
    config = with_stored_head(files, family, described.config)
    tokenizer = read_tokenizer(
        tokens, described.attributes,
        vocab_size=config.vocab_size, table=embedding_tensor(family, config),
    )  # fmt: skip
    trained = (s for path, s in parameter_shapes(config).items() if path.split("/")[-1] != CONSTANT)
    num_params = sum(map(math.prod, trained))
    notes = notes_of(folder, described, adapter)
    weights = (files.folder / file_name for file_name in sorted(set(files.file_of.values())))
    config_file = () if is_gguf(folder) else (folder / CONFIG,)
    adapted = () if adapter is None else (adapter.folder / name for name in ADAPTER_FILES)
    read = (*weights, *config_file, *adapted, *tokenizer_files(tokens))
    return CandidateSummary(str(name), family.name, num_params, config, tokenizer, notes, read)
