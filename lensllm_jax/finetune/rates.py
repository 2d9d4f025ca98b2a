r"""Rates: which learning rate suits a candidate, from a few fine-tunes on a ladder of rates.

The validation loss has one valley along the rate.  The search starts from the rung that the number
of parameters N suggests, :math:`10^{-3} \sqrt{10^6 / N}`, and walks downhill until both
neighbours are higher: three or four fine-tunes, one at a time, in the memory of one.

Example:
    >>> found = downhill(lambda rate: (rate - 3e-4) ** 2, LADDER, start=first_rung(6e5))
    >>> min(found, key=found.get), sorted(found)
    (0.0003, [0.0001, 0.0003, 0.001])
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

from lensllm_jax import checks

AUTO = "auto"  # in place of a rate: search it
LADDER = (1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3)
LORA_LADDER = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2)  # low-rank updates want larger steps


class Trial(NamedTuple):
    """A fine-tune of the search."""

    learning_rate: float
    validation_loss: float  # nats per byte; infinite where it diverged
    num_tokens: int  # trained on


def first_rung(num_params: float | int) -> int:
    """Index of the rung nearest to the rate that the number of parameters suggests."""
    suggested = math.log(1e-3 * math.sqrt(1e6 / num_params))
    return min(range(len(LADDER)), key=lambda i: abs(math.log(LADDER[i]) - suggested))


def downhill(
    loss_of: Callable[[float], float], rates: Sequence[float], *, start: int
) -> dict[float, float]:
    """The loss of each rate that was tried; the lowest has tried neighbours.

    Args:
        loss_of: the loss of a rate; infinite where it diverged.
        rates: ascending.
        start: index of the first.

    Raises:
        UserError: if all that were tried diverged.
    """
    losses, best = {start: loss_of(rates[start])}, start
    while True:
        near = [i for i in (best - 1, best + 1) if 0 <= i < len(rates) and i not in losses]
        if not near:
            break
        losses[near[0]] = loss_of(rates[near[0]])
        if losses[near[0]] < losses[best] or not math.isfinite(losses[best]):
            best = near[0]
    if not math.isfinite(losses[best]):
        raise checks.UserError(
            f"`learning_rate` must be lower than {rates[0]}, got {AUTO}: all diverged"
        )
    return {rates[i]: loss for i, loss in losses.items()}
