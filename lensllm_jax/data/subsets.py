"""Nested subsets of doubling size, the abscissa of a learning curve.

Sizes are :math:`D_i = 2^i D_0` examples with :math:`D_0 = 200`, as in Lin et al. 2024 (arXiv
2402.02314); the subset of size :math:`D_i` is the first :math:`D_i` entries of ONE random order,
so that a larger subset holds every smaller one.

The order is the argsort of raw 64-bit words of PCG64, a stream that NumPy promises never to
change.  It makes no such promise for ``Generator.permutation``, and the lock pins a NumPy per
Python.

Example:
    >>> nested_sizes(1600), subset_order(6, seed=0).tolist()
    ((200, 400, 800, 1600), [3, 2, 1, 0, 4, 5])
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.checks import UserError


def nested_sizes(largest: int, smallest: int = 200) -> tuple[int, ...]:
    """The sizes ``smallest``, twice that, four times, ... up to ``largest`` (examples).

    Raises:
        UserError: if ``largest`` is below ``smallest``, or ``smallest`` is not positive.
    """
    checks.positive("smallest", smallest)
    if largest < smallest:
        raise UserError(
            f"`largest` must be at least the smallest subset of {smallest} examples, "
            f"got {largest}, pass a smaller `smallest` or a task with more examples"
        )
    return tuple(smallest << i for i in range((largest // smallest).bit_length()))


def subset_order(num_examples: int, *, seed: int | Sequence[int]) -> Int[np.ndarray, " n"]:
    """A permutation of ``range(num_examples)``, the same everywhere; its prefixes are the subsets.

    ``seed`` is a non-negative integer, or several (such as seed and epoch).

    Raises:
        UserError: if ``num_examples`` is not positive or a seed is negative.
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
