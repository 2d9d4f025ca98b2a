"""Header of a GGUF file: its metadata and where each tensor lies.

Layout (little-endian, versions 2 and 3): magic, version, counts of tensors and of metadata; the
metadata as key, type, value; per tensor its name, axes (fastest first), type and offset; padding;
the values.  Every length is compared with the size of the file before it is read.
"""

import dataclasses
import functools
import math
import mmap
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks

SUFFIX = ".gguf"
_STRING, _ARRAY = 8, 9
# type of a metadata value -> its format in ``struct``
_FORMATS = {
    0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d",
}  # fmt: skip
_MAX_AXES = 4
# number of a type of blocks -> its name, values per block, bytes per block (ggml-common.h)
_BLOCKS = {
    0: ("F32", 1, 4), 1: ("F16", 1, 2), 28: ("F64", 1, 8), 30: ("BF16", 1, 2),
    2: ("Q4_0", 32, 18), 3: ("Q4_1", 32, 20), 6: ("Q5_0", 32, 22), 7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34), 20: ("IQ4_NL", 32, 18), 39: ("MXFP4", 32, 17),
    10: ("Q2_K", 256, 84), 11: ("Q3_K", 256, 110), 12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176), 14: ("Q6_K", 256, 210), 16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74), 18: ("IQ3_XXS", 256, 98), 19: ("IQ1_S", 256, 50),
    21: ("IQ3_S", 256, 110), 22: ("IQ2_S", 256, 82), 23: ("IQ4_XS", 256, 136),
    29: ("IQ1_M", 256, 56), 34: ("TQ1_0", 256, 54), 35: ("TQ2_0", 256, 66),
}  # fmt: skip
_ALIGNMENT = 32  # bytes, where the metadata name none


@dataclasses.dataclass(frozen=True)
class StoredBlocks:
    """A tensor of the file."""

    shape: tuple[int, ...]  # slowest axis first, as in PyTorch
    type_name: str  # of its blocks, such as Q4_K
    offset: int  # bytes from the start of the file
    row_bytes: int  # of one row (all axes but the last counted as rows)


@dataclasses.dataclass(frozen=True)
class Header:
    """What a GGUF file says of itself."""

    path: Path
    metadata: Mapping[str, Any] = dataclasses.field(repr=False)
    tensors: Mapping[str, StoredBlocks] = dataclasses.field(repr=False)

    @property
    def architecture(self) -> str:
        """llama.cpp's name of the architecture."""
        return self.metadata["general.architecture"]

    def architecture_value(self, key: str, default: Any = None) -> Any:
        """The metadata of this architecture, such as "block_count"."""
        return self.metadata.get(f"{self.architecture}.{key}", default)

    @property
    def quantized_types(self) -> tuple[str, ...]:
        """The types that are no floating-point numbers, sorted."""
        types = {tensor.type_name for tensor in self.tensors.values()}
        return tuple(sorted(types - {"F16", "F32", "F64", "BF16"}))


def is_gguf(path: str | Path) -> bool:
    """Whether a candidate is a GGUF file, by its name."""
    return Path(path).suffix.lower() == SUFFIX


def read_header(path: str | Path) -> Header:
    """The header of a GGUF file; read once per state of the file.

    Raises:
        UserError: if the file is no GGUF file, is truncated or damaged, or stores tensors in a
            type that cannot be dequantized.
    """
    path = Path(path).resolve()
    try:
        state = path.stat()
    except OSError as error:
        raise checks.UserError(f"`{path}` must be a GGUF file, got {error.strerror}") from error
    return _read_header(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=8)
def _read_header(path: Path, size: int, _: int) -> Header:
    try:
        with path.open("rb") as file:
            magic = file.read(4)
            if magic != b"GGUF":
                raise _Damaged(f"a file that begins with {magic!r}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                return _Parser(content, size).header(path)
    except (_Damaged, OSError, UnicodeDecodeError) as error:
        reason = "text that is not UTF-8" if isinstance(error, UnicodeDecodeError) else error
        raise checks.UserError(
            f"`{path}` must be a complete GGUF file (version 2 or 3), got {reason}: "
            "fetch it again, or one of another quantization"
        ) from error


class _Damaged(Exception):
    """What is wrong with the bytes of a file."""


class _Parser:
    """Reads values one after the other."""

    def __init__(self, content: mmap.mmap, size: int):
        self._content, self._size, self._at = content, size, 4

    def header(self, path: Path) -> Header:
        version, num_tensors, num_values = self._unpack("<IQQ")
        if version not in (2, 3):
            raise _Damaged(f"version {version}")
        metadata = dict(self._metadata(num_values))
        architecture = metadata.get("general.architecture")
        if not isinstance(architecture, str):
            raise _Damaged(f"general.architecture {architecture!r}")
        table = dict(self._table(num_tensors))
        alignment = metadata.get("general.alignment", _ALIGNMENT)
        if not isinstance(alignment, int) or not 0 < alignment <= 2**16:
            raise _Damaged(f"general.alignment {alignment!r}")
        start = -(-self._at // alignment) * alignment
        return Header(path, metadata, {n: self._tensor(n, start, *t) for n, t in table.items()})

    def _metadata(self, count: int) -> Iterator[tuple[str, Any]]:
        for _ in range(self._bounded(count, 13)):
            key = self._string()
            (kind,) = self._unpack("<I")
            try:
                yield key, self._value(kind)
            except _Damaged as error:
                raise _Damaged(f"{error} in {key}") from error

    def _table(self, count: int) -> Iterator[tuple[str, tuple[tuple[int, ...], int, int]]]:
        for _ in range(self._bounded(count, 24)):
            name = self._string()
            (num_axes,) = self._unpack("<I")
            if not 1 <= num_axes <= _MAX_AXES:
                raise _Damaged(f"{num_axes} axes of {name}")
            axes = self._unpack(f"<{num_axes}Q")
            kind, offset = self._unpack("<IQ")
            yield name, (axes[::-1], kind, offset)

    def _tensor(
        self, name: str, start: int, shape: tuple[int, ...], kind: int, offset: int
    ) -> StoredBlocks:
        if kind not in _BLOCKS:
            raise _Damaged(f"{name} in blocks of type {kind}, which cannot be dequantized")
        type_name, block_values, block_bytes = _BLOCKS[kind]
        width = shape[-1]
        if not all(shape) or width % block_values:
            raise _Damaged(f"shape {shape} of {name} in blocks of {block_values}")
        row_bytes = width // block_values * block_bytes
        if start + offset + math.prod(shape[:-1]) * row_bytes > self._size:
            raise _Damaged(f"only {self._size} bytes, where {name} ends later")
        return StoredBlocks(shape, type_name, start + offset, row_bytes)

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind == _ARRAY:
            element, count = self._unpack("<IQ")
            if element == _STRING:
                return [self._string() for _ in range(self._bounded(count, 8))]
            return list(self._unpack(f"<{self._bounded(count, 1)}{self._format(element)}"))
        return self._unpack(f"<{self._format(kind)}")[0]

    def _format(self, kind: int) -> str:
        if kind not in _FORMATS:
            raise _Damaged(f"a value of type {kind}")
        return _FORMATS[kind]

    def _string(self) -> str:
        (length,) = self._unpack("<Q")
        start = self._at
        self._at += self._bounded(length, 1)
        return self._content[start : self._at].decode()

    def _unpack(self, form: str) -> tuple[Any, ...]:
        start, self._at = self._at, self._at + struct.calcsize(form)
        if self._at > self._size:
            raise _Damaged("an end within its header")
        return struct.unpack_from(form, self._content, start)

    def _bounded(self, count: int, each: int) -> int:
        """A count of things of at least so many bytes, if the rest of the file can hold them."""
        if count * each > self._size - self._at:
            raise _Damaged(f"a count of {count} that goes beyond its end")
        return count
