"""Fingerprint: SHA-256 of a pytree of arrays, by which stored work is matched with its inputs.

Example:
    >>> import numpy as np
    >>> fingerprint({"w": np.zeros(2)}) == fingerprint({"w": np.zeros(2)})
    True
    >>> fingerprint({"w": np.zeros(2)}) == fingerprint({"w": np.zeros((2, 1))})
    False
"""

import hashlib
from typing import Any

import jax
import numpy as np


def named_arrays(tree: Any) -> dict[str, np.ndarray]:
    """The leaves of a pytree on the host, by path, in the order of ``jax.tree.leaves``."""
    leaves = jax.tree.leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _on_host(leaf) for path, leaf in leaves}


def _on_host(leaf: Any) -> np.ndarray:
    """The numbers of an array; of random keys, which NumPy does not know, those that they hold."""
    dtype = getattr(leaf, "dtype", None)
    is_key = dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key)
    return np.asarray(jax.random.key_data(leaf) if is_key else leaf)


def fingerprint(tree: Any) -> str:
    """64 hexadecimal digits: SHA-256 over path, type, shape and bytes of every leaf."""
    digest = hashlib.sha256()
    for path, array in named_arrays(tree).items():
        digest.update(f"{path} {array.dtype} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()
