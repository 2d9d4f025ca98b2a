r"""Tensors: the weight files of a checkpoint folder, opened one at a time.

A folder holds one file, or several and an index that says which tensor lies where.

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
from collections.abc import Iterable, Iterator
from pathlib import Path

from lensllm_jax import checks
from lensllm_jax.checkpoints.files import is_inside, is_there, read_json
from lensllm_jax.checkpoints.folder import weight_files
from lensllm_jax.checkpoints.formats import open_tensors
from lensllm_jax.checkpoints.gguf.header import is_gguf
from lensllm_jax.checkpoints.stored_tensor import StoredTensor, Tensors

# what training wraps a model in, and leaves in the names of its tensors
_WRAPPERS = (
    "_orig_mod.", "module.", "base_model.model.", "_fsdp_wrapped_module.", "_forward_module.",
)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class TensorFiles:
    """Where each tensor of a checkpoint lies.

    Attributes:
        folder: the checkpoint.
        file_of: tensor name -> file name; what a file holds and the index does not name is
            added when that file is opened.
        listing: what names the tensors: the only file, the index of several, or all of them.
        wrapper: what stands before every stored name, and in no key of ``file_of``.
    """

    folder: Path
    file_of: dict[str, str]
    listing: str = "the index"
    wrapper: str = ""

    @classmethod
    def of_folder(cls, folder: str | Path) -> "TensorFiles":
        """The weight files of a Hugging Face checkpoint folder, or a GGUF file.

        Raises:
            UserError: if there are none, or the one that names the tensors does not read.
        """
        folder = Path(folder)
        if is_gguf(folder):
            names = open_tensors(folder)
            return cls(folder.parent, dict.fromkeys(names, folder.name), folder.name)
        files = weight_files(folder)
        if files[0].suffix == ".json":
            file_of, listing = _file_of(files[0]), files[0].name
        else:
            file_of = {name: path.name for path in files for name in open_tensors(path)}
            listing = ", ".join(path.name for path in files)
        wrapper = _wrapper(file_of)
        file_of = {name.removeprefix(wrapper): file for name, file in file_of.items()}
        return cls(folder, file_of, listing, wrapper)

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
        if not is_there(path):
            what = f"no file {file_name}, where {self.listing} finds {_few(wanted)}"
            return {}, f"{what} (fetch it)"
        try:
            stored = open_tensors(path)
        except checks.UserError as error:
            return {}, f"no {_few(wanted)}: {error}"
        tensors = {name.removeprefix(self.wrapper): t for name, t in stored.items()}
        absent = [name for name in wanted if name not in tensors]
        what = f"{file_name} without {_few(absent)}, which {self.listing} finds there"
        return tensors, f"{what} (fetch it again)" if absent else None


def _few(names: list[str], most: int = 3) -> str:
    """The first of some names, and how many follow."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return (", ".join(names[:most]) or "nothing that is needed") + more


def _file_of(index: Path) -> dict[str, str]:
    """Tensor name -> file name, as an index says."""
    stored = read_json(index)
    weight_map = stored.get("weight_map") if isinstance(stored, dict) else None
    if not isinstance(weight_map, dict):
        raise checks.UserError(
            f"`{index}` must be JSON with a `weight_map`, got {type(weight_map or stored).__name__}"
        )
    for file in set(map(str, weight_map.values())):
        # a name that is too long for a file is none of a file
        if (
            len(file) > 255
            or "\0" in file
            or Path(file).name != file
            or not is_inside(index.parent, index.parent / file)
        ):
            raise checks.UserError(
                f"`{index}` must name files of its own folder, got {file[:80]!r}: fetch the "
                "checkpoint again, from where you trust it"
            )
    return {_pytorch_name(name): str(file) for name, file in weight_map.items()}


def _wrapper(names: Iterable[str]) -> str:
    """What wrappers have put before all of these names."""
    prefix = ""
    while names and (
        more := next((w for w in _WRAPPERS if all(n.startswith(prefix + w) for n in names)), "")
    ):
        prefix += more
    return prefix


def _pytorch_name(name: str) -> str:
    """The name that ``formats`` gives a tensor; Flax's indices join a path by slashes."""
    *modules, leaf = name.split("/")
    if modules and leaf in ("kernel", "scale", "embedding"):
        leaf = "weight"
    return ".".join([*modules, leaf])
