r"""Format: one kind of weight file, opened as a map from names to tensors that are read in pieces.

* safetensors: a header of names, types and offsets, then the values; read piece by piece.
* msgpack, as Flax wrote it: a tree of arrays, whose names and layouts are turned into those of
  PyTorch (``kernel`` is a transposed ``weight``); read whole, one file at a time.
* bin, as PyTorch wrote it: read by PyTorch itself, which accepts tensors and nothing that
  could run (``weights_only=True``).
* gguf, as llama.cpp wrote it: dequantized row by row (:mod:`lensllm_jax.checkpoints.gguf`).

Nothing is ever unpickled here.

Example:
    >>> import numpy as np, tempfile
    >>> from safetensors.numpy import save_file
    >>> from lensllm_jax.checkpoints.formats import open_tensors
    >>> path = f"{tempfile.mkdtemp()}/model.safetensors"
    >>> save_file({"w": np.eye(2)}, path)
    >>> open_tensors(path)["w"].whole().sum()
    np.float64(2.0)
"""

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.files import check_file
from lensllm_jax.checkpoints.gguf.tensors import open_gguf
from lensllm_jax.checkpoints.stored_tensor import StoredTensor, Tensors

# safetensors' name -> numpy's, of the types that a parameter can have
_FLOATS: Mapping[str, Any] = {
    "F64": np.float64,
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
}
FLOATS = tuple(str(np.dtype(dtype)) for dtype in _FLOATS.values())
_INTEGERS = {f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint"))
             for bits in (8, 16, 32, 64)}  # fmt: skip
_DTYPES: Mapping[str, Any] = {**_FLOATS, **_INTEGERS, "BOOL": np.bool_}  # that NumPy has
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def open_tensors(path: str | Path) -> Tensors:
    """The tensors of a .safetensors, .msgpack or .bin file, under PyTorch's names.

    Raises:
        UserError: if the file does not read, or is none.
    """
    path = Path(path)
    check_file(path)
    try:
        return _OPENERS[path.suffix](path)
    except checks.UserError:
        raise
    except Exception as error:  # damaged files raise whatever the libraries raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise checks.UserError(
            f"`{path}` must be a complete {path.suffix[1:]} file of tensors, got one that does not "
            f"read ({reason}): fetch it again"
        ) from error


def write_safetensors(
    path: Path, tensors: Mapping[str, np.ndarray], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes tensors into a file that appears whole or not at all, without a copy in memory.

    Args:
        path: of the file.
        tensors: by name.
        metadata: default that of Hugging Face's files.

    Raises:
        OSError: if it cannot be written, such as on a full disk.
    """
    # the library writes a file of a name of its own beside it, which a kill would leave there
    header: dict[str, Any] = {"__metadata__": dict(metadata or {"format": "pt"})}
    arrays = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in tensors.items()}
    end = 0
    # larger numbers first, so that all are aligned
    for name in sorted(arrays, key=lambda name: (-arrays[name].itemsize, name)):
        start, end = end, end + arrays[name].nbytes
        header[name] = {
            "dtype": _NAMES[arrays[name].dtype], "shape": arrays[name].shape,
            "data_offsets": (start, end),
        }  # fmt: skip
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with durable.writing(path) as whole, whole.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in [*header][1:]:
            file.write(arrays[name].reshape(-1).view(np.uint8).data)


def _open_safetensors(path: Path) -> Tensors:
    import safetensors

    # the library checks the header against the file; the values are read without it, because
    # pages of its memory map would count as this process's memory
    with safetensors.safe_open(path, framework="numpy") as file:
        names = set(file.keys())
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(header_bytes))
    return {name: _lazy(path, 8 + header_bytes, header[name]) for name in names}


def _lazy(path: Path, start_of_values: int, entry: Mapping[str, Any]) -> StoredTensor:
    shape = tuple(entry["shape"])
    known = entry["dtype"] in _DTYPES
    dtype = np.dtype(_DTYPES[entry["dtype"]] if known else np.uint8)
    first = start_of_values + entry["data_offsets"][0]
    row_size = math.prod(shape[1:])

    def rows(start: int, stop: int) -> np.ndarray:
        offset = first + start * row_size * dtype.itemsize
        values = np.fromfile(path, dtype, (stop - start) * row_size, offset=offset)
        return values.reshape((stop - start, *shape[1:])) if shape else values.reshape(())

    name = str(dtype) if entry["dtype"] in _FLOATS else entry["dtype"]
    return StoredTensor(shape, name, dtype.itemsize, rows)


def _in_memory(values: np.ndarray) -> StoredTensor:
    """A tensor that is in memory already."""
    rows = (lambda start, stop: values[start:stop]) if values.ndim else (lambda *_: values)
    return StoredTensor(values.shape, str(values.dtype), values.dtype.itemsize, rows)


def _open_msgpack(path: Path) -> Tensors:
    from flax import serialization, traverse_util

    tree = serialization.msgpack_restore(path.read_bytes())
    flat = traverse_util.flatten_dict(tree)
    return dict(_as_pytorch(keys, np.asarray(values)) for keys, values in flat.items())


def _as_pytorch(keys: tuple[str, ...], values: np.ndarray) -> tuple[str, StoredTensor]:
    """Name and layout of a Flax parameter in the PyTorch model that it was converted from."""
    *modules, leaf = keys
    leaf = "weight" if leaf in ("kernel", "scale", "embedding") else leaf
    return ".".join([*modules, leaf]), _in_memory(values.T if keys[-1] == "kernel" else values)


def _open_bin(path: Path) -> Tensors:
    try:
        import torch
    except ImportError as error:
        raise checks.UserError(
            f"`{path}` must be read by PyTorch, got no PyTorch: install it "
            "(pip install torch), or save the model again with safe_serialization=True"
        ) from error
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except RuntimeError:  # the format of before 2020 has no memory map
        loaded = torch.load(path, map_location="cpu", weights_only=True)

    def stored(name: str, tensor: Any) -> StoredTensor:
        if not isinstance(tensor, torch.Tensor):
            raise checks.UserError(
                f"`{path}` must hold tensors by their names, got {type(tensor).__name__} for "
                f"{name!r}: save the model itself, not the state of its training"
            )
        words = tensor.view(torch.int16) if tensor.dtype is torch.bfloat16 else tensor
        values = words.detach().numpy()
        return _in_memory(values.view(ml_dtypes.bfloat16) if words is not tensor else values)

    return {name: stored(name, tensor) for name, tensor in loaded.items()}


_OPENERS: Mapping[str, Callable[[Path], Tensors]] = {
    ".safetensors": _open_safetensors,
    ".msgpack": _open_msgpack,
    ".bin": _open_bin,
    ".gguf": open_gguf,
}
