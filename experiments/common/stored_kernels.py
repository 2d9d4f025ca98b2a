"""Kernels that a run folder keeps: a .npy file, and a piece with its digest and the residual."""

from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.runs.run_folder import RunFolder


def has_kernel(folder: RunFolder, stem: str) -> bool:
    """Whether the kernel of this name is there, whole."""
    return folder.has_array(f"{stem}.npy", f"{stem}.json")


def write_kernel(folder: RunFolder, stem: str, kernel: CandidateNtk, **beside: Any) -> None:
    """Keeps a kernel and its residual, and JSON values beside them."""
    digest = folder.write_array(f"{stem}.npy", kernel.theta)
    residual = np.asarray(kernel.residual).tolist()
    folder.write_piece(f"{stem}.json", {"npy_sha256": digest, "residual": residual, **beside})


def read_kernel(
    folder: RunFolder, stem: str
) -> tuple[
    Float[np.ndarray, "n n"] | Float[np.ndarray, "n n k k"],
    Float[np.ndarray, " n"] | Float[np.ndarray, "n k"],
]:
    """A kernel and its residual."""
    theta = np.load(folder.path / f"{stem}.npy", allow_pickle=False)
    return theta, np.array(folder.read_piece(f"{stem}.json")["residual"])
