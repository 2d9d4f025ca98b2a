r"""Nested subsets of doubling size, the abscissa of a learning curve.

Sizes are :math:`D_i = 2^i D_0` examples with :math:`D_0 = 200`, as in Lin et al. 2024 (arXiv
2402.02314), and the subset of size :math:`D_i` is the first :math:`D_i` entries of ONE random
order: a larger subset then holds every smaller one, so two points of a curve differ by the
examples added and by nothing else.

The order is the argsort of raw 64-bit words of PCG64.  NumPy promises that a bit generator's
raw stream never changes, and makes no such promise for ``Generator.permutation``; the lock
pins different NumPy versions for different Pythons, so the promise is needed.

Example:
    >>> nested_sizes(1600)
    (200, 400, 800, 1600)
    >>> subset_order(10, seed=0)[:3].tolist() == subset_order(10, seed=0)[:5].tolist()[:3]
    True
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.checks import UserError


def nested_sizes(largest: int, smallest: int = 200) -> tuple[int, ...]:
    """The sizes ``smallest``, twice that, four times, ... up to ``largest``.

    Args:
        largest: no size is above it (examples).
        smallest: the first size (examples).

    Returns:
        At least one size, doubling.

    Raises:
        UserError: if ``largest`` holds not even the smallest subset, or ``smallest`` is not
            positive.

    Example:
        >>> nested_sizes(1000, smallest=300)
        (300, 600)
    """
    checks.positive("smallest", smallest)
    if largest < smallest:
        raise UserError(
            f"`largest` must be at least the smallest subset of {smallest} examples, "
            f"got {largest}, pass a smaller `smallest` or a task with more examples"
        )
    return tuple(smallest << i for i in range((largest // smallest).bit_length()))


def subset_order(num_examples: int, *, seed: int | Sequence[int]) -> Int[np.ndarray, " n"]:
    """The order whose prefixes are the nested subsets of ``num_examples`` examples.

    Args:
        num_examples: how many examples there are to choose from.
        seed: a non-negative integer, or several (such as seed and epoch).

    Returns:
        A permutation of ``0 .. num_examples - 1``, the same on every machine.

    Raises:
        UserError: if ``num_examples`` is not positive or a seed is negative.

    Example:
        >>> subset_order(6, seed=0).tolist()
        [3, 2, 1, 0, 4, 5]
    """
    checks.positive("num_examples", num_examples)
    if np.min(seed) < 0:
        raise UserError(f"`seed` must be non-negative, got {seed}")
    first, *others = np.atleast_1d(seed).tolist()
    # As one list of entropy, NumPy takes 0 and (0, 0) for the same seed; a spawn key it does not.
    entropy = np.random.SeedSequence(first, spawn_key=tuple(others))
    words = np.random.PCG64(entropy).random_raw(num_examples)
    # Stable, so that even two equal words (chance n^2 / 2^65) leave one possible order.
    return np.argsort(words, kind="stable")
