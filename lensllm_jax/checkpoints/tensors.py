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
from collections.abc import Iterator
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints.formats import StoredTensor, Tensors, open_tensors

SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
# the single file of each format; its index is called the same with ".index.json" after it
FILES = (SINGLE, "flax_model.msgpack", "pytorch_model.bin")


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """Where each tensor of a checkpoint lies.

    Attributes:
        folder: the checkpoint.
        file_of: tensor name -> file name; what a file holds and the index does not name is
            added when that file is opened.
        listing: the file that names the tensors: the only one, or the index of several.
    """

    folder: Path
    file_of: dict[str, str]
    listing: str = "the index"

    @classmethod
    def of_folder(cls, folder: str | Path) -> "TensorFiles":
        """The weight files of a Hugging Face checkpoint folder.

        Raises:
            UserError: if there are none, or the one that names the tensors does not read.
        """
        folder = Path(folder)
        for single in FILES:
            index = f"{single}.index.json"
            if (folder / index).exists():
                return cls(folder, _file_of(folder / index), index)
            if (folder / single).exists():
                names = open_tensors(folder / single)
                return cls(folder, dict.fromkeys(names, single), single)
        others = sorted(p.name for p in folder.glob("*") if p.suffix in (".bin", ".h5", ".pt"))
        raise checks.UserError(
            f"`{folder}` must hold {', '.join(FILES)}, or an index of several such files, got "
            f"{'only ' + ', '.join(others) if others else 'no weights'}: save the model again "
            "with safe_serialization=True"
        )

    def open(
        self, names: set[str], problems: list[str] | None = None
    ) -> Iterator[tuple[str, StoredTensor]]:
        """Several tensors, file by file, so that one file is open at a time.

        Args:
            names: which.
            problems: collects what is wrong with a file, and the others are still read
                (default: the first such is raised).

        Yields:
            Name and tensor; read it before the next is taken.

        Raises:
            UserError: if a file is absent, does not read, or lacks a tensor that the index finds
                there, and there is no list of ``problems``.
        """
        for file_name in sorted(set(self.file_of.values())):
            wanted = sorted(name for name in names if self.file_of[name] == file_name)
            tensors, problem = self._opened(file_name, wanted)
            if problem and problems is None:
                raise checks.UserError(f"`{self.folder}` must hold whole weights, got {problem}")
            if problem and problems is not None:
                problems.append(problem)
            for name in wanted:
                if name in tensors:
                    yield name, tensors[name]
            for name in tensors:
                self.file_of.setdefault(name, file_name)

    def _opened(self, file_name: str, wanted: list[str]) -> tuple[Tensors, str | None]:
        """The tensors of a file, and what is wrong with it."""
        path = self.folder / file_name
        if not path.exists():
            what = f"no file {file_name}, where {self.listing} finds {_few(wanted)}"
            return {}, f"{what} (fetch it)"
        try:
            tensors = open_tensors(path)
        except checks.UserError as error:
            return {}, f"no {_few(wanted)}: {error}"
        absent = [name for name in wanted if name not in tensors]
        what = f"{file_name} without {_few(absent)}, which {self.listing} finds there"
        return tensors, f"{what} (fetch it again)" if absent else None


def _few(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many follow."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing that is needed") + more


def _file_of(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index says."""
    try:
        weight_map = json.loads(index.read_text())["weight_map"]
        return {_pytorch_name(name): str(file) for name, file in weight_map.items()}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise checks.UserError(
            f"`{index}` must be JSON with a `weight_map`, got {type(error).__name__}: {error}"
        ) from error


def _pytorch_name(name: str) -> str:
    """The name that ``formats`` gives a tensor; Flax's indices join a path by slashes."""
    *modules, leaf = name.split("/")
    if modules and leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join([*modules, leaf])
