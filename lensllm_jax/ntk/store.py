r"""Tile store: a kernel in a folder, safe against being killed at any moment.

A tile is a rectangle :math:`\Theta(X_{rows}, X_{columns})`, one file each; of a symmetric kernel
only the tiles on and above the diagonal exist.  A file appears whole or not at all (written aside,
flushed to the disk, renamed) and carries in its name the SHA-256 of its place and its bytes, with
their shape and type, so that one that is damaged or renamed is recognised and computed again.  The
folder belongs to one kernel: ``settings.json`` holds what decides every bit of it, and anything
else is refused by the name of what differs.

Several processes share the work through the folder alone: tile i belongs to process i mod p of
``jax.distributed``, and each waits until the others' tiles are there.

Example:
    >>> import tempfile, numpy as np
    >>> from lensllm_jax.ntk.gram import assemble, tiles
    >>> x = np.arange(3.0)
    >>> store = TileStore.open(tempfile.mkdtemp(), {"x": fingerprint(x)})
    >>> shape = {"block_size": 2, "symmetric": True}
    >>> store.fill(tiles(3, 3, **shape), lambda tile: np.outer(x[tile[0]], x[tile[1]]))
    >>> assemble(store.read, 3, 3, **shape)
    array([[0., 0., 0.],
           [0., 1., 2.],
           [0., 2., 4.]])
"""

import collections
import dataclasses
import hashlib
import io
import itertools
import logging
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, cast

import jax
import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax._version import __version__
from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.ntk.function import FunctionOfSome, TracedFn
from lensllm_jax.typing import ApplyFn, Array, Params

logger = logging.getLogger(__name__)

SETTINGS = "settings.json"
POLL_SECONDS = 0.2
PATIENCE_SECONDS = 3600.0  # how long no other process may finish a tile
_TILE = re.compile(r"tile_(\d+)_(\d+)_([0-9a-f]{64})\.npy")

_Rectangle: TypeAlias = tuple[slice, slice]  # rows and columns, such as ``gram.Tile``
# calls a function of a tile for each of several, and gives each with its values as it comes
TileMap: TypeAlias = Callable[[Callable[[Any], Array], Sequence[Any]], Iterable[tuple[Any, Any]]]


class TileProgress(NamedTuple):
    """Progress of this process."""

    done: int  # tiles of this process that are in the folder
    total: int  # tiles of this process
    computed: bool  # whether the last one was computed by this run


@dataclasses.dataclass(frozen=True)
class TileStore:
    """A folder that belongs to one kernel."""

    path: Path
    # names of the files of each tile when the folder was last scanned
    _files: dict[str, list[str]] = dataclasses.field(default_factory=dict, repr=False)
    # (outputs of a pair, type) of the tiles, once a tile is known: all have the same
    _kinds: list[tuple] = dataclasses.field(default_factory=list, repr=False)

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any]) -> "TileStore":
        """Opens a new folder, or resumes one of the same kernel.

        ``settings`` are what decides the kernel, as JSON values: see ``kernel_settings``.

        Raises:
            UserError: if the path is a file, or holds another kernel or other files.
        """
        return cls(durable.open_folder("store", path, settings, record=SETTINGS))

    def fill(
        self,
        tiles: Iterable[_Rectangle],
        tile_fn: Callable[[Any], Array],
        *,
        map_tiles: TileMap | None = None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        """Computes the missing tiles of this process and waits for those of the others.

        Each tile is an INFO record of this module's logger, with its ``TileProgress`` as the
        attribute ``tile``, for a program that shows progress.

        Args:
            tiles: all tiles of the kernel, in the same order in every process.
            tile_fn: computes one.
            map_tiles: calls it for each missing tile, perhaps elsewhere; ``None`` calls it here.
            patience_seconds: how long to wait while no other process finishes a tile.

        Raises:
            UserError: if a tile is not finite; it is not stored.
            TimeoutError: if the other processes stopped; what is stored stays.
        """
        tiles = list(tiles)
        self._scan()
        self._kinds.clear()
        own = tiles[jax.process_index() :: jax.process_count()]
        kinds = [None if values is None else _kind(values) for values in map(self._load, own)]
        counted = collections.Counter(filter(None, kinds))
        self._kinds.extend(kind for kind, _ in counted.most_common(1))
        whole = [kind in self._kinds for kind in kinds]
        there = [(tile, None) for tile in itertools.compress(own, whole)]
        missing = [tile for tile, is_there in zip(own, whole, strict=True) if not is_there]
        computed = (map_tiles or _map_here)(tile_fn, missing) if missing else ()
        for done, (tile, values) in enumerate(itertools.chain(there, computed), start=1):
            if values is not None:
                self._drop(tile)
                self._write(tile, values)
            progress = TileProgress(done, len(own), computed=values is not None)
            logger.info("tile %d of %d, %s", *progress[:2], _stem(tile), extra={"tile": progress})
        self._wait(tiles, patience_seconds)

    def read(self, tile: _Rectangle) -> np.ndarray:
        """A stored tile, bit for bit as it was computed.

        Raises:
            UserError: if it is not in the folder, or damaged.
        """
        values = self._load(tile)
        if values is None:  # another process may have written it since
            self._scan()
            values = self._load(tile)
        if values is None:
            raise checks.UserError(
                f"`store` must hold {_stem(tile)}, got none that is whole in {self.path}: fill it"
            )
        return values

    def _load(self, tile: _Rectangle) -> np.ndarray | None:
        """The tile, or None if there is none that is whole."""
        for name in self._files.get(_stem(tile), ()):
            content, named = (self.path / name).read_bytes(), _TILE.fullmatch(name)
            if named and named[3] == _digest(_stem(tile), content):
                values = _array(content)
                if values is not None and self._fits(tile, values):
                    return values
        return None

    def _fits(self, tile: _Rectangle, values: np.ndarray) -> bool:
        """Whether an array may be this tile: its rows and columns, the kind of the others."""
        lengths = tuple(span.stop - span.start for span in tile)
        return values.shape[:2] == lengths and _kind(values) in (self._kinds or [_kind(values)])

    def _drop(self, tile: _Rectangle) -> None:
        """Deletes damaged files of a tile; only the process that owns it does."""
        for name in self._files.pop(_stem(tile), ()):
            logger.warning(
                "%s is damaged (its SHA-256 or its shape is not that of its name): computed again",
                self.path / name,
            )
            (self.path / name).unlink(missing_ok=True)

    def _write(self, tile: _Rectangle, values: np.ndarray) -> None:
        checks.finite(f"theta ({_stem(tile)})", values)
        if not self._fits(tile, values):
            raise checks.UserError(
                f"`store` must hold tiles of one kind, got {values.dtype} {values.shape} for "
                f"{_stem(tile)} where others have {self._kinds}: empty {self.path} and run again"
            )
        self._kinds[:] = [_kind(values)]
        buffer = io.BytesIO()
        np.save(buffer, values, allow_pickle=False)
        name = f"{_stem(tile)}_{_digest(_stem(tile), buffer.getvalue())}.npy"
        durable.replace(self.path / name, buffer.getvalue())
        self._files[_stem(tile)] = [name]

    def _scan(self) -> None:
        """Lists the folder, once for many tiles, for it may hold many files."""
        self._files.clear()
        for file in self.path.iterdir():
            named = _TILE.fullmatch(file.name)
            if named and file.is_dir():  # which no tile can replace
                raise checks.UserError(f"`store` must hold files, got the folder {file}: remove it")
            if named and file.is_file():
                self._files.setdefault(f"tile_{named[1]}_{named[2]}", []).append(file.name)

    def _wait(self, tiles: list[_Rectangle], patience_seconds: float) -> None:
        """Returns once a file of every tile is there."""
        stems, fewest, since = {_stem(tile) for tile in tiles}, len(tiles) + 1, 0.0
        while missing := stems - self._files.keys():
            if len(missing) < fewest:
                fewest, since = len(missing), time.monotonic()
            if time.monotonic() - since > patience_seconds:
                raise TimeoutError(
                    f"{len(missing)} tiles of other processes, such as {min(missing)}, did not "
                    f"appear in {self.path} for {patience_seconds:g} s: see what stopped them and "
                    "run the same again, it resumes"
                )
            time.sleep(POLL_SECONDS)
            self._scan()


def _map_here(
    tile_fn: Callable[[Any], Array], tiles: Sequence[_Rectangle]
) -> Iterator[tuple[_Rectangle, np.ndarray]]:
    for tile in tiles:
        yield tile, np.asarray(tile_fn(tile))


def kernel_settings(
    f: ApplyFn, params: Params, x1: Any, x2: Any, **settings: Any
) -> dict[str, Any]:  # fmt: skip
    """What decides every bit of a kernel, as JSON values.

    Args:
        f: the function; it enters through its program, constants and rules of derivatives
            included, and where it is a dataclass by the names of its fields too, so that an error
            can name one.
        params: its parameters.
        x1: examples of the rows.
        x2: examples of the columns, or ``None``.
        **settings: method, block size, read-out and whatever else decides the result.

    Raises:
        UserError: if ``f`` calls back into Python, where no fingerprint can see.
    """
    traced = TracedFn.of(f, params, *(x for x in (x1, x2) if x is not None))
    if traced.callbacks:
        raise checks.UserError(
            f"`store` must be left out for a function that calls back into Python, got one with "
            f"{', '.join(traced.callbacks)}: what it computes there may change unseen"
        )
    named, function = dict(settings), cast(Any, traced.f)  # which may be more than a function
    while isinstance(function, FunctionOfSome | TracedFn):
        function = function.f
    for field in dataclasses.fields(function) if dataclasses.is_dataclass(function) else ():
        if not callable(value := getattr(function, field.name)):
            named[field.name] = value
    return {
        "version": __version__,
        "jax_version": jax.__version__,
        "platform": jax.default_backend(),
        "x64": bool(jax.config.read("jax_enable_x64")),
        "f": traced.digest,
        "params": fingerprint(params),
        "x1": fingerprint(x1),
        "x2": None if x2 is None else fingerprint(x2),
        **{name: str(value) if value is not None else None for name, value in named.items()},
    }


def _array(content: bytes) -> np.ndarray | None:
    """The numbers in a file, if it is one of NumPy's and all are finite floats."""
    try:
        values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except (ValueError, MemoryError):  # no such file, objects, a shape that lies
        return None
    return values if values.dtype.kind == "f" and np.isfinite(values).all() else None


def _kind(values: np.ndarray) -> tuple:
    """The outputs of a pair, and the type: all tiles of a kernel have the same."""
    return values.shape[2:], values.dtype


def _digest(stem: str, content: bytes) -> str:
    """SHA-256 of a tile's place and of its file, which begins with its shape and type."""
    return hashlib.sha256(f"{stem}\n".encode() + content).hexdigest()


def _stem(tile: _Rectangle) -> str:
    rows, columns = tile
    return f"tile_{rows.start}_{columns.start}"
