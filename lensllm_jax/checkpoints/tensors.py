r"""Tensors: the weight files of a checkpoint folder, read one tensor at a time.

A folder holds ``model.safetensors``, or several files and ``model.safetensors.index.json``
that says which tensor lies where.  Nothing is ever unpickled.

Example:
    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import save_file
    >>> from lensllm_jax.checkpoints.tensors import TensorFiles
    >>> folder = tempfile.mkdtemp()
    >>> save_file({"w": np.eye(2)}, f"{folder}/model.safetensors")
    >>> TensorFiles.of_folder(folder).read("w").shape
    (2, 2)
"""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lensllm_jax import checks

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Turns whatever a broken file raises into one line that names it."""
    import safetensors

    try:
        yield
    except (safetensors.SafetensorError, OSError, ValueError, KeyError) as error:
        if isinstance(error, checks.UserError):
            raise
        raise checks.UserError(
            f"`{path}` must be a complete safetensors file, got one that does not read "
            f"({error}): fetch it again"
        ) from error


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
        if (folder / INDEX).exists():
            return cls(folder, _read_index(folder))
        if (folder / SINGLE).exists():
            with _open(folder / SINGLE) as file:
                return cls(folder, dict.fromkeys(file.keys(), SINGLE))
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".msgpack", ".h5"))
        found = f"only {', '.join(others)}" if others else "no weights"
        raise checks.UserError(
            f"`{folder}` must hold {SINGLE} or {INDEX}, got {found}: save the model again with "
            "safe_serialization=True"
        )

    def read(self, name: str) -> np.ndarray:
        """One tensor.

        Args:
            name: its name in the checkpoint.

        Returns:
            Its values, in the type they were stored in.

        Raises:
            UserError: if the file does not read.
        """
        with _open(self.folder / self.file_of[name]) as file:
            return _as_numpy(file, name)

    def read_all(self, names: set[str]) -> Iterator[tuple[str, np.ndarray]]:
        """Several tensors, opening each file once and holding one tensor at a time.

        Args:
            names: which.

        Yields:
            Name and values, file by file.

        Raises:
            UserError: if a file does not read.
        """
        for file_name in sorted({self.file_of[name] for name in names}):
            with _open(self.folder / file_name) as file:
                for name in sorted(n for n in names if self.file_of[n] == file_name):
                    yield name, _as_numpy(file, name)


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    import safetensors

    with _readable(path), safetensors.safe_open(path, framework="numpy") as file:
        yield file


def _as_numpy(file: Any, name: str) -> np.ndarray:
    array = file.get_tensor(name)
    # older safetensors hand bfloat16 over as raw 16-bit words
    return array.view(ml_dtypes.bfloat16) if array.dtype == np.dtype("V2") else array


def _read_index(folder: Path) -> dict[str, str]:
    with _readable(folder / INDEX):
        file_of = json.loads((folder / INDEX).read_text())["weight_map"]
    missing = sorted({f for f in file_of.values() if not (folder / f).exists()})
    if missing:
        raise checks.UserError(
            f"`{folder}` must hold every file that {INDEX} names, got none of "
            f"{', '.join(missing)}: fetch the missing shards"
        )
    return file_of
