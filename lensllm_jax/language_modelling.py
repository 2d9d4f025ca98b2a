r"""The log-probability that a language model gives to each target token.

.. math:: \log p_i = z_{i c_i} - \log \sum_j e^{z_{ij}} \quad \text{nats}

for logits :math:`z \in R^{s \times v}` and labels :math:`c \in N^s`, ``IGNORE`` where a token
is no target.  Fine-tuning descends its negative and the kernel's read-outs are of it, so that both
mean the same tokens.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.language_modelling import target_logprobs
    >>> logits, labels = jnp.zeros((3, 4)), jnp.array([-100, 2, 1])
    >>> logprobs, is_target = target_logprobs(logits, labels, shift=True)
    >>> logprobs.round(4).tolist(), is_target.tolist()  # two targets, each -log 4
    ([-1.3863, -1.3863], [True, True])
"""

import math

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from lensllm_jax.typing import IGNORE, Array

LOSS_UNIT = "nats per byte"  # of target text, UTF-8: of every loss by which candidates are compared
BITS_PER_NAT = 1 / math.log(2)


def align(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> tuple[Float[Array, "t v"], Int[Array, " t"]]:
    """Logits with the labels that they predict: of the next position if ``shift``."""
    return (logits[:-1], labels[1:]) if shift else (logits, labels)


def target_logprobs(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> tuple[Float[Array, " t"], Bool[Array, " t"]]:
    """Log-probability of each target token of one example.

    Args:
        logits: one example's logits.
        labels: its labels, ``IGNORE`` where there is no target.
        shift: whether logits at a position predict the next position's label (causal models)
            or their own (encoder-decoders).

    Returns:
        Nats per position, in float32 at least and zero where there is no target; and where
        there is one.
    """
    logits, labels = align(logits, labels, shift=shift)
    is_target = labels != IGNORE
    token = jnp.where(is_target, labels, 0)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=1)[:, 0]
    # without an array of log-probabilities, which would be as large as the logits
    total = jax.nn.logsumexp(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)), axis=1)
    return jnp.where(is_target, chosen - total, 0.0), is_target
