"""Run folder: what a run has finished so far, safe against being killed at any moment.

A folder belongs to one set of settings, written to ``run.json`` before anything else.  Each
finished piece is one file that appears whole or not at all; the next run with the same
settings reads it and computes only what is missing.

Example:
    >>> import tempfile
    >>> folder = RunFolder.open(tempfile.mkdtemp(), {"seed": 0})
    >>> folder.remember("cells/a.json", lambda: {"loss": 1.5})["loss"]
    1.5
    >>> folder.remember("cells/a.json", lambda: 1 / 0)["loss"]  # not computed again
    1.5
"""

import csv
import dataclasses
import fcntl
import functools
import hashlib
import io
import json
import os
import re
import shlex
import sys
import weakref
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from lensllm_jax import checks, durable
from lensllm_jax._version import __version__
from lensllm_jax.delimited import as_written, neutral
from lensllm_jax.runs import terminal

RUN = "run.json"
_DIGEST = "digest"  # of the rest of a piece
# Names in which "/" becomes "--" and no other name does, nor one on a disk that ignores case; not
# those that Windows keeps for devices, or strips of the dot at their end.
_PART = r"[a-z0-9_][a-z0-9_.]*(-[a-z0-9_.]+)*"
_DEVICE = r"(con|prn|aux|nul|com\d|lpt\d)(\.|$)"
_PLAIN = re.compile(rf"(?!{_DEVICE}){_PART}(/{_PART})*(?<!\.)")
_LONGEST_NAME = 128  # characters; file systems allow 255 bytes
RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "neural-tangents", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An output folder that belongs to one run.

    Attributes:
        path: where it is.
    """

    path: Path
    _lock: "_Lock | None" = dataclasses.field(default=None, repr=False, compare=False)

    @classmethod
    def open(
        cls, path: str | Path, settings: Mapping[str, Any], *, shared: bool = False,
        growing: Sequence[str] = (), **notes: Any,
    ) -> "RunFolder":  # fmt: skip
        """Opens a new folder, or one of the same settings, for this process alone.

        Args:
            path: where it is or will be.
            settings: JSON values that decide all results.
            shared: for all processes that open it so.
            growing: lists and dictionaries of the settings that may gain entries; ``run.json`` is
                then written anew.
            **notes: further JSON values for a reader of ``run.json``.

        Raises:
            UserError: if the path is a file, holds another run or other files, or another process
                has it open.
        """
        about = {"command": command(), **versions(), **notes}
        folder = durable.open_folder(
            "output_dir", path, settings, record=RUN, notes=about, growing=growing
        )
        run = cls(folder, _Lock.of(folder, shared=shared))
        if run._lock is not None and not shared:
            durable.remove_all_partials(folder)
        if growing:
            run._grow(settings, about)
        return run

    def _grow(self, settings: Mapping[str, Any], notes: Mapping[str, Any]) -> None:
        """Writes settings that have grown, and the lock moves to the new file."""
        before = durable.json_bytes(self.read_json(RUN)["settings"])
        if durable.json_bytes(settings) != before:
            self.write_json(RUN, {"settings": settings, **notes})
            if self._lock is not None:
                self._lock.move(self.path)

    def remember(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The finished piece ``name`` (.json), computed now if the folder lacks it."""
        if not self.has(name):
            self.write_piece(name, compute())
        return self.read_piece(name)

    def read_piece(self, name: str) -> dict[str, Any]:
        """A finished piece."""
        if (piece := self._piece(name)) is None:
            raise checks.UserError(
                f"`output_dir` must hold a whole {name}, got none in {self.path}: "
                "run the same command again"
            )
        return piece

    def has(self, name: str) -> bool:
        """Whether the piece is finished; a damaged one is named on stderr."""
        there = self._piece(name) is not None
        if not there and (self.path / name).exists():
            terminal.warn(f"{self.path / name} is damaged: it is made again")
            (self.path / name).unlink()
        return there

    def _piece(self, name: str) -> dict[str, Any] | None:
        """Its content, or None where there is none whose digest is right."""
        try:
            piece = json.loads((self.path / name).read_bytes())
            whole = piece.pop(_DIGEST) == _digest_of(piece)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None
        return piece if whole else None

    def write_piece(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a piece, with a digest; NaN and infinity are refused, JSON has none."""
        self.write_json(name, {**content, _DIGEST: _digest_of(content)})

    def read_json(self, name: str) -> dict[str, Any]:
        """A file of JSON."""
        return json.loads((self.path / name).read_bytes())

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file of JSON; NaN and infinity are refused, JSON has none."""
        self.write_bytes(name, durable.json_bytes(content))

    def write_text(self, name: str, text: str) -> None:
        """Writes a text file."""
        self.write_bytes(name, text.encode())

    def write_rows(self, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Writes a table (CSV); without rows there is none, not even that of an earlier run."""
        if not rows:
            (self.path / name).unlink(missing_ok=True)
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, rows[0].keys(), lineterminator="\n")
        writer.writeheader()
        writer.writerows(
            {k: neutral(v) if isinstance(v, str) else v for k, v in row.items()} for row in rows
        )
        self.write_text(name, text.getvalue())

    def write_array(self, name: str, array: np.ndarray) -> str:
        """Writes a .npy file; returns its SHA-256."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write_bytes(name, buffer.getvalue())
        return hashlib.sha256(buffer.getvalue()).hexdigest()

    def has_array(self, name: str, piece: str) -> bool:
        """Whether a .npy file is the one whose SHA-256 stands in a piece, as ``npy_sha256``."""
        if not self.has(piece):
            return False
        whole = self.path / name
        if whole.exists() and sha256_of(whole) == self.read_piece(piece).get("npy_sha256"):
            return True
        terminal.warn(f"{whole} is missing or damaged: it is made again")
        return False

    def read_array(self, name: str) -> np.ndarray:
        """A .npy file."""
        return np.load(self.path / name, allow_pickle=False)

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all, even if the machine stops."""
        durable.replace(self.path / name, content)


def file_name_of(name: str) -> str:
    """A file name for a candidate or a task, another one for every other name.

    Plain names stay legible; all others, such as one that holds ``--``, capitals or is ``..``, end
    in a digest, which begins with a character that the plain ones lack.

    Example:
        >>> file_name_of("zoo/gpt2-xs"), file_name_of("x--y")
        ('zoo--gpt2-xs', 'x--y~6484a281af1cc95b')
    """
    slug = name.replace("/", "--")
    if len(slug) <= _LONGEST_NAME and _PLAIN.fullmatch(name):
        return slug
    digest = hashlib.sha256(name.encode(errors="surrogatepass")).hexdigest()[:16]
    return f"{re.sub('[^A-Za-z0-9_.-]', '-', slug)[-_LONGEST_NAME // 2 :].lstrip('-.')}~{digest}"


def _digest_of(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(durable.json_bytes(content)).hexdigest()


class _Lock:
    """The record of a folder, locked against other processes while this object lives."""

    held: ClassVar["weakref.WeakValueDictionary[str, _Lock]"] = weakref.WeakValueDictionary()

    def __init__(self, record: Path):
        self._opened = os.open(record, os.O_RDWR)

    def __del__(self) -> None:
        os.close(self._opened)

    @classmethod
    def of(cls, folder: Path, *, shared: bool) -> "_Lock | None":
        """The lock of a folder, that of this process if it has one; None without such locks.

        Raises:
            UserError: if another process holds it.
        """
        key = os.path.realpath(folder)
        if (held := cls.held.get(key)) is not None:
            return held
        lock = cls(folder / RUN)
        try:
            lock.take(folder, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
        except OSError:
            return None
        cls.held[key] = lock
        return lock

    def move(self, folder: Path) -> None:
        """From a record, locked for one process, to the one that took its place."""
        fresh = _Lock(folder / RUN)
        fresh.take(folder, fcntl.LOCK_EX)
        os.dup2(fresh._opened, self._opened)

    def take(self, folder: Path, kind: int) -> None:
        """Locks the record, as long as the file is open.

        Raises:
            UserError: if another process holds it.
            OSError: if there are no such locks.
        """
        try:
            fcntl.flock(self._opened, fcntl.LOCK_NB | kind)
            is_it = os.path.samestat(os.fstat(self._opened), os.stat(folder / RUN))
        except BlockingIOError:
            is_it = False
        if not is_it:  # or its holder has put another record in its place meanwhile
            raise checks.UserError(
                f"`output_dir` must belong to one process at a time, got {folder}, which another "
                "one has open: wait until it ends, or name another folder"
            )


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table (CSV).

    Raises:
        UserError: if there is no such file.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return [
                {k: as_written(v) if isinstance(v, str) else v for k, v in row.items()}
                for row in csv.DictReader(file)
            ]
    except FileNotFoundError:
        raise checks.UserError(f"`tables` must hold {Path(path).name}, got no {path}") from None


def sha256_of(path: str | Path) -> str:
    """Digest of a file that results were read from, for the settings of their run."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def known(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table with an empty cell in place of NaN."""
    return {k: "" if isinstance(v, float) and np.isnan(v) else v for k, v in row.items()}


def command() -> str:
    """The command line that started this process, as it can be pasted."""
    name = Path(sys.argv[0]).stem
    return " ".join([f"python -m experiments.{name}", *map(shlex.quote, sys.argv[1:])])


def versions() -> dict[str, Any]:
    """Versions of this package, of Python and of the packages that compute."""
    packages = {package: _version_of(package) for package in RECORDED_PACKAGES}
    return {"lensllm_jax": __version__, "python": sys.version.split()[0], "packages": packages}


@functools.cache  # it reads the package's files
def _version_of(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
