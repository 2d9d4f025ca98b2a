"""Padding to a static block: examples in blocks of one size, so that one compilation serves all.

The last block is filled up with the last example; what is computed of the repeats is cut off, which
is exact wherever examples are independent of each other.

Example:
    >>> import numpy as np
    >>> from lensllm_jax import padding
    >>> padding.pad(np.arange(3), 4)
    array([0, 1, 2, 2])
    >>> padding.map_blocks(lambda x: 10 * x, np.arange(3), 2)  # calls of two examples each
    array([ 0, 10, 20])
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Shaped

from lensllm_jax.typing import Array


def num_examples(x: Any) -> int:
    """The length of the leading axis of a pytree's first array."""
    return jax.tree.leaves(x)[0].shape[0]


def take(x: Any, start: int, size: int) -> Any:
    """``size`` examples of a pytree from ``start`` on, the last one repeated beyond the end."""
    return take_rows(x, np.arange(start, start + size))


def pad(x: Any, size: int) -> Any:
    """A pytree of ``size`` examples, the last one repeated; ``x`` itself where it has as many."""
    return x if num_examples(x) == size else take(x, 0, size)


def stack_blocks(x: Any, size: int) -> Any:
    """A pytree of blocks, every leaf (blocks, size, ...)."""
    num_blocks = -(-num_examples(x) // size)
    return take_rows(x, np.arange(num_blocks * size).reshape(num_blocks, size))


def map_blocks(f: Callable[[Any], Array], x: Any, size: int) -> Shaped[np.ndarray, "n ..."]:
    """``f`` of all examples, ``size`` of them per call.

    Args:
        f: from ``size`` examples to an array with one row per example.
        x: pytree with a leading axis of n examples.
        size: examples per call.
    """
    n = num_examples(x)
    blocks = [np.asarray(f(take(x, start, size))) for start in range(0, n, size)]
    return np.concatenate(blocks)[:n]


def take_rows(x: Any, index: Any) -> Any:
    """The examples of a pytree at some positions; beyond the end, the last one."""
    index = np.minimum(index, num_examples(x) - 1)
    return jax.tree.map(lambda leaf: leaf[index], x)
