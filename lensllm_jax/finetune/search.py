r"""Search: which learning rate and batch size suit a candidate.

All rates of one batch size train together, on the same batches, as one program mapped over
a leading axis r of the state (jax.vmap), compiled once.  AdamW's update is linear in the rate,
so that the rate is an input of the compiled step and not a part of it.  Each rate has its own
patience; one that diverges has an infinite loss from there on and stops no other.

Example:
    >>> import numpy as np, lensllm_jax as lens
    >>> from lensllm_jax.finetune.fine_tune import FineTuneConfig
    >>> from lensllm_jax.finetune.loop import Loop, OptimizerConfig
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> ids = np.random.default_rng(0).integers(5, 50, (8, 8)).astype(np.int32)
    >>> data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    >>> found = search_rates(
    ...     Loop(c.apply_fn, OptimizerConfig(learning_rate=1e-3, warmup_steps=1), shift=True),
    ...     c.params, data, data, rates=(1e-6, 1e-3), batch_sizes=(8,),
    ...     config=FineTuneConfig(max_epochs=4, steps_per_call=2))
    >>> found.learning_rate, found.batch_size
    (0.001, 8)
"""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.data.buckets import cut, row_lengths
from lensllm_jax.finetune.fine_tune import FineTuneConfig, evaluation_batches
from lensllm_jax.finetune.loop import Loop, TrainState
from lensllm_jax.typing import Array, Batch, Params

RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # per step
BATCH_SIZES = (64, 128, 256)  # examples


class SearchResult(NamedTuple):
    """The lowest validation loss of every setting."""

    rates: tuple[float, ...]  # per step
    batch_sizes: tuple[int, ...]  # examples
    losses: Float[np.ndarray, "b r"]  # nats per target token; infinite where it diverged
    best_steps: np.ndarray  # optimiser steps to them, (b, r)
    num_tokens: int  # trained on by all settings together, prompts included, padding not

    @property
    def learning_rate(self) -> float:
        """Of the lowest loss."""
        return self.rates[self._best[1]]

    @property
    def batch_size(self) -> int:
        """Of the lowest loss."""
        return self.batch_sizes[self._best[0]]

    @property
    def _best(self) -> tuple[int, ...]:
        return tuple(int(i) for i in np.unravel_index(np.argmin(self.losses), self.losses.shape))


def search_rates(
    loop: Loop,
    params: Params,
    train: Batch,
    validation: Batch,
    *,
    rates: Sequence[float] = RATES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    config: FineTuneConfig,
) -> SearchResult:
    """Trains with every rate and batch size until patience or epochs run out.

    Args:
        loop: the candidate's compiled steps; the rate of its own is not used.
        params: where to start.
        train: the subset, arrays (n, s).
        validation: what the settings are judged by, and when to stop.
        rates: learning rates after warm-up.
        batch_sizes: examples a step.
        config: when to look and when to stop; its batch size is not used.

    Returns:
        The lowest validation loss of each.

    Raises:
        UserError: if there is no rate or batch size, one is not positive, or all diverged.
    """
    if not len(rates) or not len(batch_sizes):
        raise checks.UserError(
            f"`rates` and `batch_sizes` must hold at least one, got {rates} and {batch_sizes}"
        )
    for rate in rates:
        checks.positive("rates", rate)
    rows = [
        _search_one(loop, params, train, validation, rates,
                    dataclasses.replace(config, batch_size=batch_size))
        for batch_size in batch_sizes
    ]  # fmt: skip
    losses, best_steps = (np.array([row[i] for row in rows]) for i in (0, 1))
    if not np.isfinite(losses).any():
        raise checks.UserError(f"`rates` must be lower, got {tuple(rates)}: all diverged")
    num_tokens = sum(row[2] for row in rows)
    return SearchResult(tuple(rates), tuple(batch_sizes), losses, best_steps, num_tokens)


def _search_one(
    loop: Loop, params: Params, train: Batch, validation: Batch, rates: Sequence[float],
    config: FineTuneConfig,
) -> tuple[np.ndarray, np.ndarray, int]:  # fmt: skip
    """Lowest loss and its step for each rate, at one batch size; tokens that all trained on."""
    lengths = row_lengths(train)
    num_calls = config.num_calls(len(lengths))
    calls_per_evaluation = config.calls_per_evaluation(len(lengths))
    batches = evaluation_batches(validation, buckets=config.buckets)
    together = _Together(loop, rates)
    last_step = loop.last_step(num_calls * config.steps_per_call)
    state = together.start(params)
    losses, best_steps = np.full(len(rates), np.inf), np.zeros(len(rates), int)
    since_best, num_tokens = np.zeros(len(rates), int), 0
    calls = itertools.islice(config.calls(lengths), num_calls)
    for number, call in enumerate(calls, start=1):
        rows = {name: np.asarray(values)[call.rows] for name, values in train.items()}
        state = together.train(state, cut(rows, call.length), last_step)
        num_tokens += len(rates) * int(rows["attention_mask"].sum())
        if number % calls_per_evaluation and number < num_calls:
            continue
        now = together.evaluate(state.params, batches)
        # a rate whose patience has run out is trained on with the others, but judged no more
        better = (now < losses) & (since_best < config.patience)
        losses[better], best_steps[better] = now[better], number * config.steps_per_call
        since_best = np.where(better, 0, since_best + 1)
        if (since_best >= config.patience).all():
            break
    return losses, best_steps, num_tokens


class _Together:
    """Steps of several rates in one program."""

    def __init__(self, loop: Loop, rates: Sequence[float]):
        self.rates = np.asarray(rates, np.float32)
        self._start = loop.start

        def train(state: TrainState, batches: Batch, rate: Array, last_step: Any) -> TrainState:
            optimizer = loop.config.optimizer(rate, last_step=last_step)
            return loop.steps(state, batches, optimizer)[0]

        self._train = jax.jit(jax.vmap(train, in_axes=(0, None, 0, None)), donate_argnums=0)
        self._evaluate = jax.jit(jax.vmap(loop.nats, in_axes=(0, None)))

    def start(self, params: Params) -> TrainState:
        """The state before the first step, once a rate."""
        one = self._start(params)
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.rates)), one)

    def train(self, state: TrainState, batches: Batch, last_step: np.int32 | None) -> TrainState:
        """The state after a call's steps."""
        return self._train(state, dict(batches), self.rates, last_step)

    def evaluate(self, params: Params, batches: Sequence[Batch]) -> Float[np.ndarray, " r"]:
        """Nats per target token of every rate, infinite where they are not finite."""
        sums = [self._evaluate(params, dict(batch)) for batch in batches]
        nats = sum(np.asarray(s.nats, np.float64) for s in sums)
        count = sum(np.asarray(s.num_targets) for s in sums)
        return np.where(np.isfinite(nats), nats / count, np.inf)
