r"""Objective: the loss of a language model on its target tokens.

For one example with logits :math:`z \in R^{s \times v}` and labels :math:`c \in N^s`
(-100 where a token is no target),

.. math:: \ell = \sum_{i : c_i \ge 0} \big( \log \sum_j e^{z_{ij}} - z_{i c_i} \big)
   \quad \text{nats.}

Training reports the sum of a batch and its number of target tokens: sums add up to the same
total however a batch is split, means do not.  Evaluation keeps the nats of each record, those of
the target text apart from those of its end token.

A head of 50,000 tokens is a fifth of the operations of a model of 135 million parameters, and most
positions are prompt or padding: logits may be computed where there is a target, and nowhere else.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
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


def num_tokens(batch: Batch) -> int:
    """Tokens that a model is trained on, prompts included, padding not.

    An encoder-decoder reads some and predicts others; a token meets the weights of one side.
    """
    count = np.count_nonzero(batch["attention_mask"])
    if "decoder_input_ids" in batch:
        count += np.count_nonzero(np.asarray(batch["labels"]) != IGNORE)
    return int(count)


def batch_nats_and_count(
    apply_fn: ApplyFn, params: Params, batch: Batch, *, shift: bool, num_logits: int | None = None
) -> NatsAndCount:
    """Summed cross entropy of a batch, and its number of target tokens.

    Args:
        apply_fn: ``(params, batch) -> logits``.
        params: its parameters.
        batch: arrays (b, s).
        shift: as in ``nats_and_count``.
        num_logits: computed at the positions with a target, of which the batch must not have
            more.  None computes those of every position.
    """
    if num_logits is None:
        logits = apply_fn(params, batch)
        each = jax.vmap(lambda z, c: nats_and_count(z, c, shift=shift))(logits, batch["labels"])
        return NatsAndCount(jnp.sum(each.nats), jnp.sum(each.num_targets))
    targets = _targets_of(batch["labels"], num_logits, shift=shift)
    logits = _logits_at(targets.positions, apply_fn, params, batch)
    return nats_and_count(logits, targets.labels, shift=False)


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
    apply_fn: ApplyFn, params: Params, batch: Batch, *, shift: bool, num_logits: int | None = None
) -> RecordNats:
    """Losses of each record of a batch, which holds ``is_end`` (b, s) as well.

    Arguments as those of ``batch_nats_and_count``.
    """
    labels, is_end = batch["labels"], batch["is_end"]
    if num_logits is None:
        logits = apply_fn(params, batch)
        each = jax.vmap(lambda z, c, end: record_nats(z, c, end, shift=shift))
        return each(logits, labels, is_end)
    targets = _targets_of(labels, num_logits, shift=shift)
    logits = _logits_at(targets.positions, apply_fn, params, batch)
    logprobs, _ = target_logprobs(logits, targets.labels, shift=False)
    at_end = is_end.reshape(-1)[targets.positions + int(shift)]
    record = targets.positions // labels.shape[1]
    text, end = (
        jax.ops.segment_sum(-jnp.where(chosen, logprobs, 0.0), record, num_segments=len(labels))
        for chosen in (~at_end, at_end)
    )
    return RecordNats(text, end)


def _logits_at(
    positions: Int[Array, " m"], apply_fn: ApplyFn, params: Params, batch: Batch
) -> Float[Array, "m v"]:
    """Logits at these positions; they are picked from all where ``apply_fn`` computes them all."""
    logits = apply_fn(params, {**batch, "logits_to_keep": positions})
    return logits if logits.ndim == 2 else logits.reshape(-1, logits.shape[-1])[positions]


class _Targets(NamedTuple):
    """The positions of a batch with a target, row after row; the rest repeats position 0."""

    positions: Int[Array, " m"]  # of the logits
    labels: Int[Array, " m"]  # IGNORE behind the last target


def _targets_of(labels: Int[Array, "b s"], size: int, *, shift: bool) -> _Targets:
    if shift:
        labels = jnp.pad(labels[:, 1:], ((0, 0), (0, 1)), constant_values=IGNORE)
    flat = labels.reshape(-1)
    (positions,) = jnp.nonzero(flat != IGNORE, size=size, fill_value=0)
    is_target = jnp.arange(size) < jnp.sum(flat != IGNORE)
    return _Targets(positions, jnp.where(is_target, flat[positions], IGNORE))
