r"""Tensors: the weight files of a checkpoint folder, opened one at a time.

A folder holds one file, or several and an index that says which tensor lies where; of several
formats the safest is read.

Example:
    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import save_file
    >>> from lensllm_jax.checkpoints.tensors import TensorFiles
    >>> folder = tempfile.mkdtemp()
    >>> save_file({"w": np.eye(2)}, f"{folder}/model.safetensors")
    >>> [(name, tensor.shape) for name, tensor in TensorFiles.of_folder(folder).open({"w"})]
    [('w', (2, 2))]
"""

import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints.formats import StoredTensor, open_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# the single file of each format; its index is called the same with ".index.json" after it
FILES = (SINGLE, "flax_model.msgpack", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """Where each tensor of a checkpoint lies.

    Attributes:
        folder: the checkpoint.
        file_of: tensor name -> file name.
    """

    folder: Path
    file_of: Mapping[str, str]

    @classmethod
    def of_folder(cls, folder: str | Path) -> "TensorFiles":
        """Finds the weight files of a folder.

        Args:
            folder: a Hugging Face checkpoint folder.

        Returns:
            The map from tensor to file.

        Raises:
            UserError: if there are none, one is missing, or one does not read.
        """
        folder = Path(folder)
        for single in FILES:
            if (folder / f"{single}.index.json").exists():
                return cls(folder, _file_of(folder, f"{single}.index.json"))
            if (folder / single).exists():
                return cls(folder, dict.fromkeys(open_tensors(folder / single), single))
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".h5", ".pt"))
        raise checks.UserError(
            f"`{folder}` must hold {', '.join(FILES)}, or an index of several such files, got "
            f"{'only ' + ', '.join(others) if others else 'no weights'}: save the model again "
            "with safe_serialization=True"
        )

    def open(self, names: set[str]) -> Iterator[tuple[str, StoredTensor]]:
        """Several tensors, file by file, so that one file is open at a time.

        Args:
            names: which.

        Yields:
            Name and tensor; read it before asking for the next.

        Raises:
            UserError: if a file does not read, or lacks a tensor that the index finds there.
        """
        for file_name in sorted({self.file_of[name] for name in names}):
            tensors = open_tensors(self.folder / file_name)
            wanted = sorted(name for name in names if self.file_of[name] == file_name)
            if absent := [name for name in wanted if name not in tensors]:
                raise checks.UserError(
                    f"`{self.folder / file_name}` must hold the tensors that the index finds "
                    f"there, got none named {', '.join(absent)}: fetch it again"
                )
            for name in wanted:
                yield name, tensors[name]


def _file_of(folder: Path, index: str) -> dict[str, str]:
    try:
        weight_map = json.loads((folder / index).read_text())["weight_map"]
        file_of = {_pytorch_name(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checks.UserError(
            f"`{folder / index}` must be JSON with a `weight_map`, got "
            f"{type(error).__name__}: {error}"
        ) from error
    missing = sorted({f for f in file_of.values() if not (folder / f).exists()})
    if missing:
        raise checks.UserError(
            f"`{folder}` must hold every file that {index} names, got none of "
            f"{', '.join(missing)}: fetch the missing shards"
        )
    return file_of


def _pytorch_name(name: str) -> str:
    """The name that ``formats`` gives a tensor; Flax's indices join a path by slashes."""
    *modules, leaf = name.split("/")
    if modules and leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join([*modules, leaf])
