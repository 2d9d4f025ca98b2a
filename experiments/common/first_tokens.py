"""Which tokens' logits a kernel reads: those that targets begin with."""

from collections import Counter

import numpy as np

from lensllm_jax.typing import IGNORE, Batch


def common_first_tokens(batch: Batch, count: int, *, shift: bool) -> tuple[int, ...]:
    """The most common first target tokens of a batch, the most common first, ties by token.

    ``shift``: whether the logits at a position predict the next label.

    Example:
        >>> labels = np.array([[-100, 7], [-100, 7], [-100, 5], [-100, 9]])
        >>> common_first_tokens({"labels": labels}, 2, shift=True)
        (7, 5)
    """
    labels = np.asarray(batch["labels"])[:, int(shift) :]
    first = labels[np.arange(len(labels)), np.argmax(labels != IGNORE, axis=1)]
    counts = Counter(int(token) for token in first)
    return tuple(sorted(counts, key=lambda token: (-counts[token], token))[:count])
