r"""Objective: the loss of a language model on its target tokens.

For one example with logits :math:`z \in R^{s \times v}` and labels :math:`c \in N^s`
(-100 where a token is no target),

.. math:: \ell = \sum_{i : c_i \ge 0} \big( \log \sum_j e^{z_{ij}} - z_{i c_i} \big)
   \quad \text{nats.}

Training reports the sum of a batch and its number of target tokens: sums add up to the same
total however a batch is split, means do not.  Evaluation keeps the nats of each record, those of
the target text apart from those of its end token.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from lensllm_jax.language_modelling import target_logprobs
from lensllm_jax.typing import IGNORE, ApplyFn, Array, Batch, Params


class NatsAndCount(NamedTuple):
    """A summed loss and what to divide it by."""

    nats: Float[Array, ""]  # summed over target tokens
    num_targets: Int[Array, ""]  # target tokens


class RecordNats(NamedTuple):
    """Summed losses of each record."""

    text: Float[Array, " b"]  # nats of the tokens of its target text
    end: Float[Array, " b"]  # nats of its end token; 0 where there is none


def nats_and_count(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> NatsAndCount:
    """Summed cross entropy of one example, and its number of target tokens (label not -100).

    ``shift``: whether logits predict the next position's label (causal models) or their own
    position's (encoder-decoders).
    """
    logprobs, is_target = target_logprobs(logits, labels, shift=shift)
    return NatsAndCount(-jnp.sum(logprobs), jnp.sum(is_target))


def num_targets(labels: Int[Array, "b s"], *, shift: bool) -> Int[Array, ""]:
    """Number of target tokens of a batch; ``shift`` as in ``nats_and_count``."""
    return jnp.sum((labels[:, 1:] if shift else labels) != IGNORE)


def batch_nats_and_count(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, shift: bool
) -> NatsAndCount:
    """Summed cross entropy of a batch, and its number of target tokens."""
    logits = apply_fn(params, batch)
    each = jax.vmap(lambda z, c: nats_and_count(z, c, shift=shift))(logits, batch["labels"])
    return NatsAndCount(jnp.sum(each.nats), jnp.sum(each.num_targets))


def record_nats(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], is_end: Bool[Array, " s"], *, shift: bool
) -> RecordNats:
    """Losses of one record (without the axis b); ``is_end`` where the label is its end token."""
    logprobs, _ = target_logprobs(logits, labels, shift=shift)
    is_end = is_end[1:] if shift else is_end
    return RecordNats(
        text=-jnp.sum(jnp.where(is_end, 0.0, logprobs)),
        end=-jnp.sum(jnp.where(is_end, logprobs, 0.0)),
    )


def batch_record_nats(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, shift: bool
) -> RecordNats:
    """Losses of each record of a batch, which holds ``is_end`` (b, s) as well."""
    logits = apply_fn(params, batch)
    each = jax.vmap(lambda z, c, end: record_nats(z, c, end, shift=shift))
    return each(logits, batch["labels"], batch["is_end"])
