r"""Candidate: a pretrained language model that may be chosen for the task.

It is a pure function ``apply_fn(params, batch) -> logits`` with its parameters, and what is
needed to feed it text.

Example:
    >>> import numpy as np, lensllm_jax as lens
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> ids = np.ones((2, 5), np.int32)
    >>> c.apply_fn(c.params, {"input_ids": ids, "attention_mask": ids}).shape[:2]
    (2, 5)
"""

import dataclasses
import functools
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from lensllm_jax import checks
from lensllm_jax.checkpoints.adapters import Adapter
from lensllm_jax.checkpoints.config import CONFIG, CheckpointConfig, read_config
from lensllm_jax.checkpoints.files import is_inside
from lensllm_jax.checkpoints.folder import SINGLE
from lensllm_jax.checkpoints.formats import write_safetensors
from lensllm_jax.checkpoints.gguf.header import is_gguf, read_header
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.checkpoints.tokenizer import TOKENIZER_FILES, has_tokenizer, read_tokenizer
from lensllm_jax.checkpoints.weights import (
    embedding_tensor,
    load_params,
    saved_tensors,
    with_stored_head,
)
from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig
from lensllm_jax.models.family import CONSTANT, Family, ModelConfig
from lensllm_jax.typing import Batch, Params


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A pretrained language model.

    Attributes:
        name: the user's name of it.
        family: the tables that loaded it.
        config: shape and variants.
        params: the parameter tree.
        hf_config: the checkpoint's own config, for saving.
        folder: where it was loaded from (a folder or a GGUF file); the tokenizer is read from
            there.
        dequantized_from: llama.cpp's names of the types in which weights were stored in fewer
            bits, such as Q4_K; none where they were floating-point numbers.
        notes: what a user may want to know of the checkpoint, a line each.
    """

    name: str
    family: Family
    config: ModelConfig
    params: Params = dataclasses.field(repr=False)
    hf_config: Mapping[str, Any] = dataclasses.field(repr=False)
    folder: Path
    dequantized_from: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether logits at a position predict that position's label (else the next one's)."""
        return self.config.is_encoder_decoder

    @property
    def decoder_start_token_id(self) -> int:
        """The token that the decoder of an encoder-decoder reads first; ``UserError`` of others."""
        if not isinstance(self.config, EncoderDecoderConfig):
            raise checks.UserError(f"`{self.name}` must be an encoder-decoder, got a decoder alone")
        return self.config.decoder_start_token_id

    @property
    def num_params(self) -> int:
        """Number of parameters, a shared one counted once, constants not at all."""
        flat = traverse_util.flatten_dict(self.params)
        return sum(leaf.size for path, leaf in flat.items() if path[-1] != CONSTANT)

    @functools.cached_property
    def module(self) -> nn.Module:
        """The Flax module that ``apply_fn`` applies."""
        return self.config.module()

    def apply_fn(self, params: Params, batch: Batch) -> jax.Array:
        """Logits (b, s, v): at i they predict token i + 1, or of an encoder-decoder label i.

        Args:
            params: a tree like ``self.params``.
            batch: ``input_ids`` and ``attention_mask``, each (b, s), and ``decoder_input_ids``
                (b, u) for an encoder-decoder; with ``logits_to_keep`` (m,), positions row after
                row, logits are (m, v) at these alone; other keys are not read.
        """
        logits = self.module.apply({"params": params}, *self.config.arguments(batch))
        return cast(jax.Array, logits)

    @functools.cached_property
    def tokenizer(self) -> Any:
        """The checkpoint's tokenizer, read when first used.

        Raises:
            UserError: if the folder has none, it does not read, it has more tokens than the
                embedding has rows, or no end token is known.
        """
        return read_tokenizer(
            self.folder,
            self.hf_config,
            vocab_size=self.config.vocab_size,
            table=embedding_tensor(self.family, self.config),
        )

    def save(self, folder: str | Path, *, params: Params | None = None, dtype: str = "float32"):
        """Writes a folder that Hugging Face and ``load_folder`` read, the tokenizer included.

        Args:
            folder: where to; made if absent.
            params: what to write (default: the candidate's own).
            dtype: type of the stored tensors.

        Raises:
            UserError: if ``dtype`` is not a floating type, a value is not finite in it, or a
                file of the tokenizer is a link out of the checkpoint.
        """
        folder, stored = Path(folder), _floating(dtype)
        tokenizer_files = [name for name in TOKENIZER_FILES if (self.folder / name).exists()]
        for name in tokenizer_files:
            if not is_inside(self.folder, self.folder / name):
                raise checks.UserError(
                    f"`{self.folder / name}` must be a file of the checkpoint, got a link out of "
                    "it: put the file itself there"
                )
        tree = self.params if params is None else params
        tensors = {
            name: _cast(name, values, stored)
            for name, values in saved_tensors(tree, self.family, self.config)
        }
        write_safetensors(folder / SINGLE, tensors)
        config = {**self.hf_config, "architectures": [self.family.architecture], "dtype": dtype}
        (folder / CONFIG).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
        for name in tokenizer_files:
            if not (folder / name).exists():
                shutil.copy(self.folder / name, folder)
        if is_gguf(self.folder):
            self.tokenizer.save_pretrained(folder)


def load_folder(
    folder: str | Path, *, name: str | None = None, dtype: str = "float32",
    adapter: Adapter | None = None,
) -> Candidate:  # fmt: skip
    """Reads a Hugging Face checkpoint folder, or a GGUF file.

    Args:
        folder: holds config.json and weights.
        name: of the candidate (default: the folder's name).
        dtype: type of the parameters; "float64" needs JAX's x64 mode.
        adapter: merged into the weights; its tokenizer, if it has one, takes the place of theirs.

    Raises:
        UserError: if the folder is no checkpoint, its family or a setting of it is not
            supported, or its weights are damaged or do not fit its config.
    """
    folder = Path(folder)
    described = read_config(folder)
    family, files = described.family, TensorFiles.of_folder(folder)
    config = with_stored_head(files, family, described.config)
    if adapter is not None:
        files = adapter.merged(files, family, config)
    params = load_params(files, family, config, dtype=_floating(dtype))
    return Candidate(
        name=name or folder.name,
        family=family,
        config=config,
        # JAX may take over the host's copy, so that there is one copy and not two
        params=jax.device_put(params, may_alias=True),
        hf_config=described.attributes,
        folder=adapter.folder if adapter and has_tokenizer(adapter.folder) else folder,
        notes=notes_of(folder, described, adapter),
        dequantized_from=_dequantized_from(folder),
    )


def notes_of(folder: Path, described: CheckpointConfig, adapter: Adapter | None) -> tuple[str, ...]:
    """What a user may want to know of a checkpoint before it is loaded, a line each."""
    types = ", ".join(_dequantized_from(folder))
    # the attributes of a GGUF file's config are ours, not its maker's
    notes = () if is_gguf(folder) else described.notes
    notes += (f"weights dequantized from {types}",) if types else ()
    if adapter is None:
        return notes
    base = adapter.base if adapter.base.isprintable() else ascii(adapter.base)
    return (*notes, f"adapter merged into {base}")


def _dequantized_from(folder: Path) -> tuple[str, ...]:
    return read_header(folder).quantized_types if is_gguf(folder) else ()


def _floating(dtype: str) -> np.dtype:
    """The numpy type called ``dtype``, if parameters can have it here."""
    checks.one_of("dtype", dtype, ("float16", "bfloat16", "float32", "float64"))
    if dtype == "float64" and not jax.config.read("jax_enable_x64"):
        raise checks.UserError(
            "`dtype` must be at most float32 while JAX's x64 mode is off, got 'float64': "
            "set JAX_ENABLE_X64=1"
        )
    return np.dtype(jnp.dtype(dtype))


def _cast(name: str, values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """A tensor in another type, if all of it is finite there."""
    with np.errstate(over="ignore"):  # reported below
        cast = values.astype(dtype)
    if not np.isfinite(cast).all():
        raise checks.UserError(
            f"`params` must be finite in {dtype}, got tensor {name} of magnitude "
            f"{np.abs(values).max():.3g}: choose another `dtype`, or find out why training diverged"
        )
    return cast
