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
import hashlib
import io
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from lensllm_jax import __version__, checks, durable

RUN = "run.json"
RECORDED_PACKAGES = ("jax", "jaxlib", "flax", "optax", "neural-tangents", "transformers", "numpy")


@dataclasses.dataclass(frozen=True)
class RunFolder:
    """An output folder that belongs to one run.

    Attributes:
        path: where it is.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path, settings: Mapping[str, Any], **notes: Any) -> "RunFolder":
        """Opens a new folder, or one of the same settings.

        Args:
            path: where it is or will be.
            settings: JSON values that decide all results.
            **notes: further JSON values for a reader of ``run.json``.

        Raises:
            UserError: if the path is a file, or holds another run or other files.
        """
        about = {"command": command(), **versions(), **notes}
        return cls(durable.open_folder("output_dir", path, settings, record=RUN, notes=about))

    def remember(self, name: str, compute: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """The finished piece ``name`` (.json), computed now if the folder lacks it."""
        if not self.has(name):
            self.write_json(name, compute())
        return self.read_json(name)

    def read_json(self, name: str) -> dict[str, Any]:
        """A finished piece."""
        return json.loads((self.path / name).read_text())

    def has(self, name: str) -> bool:
        """Whether the piece is finished."""
        return (self.path / name).exists()

    def write_json(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a piece; NaN and infinity are refused, JSON has none."""
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
        writer.writerows(rows)
        self.write_text(name, text.getvalue())

    def write_array(self, name: str, array: np.ndarray) -> None:
        """Writes a .npy file."""
        buffer = io.BytesIO()
        np.save(buffer, array, allow_pickle=False)
        self.write_bytes(name, buffer.getvalue())

    def write_bytes(self, name: str, content: bytes) -> None:
        """Writes a file that appears whole or not at all, even if the machine stops."""
        durable.replace(self.path / name, content)


def read_rows(path: str | Path) -> list[dict[str, str]]:
    """The rows of a table (CSV).

    Raises:
        UserError: if there is no such file.
    """
    try:
        with open(path, encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
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
    return " ".join([f"python -m experiments.{name}", *sys.argv[1:]])


def versions() -> dict[str, Any]:
    """Versions of this package, of Python and of the packages that compute."""

    def version(package: str) -> str | None:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return None

    packages = {package: version(package) for package in RECORDED_PACKAGES}
    return {"lensllm_jax": __version__, "python": sys.version.split()[0], "packages": packages}
