r"""Search: which learning rate and batch size suit a candidate.

All rates of one batch size train together, on the same batches, as one program mapped over
a leading axis r of the state (jax.vmap), compiled once.  AdamW's update is linear in the rate,
so that the rate is an input of the compiled step and not a part of it.  Each rate has its own
patience; one that diverges has an infinite loss from there on and stops no other.  A search that
was cut off goes on from its checkpoint: at the batch size under way, where its rates stood.

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
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.data.buckets import cut, row_lengths
from lensllm_jax.finetune.fine_tune import (
    FineTuneConfig,
    check_targets,
    evaluation_batches,
    resumed_settings,
)
from lensllm_jax.finetune.loop import Loop, TrainState
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.typing import Array, Batch, Params

RATES = (3e-5, 1e-4, 3e-4, 1e-3)  # per step
BATCH_SIZES = (64, 128, 256)  # examples


class SearchResult(NamedTuple):
    """The lowest validation loss of every setting."""

    rates: tuple[float, ...]  # per step
    batch_sizes: tuple[int, ...]  # examples
    losses: Float[np.ndarray, "b r"]  # nats per target token; infinite where it diverged
    best_steps: Int[np.ndarray, "b r"]  # optimiser steps to them
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


class SearchProgress(NamedTuple):
    """Where a search is."""

    share: float  # of the calls made if patience never runs out
    validation_loss: float  # nats per target token, the lowest of all settings so far
    tokens_per_second: float  # of all rates together, by this process, all included


class SearchPosition(NamedTuple):
    """Where a search stands between two calls."""

    state: TrainState  # of the batch size under way, a leading axis r
    losses: Float[np.ndarray, "b r"]  # nats per target token, lowest so far
    best_steps: Int[np.ndarray, "b r"]  # optimiser steps to them
    since_best: Int[np.ndarray, "b r"]  # evaluations since then
    row: int = 0  # of the batch size under way
    call: int = 0  # calls made with it
    num_tokens: int = 0  # trained on by all settings together

    @classmethod
    def at_start(cls, state: TrainState, num_batch_sizes: int, num_rates: int) -> "SearchPosition":
        """Before the first call.

        Args:
            state: before the first step, a leading axis r.
            num_batch_sizes: b.
            num_rates: r.

        Returns:
            The position.
        """
        none = np.zeros((num_batch_sizes, num_rates), np.int64)
        return cls(state, np.full(none.shape, np.inf), none, none)

    @property
    def arrays(self) -> tuple:
        """The state, and what is known of each setting."""
        return self[:4]

    @property
    def counts(self) -> dict[str, Any]:
        """All but the arrays."""
        return {name: getattr(self, name) for name in self._fields[4:]}

    def at(self, arrays: tuple, counts: Mapping[str, Any]) -> "SearchPosition":
        """The position of these arrays and counts.

        Args:
            arrays: as ``arrays``.
            counts: as ``counts``.

        Returns:
            The position.
        """
        return SearchPosition(*arrays, **counts)

    def evaluated(
        self, now: Float[np.ndarray, " r"], step: int, *, patience: int
    ) -> "SearchPosition":
        """The position once the validation losses of all rates are known.

        Args:
            now: nats per target token.
            step: of the optimiser.
            patience: evaluations after which a rate is judged no more, though it trains on
                with the others.

        Returns:
            The position.
        """
        row = self.row
        losses, best_steps, since_best = (array.copy() for array in self.arrays[1:])
        better = (now < losses[row]) & (since_best[row] < patience)
        losses[row][better], best_steps[row][better] = now[better], step
        since_best[row] = np.where(better, 0, since_best[row] + 1)
        return self._replace(losses=losses, best_steps=best_steps, since_best=since_best)


def search_rates(
    loop: Loop,
    params: Params,
    train: Batch,
    validation: Batch,
    *,
    rates: Sequence[float] = RATES,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    config: FineTuneConfig,
    on_progress: Callable[[SearchProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
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
        on_progress: called after each call of steps.
        checkpoint: written now and then and after each batch size; where its file is there
            already, the search goes on from it, to the same result bit for bit.  It stays, for
            the caller to discard.

    Returns:
        The lowest validation loss of each.

    Raises:
        UserError: if there is no rate or batch size, one is not positive, all diverged, there is
            no target, or the checkpoint is damaged or of another search.
    """
    if not len(rates) or not len(batch_sizes):
        raise checks.UserError(
            f"`rates` and `batch_sizes` must hold at least one, got {rates} and {batch_sizes}"
        )
    for rate in rates:
        checks.positive("rates", rate)
    for name, data in (("train", train), ("validation", validation)):
        check_targets(name, data, shift=loop.shift)
    configs = [dataclasses.replace(config, batch_size=size) for size in batch_sizes]
    together = _Together(loop, rates)
    position = SearchPosition.at_start(together.start(params), len(batch_sizes), len(rates))
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        settings = resumed_settings(loop, params, train, validation, config)
        settings |= {"learning_rate": list(rates), "batch_size": list(batch_sizes)}
        position = checkpoint.load(position, settings)
    num_calls = [one.num_calls(len(train["labels"])) for one in configs]
    started, tokens_before = time.monotonic(), position.num_tokens
    for one in configs[position.row :]:
        positions = _positions(together, position, train, validation, one)
        for position in positions:
            if checkpoint is not None:
                checkpoint.save_if_due(position, settings)
            if on_progress is not None:
                share = (sum(num_calls[: position.row]) + position.call) / sum(num_calls)
                speed = (position.num_tokens - tokens_before) / (time.monotonic() - started)
                on_progress(SearchProgress(share, float(position.losses.min()), speed))
        state, row = together.start(params), position.row + 1
        position = position._replace(state=state, row=row, call=0)
        if checkpoint is not None:
            checkpoint.save(position, settings)
    if not np.isfinite(position.losses).any():
        raise checks.UserError(f"`rates` must be lower, got {tuple(rates)}: all diverged")
    return SearchResult(
        tuple(rates), tuple(batch_sizes), position.losses, position.best_steps,
        position.num_tokens,
    )  # fmt: skip


def _positions(
    together: "_Together", position: SearchPosition, train: Batch, validation: Batch,
    config: FineTuneConfig,
) -> Iterator[SearchPosition]:  # fmt: skip
    """The position after each call that one batch size still needs."""
    lengths = row_lengths(train)
    num_calls = config.num_calls(len(lengths))
    calls_per_evaluation = config.calls_per_evaluation(len(lengths))
    batches = evaluation_batches(validation, buckets=config.buckets)
    last_step = together.loop.last_step(num_calls * config.steps_per_call)
    for call in itertools.islice(config.calls(lengths), position.call, num_calls):
        # also after a checkpoint was loaded that was written at the very end
        if (position.since_best[position.row] >= config.patience).all():
            return
        rows = {name: np.asarray(values)[call.rows] for name, values in train.items()}
        position = position._replace(
            state=together.train(position.state, cut(rows, call.length), last_step),
            call=position.call + 1,
            num_tokens=position.num_tokens
            + len(together.rates) * int(rows["attention_mask"].sum()),
        )
        if position.call % calls_per_evaluation == 0 or position.call == num_calls:
            position = position.evaluated(
                together.evaluate(position.state.params, batches),
                position.call * config.steps_per_call, patience=config.patience,
            )  # fmt: skip
        yield position


class _Together:
    """Steps of several rates in one program."""

    def __init__(self, loop: Loop, rates: Sequence[float]):
        self.loop, self.rates = loop, np.asarray(rates, np.float32)

        def train(state: TrainState, batches: Batch, rate: Array, last_step: Any) -> TrainState:
            optimizer = loop.config.optimizer(rate, last_step=last_step)
            return loop.steps(state, batches, optimizer)[0]

        self._train = jax.jit(jax.vmap(train, in_axes=(0, None, 0, None)), donate_argnums=0)
        self._evaluate = jax.jit(jax.vmap(loop.nats, in_axes=(0, None)))

    def start(self, params: Params) -> TrainState:
        """The state before the first step, once a rate."""
        one = self.loop.start(params)
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
