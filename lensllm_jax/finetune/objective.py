r"""Objective: the loss of a language model on its target tokens.

For one example with logits :math:`z \in R^{s \times v}` and labels :math:`c \in N^s`
(-100 where a token is no target),

.. math:: \ell = \sum_{i : c_i \ge 0} \big( \log \sum_j e^{z_{ij}} - z_{i c_i} \big)
   \quad \text{nats.}

Batches report the sum and the number of target tokens, never a mean: sums add up to the
same total however a batch is split, means do not.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.finetune.objective import nats_and_count
    >>> nats, count = nats_and_count(jnp.zeros((3, 4)), jnp.array([-100, 2, 1]), shift=True)
    >>> round(float(nats), 4), int(count)  # two targets, each log 4
    (2.7726, 2)
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from lensllm_jax.language_modelling import target_logprobs
from lensllm_jax.typing import IGNORE, ApplyFn, Array, Batch, Params


class NatsAndCount(NamedTuple):
    """A summed loss and what to divide it by."""

    nats: Float[Array, ""]  # summed over target tokens
    num_targets: Int[Array, ""]  # target tokens


def nats_and_count(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> NatsAndCount:
    """Summed cross entropy of one example.

    Args:
        logits: one row a position.
        labels: target ids, -100 where there is none.
        shift: whether logits at a position predict the next position's label (causal
            models) or their own (encoder-decoders).

    Returns:
        Nats and number of target tokens.
    """
    logprobs, is_target = target_logprobs(logits, labels, shift=shift)
    return NatsAndCount(-jnp.sum(logprobs), jnp.sum(is_target))


def num_targets(labels: Int[Array, "b s"], *, shift: bool) -> Int[Array, ""]:
    """Number of target tokens of a batch, without a pass through the model.

    Args:
        labels: target ids, -100 where there is none.
        shift: see ``nats_and_count``.

    Returns:
        How many.
    """
    return jnp.sum((labels[:, 1:] if shift else labels) != IGNORE)


def batch_nats_and_count(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, shift: bool
) -> NatsAndCount:
    """Summed cross entropy of a batch.

    Args:
        apply_fn: ``(params, batch) -> logits (b, s, v)``.
        params: the parameters.
        batch: what ``apply_fn`` needs, and ``labels`` (b, s).
        shift: see ``nats_and_count``.

    Returns:
        Nats and number of target tokens.
    """
    logits = apply_fn(params, batch)
    each = jax.vmap(lambda z, c: nats_and_count(z, c, shift=shift))(logits, batch["labels"])
    return NatsAndCount(jnp.sum(each.nats), jnp.sum(each.num_targets))
