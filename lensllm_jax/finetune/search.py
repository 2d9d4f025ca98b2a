"""Search: which learning rate and batch size suit a candidate.

All rates of one batch size train on the same batches, vmapped over a leading axis r of the state
and compiled once: AdamW's update is linear in the rate, so the rate is an input of the compiled
step.  Each rate has its own patience; one that diverges has an infinite loss from there on and
stops no other.  A killed search resumes from its checkpoint, within the current batch size.

Example:
    >>> import numpy as np, lensllm_jax as lens
    >>> from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits
    >>> from lensllm_jax.finetune.loop import Loop, OptimizerConfig
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> ids = np.random.default_rng(0).integers(5, 50, (8, 8)).astype(np.int32)
    >>> data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids,
    ...         "is_end": np.zeros(ids.shape, bool), "num_target_bytes": np.full(8, 20)}
    >>> found = search_rates(
    ...     Loop(c.apply_fn, OptimizerConfig(learning_rate=1e-3, warmup_steps=1), shift=True),
    ...     c.params, Splits(data, data, data), SearchGrid(rates=(1e-6, 1e-3), batch_sizes=(8,)),
    ...     config=FineTuneConfig(max_epochs=4, steps_per_call=2))
    >>> found.learning_rate, found.batch_size
    (0.001, 8)
"""

import dataclasses
import functools
import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.data.buckets import few_lengths, row_lengths, truncated
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.fine_tune import (
    FineTuneConfig,
    Splits,
    check_splits,
    resumed_settings,
    with_few_positions,
)
from lensllm_jax.finetune.loop import Loop, TrainState, awaited
from lensllm_jax.finetune.objective import RecordNats, num_tokens
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.typing import Array, Batch, Params


class SearchGrid(NamedTuple):
    """The settings to choose from."""

    rates: Sequence[float] = (3e-5, 1e-4, 3e-4, 1e-3)  # per step, after warm-up
    batch_sizes: Sequence[int] = (64, 128, 256)  # examples


_DEFAULT_GRID = SearchGrid()


class SearchResult(NamedTuple):
    """The lowest validation loss of every setting."""

    rates: tuple[float, ...]  # per step
    batch_sizes: tuple[int, ...]  # examples
    losses: Float[np.ndarray, "b r"]  # nats per byte; infinite where it diverged
    best_steps: Int[np.ndarray, "b r"]  # optimiser steps to them
    num_tokens: int  # trained on by all settings vmapped, see ``objective.num_tokens``

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
    validation_loss: float  # nats per byte, the lowest of all settings so far
    tokens_per_second: float  # over all rates, in this process, compilation included


class SearchPosition(NamedTuple):
    """Where a search stands between two calls."""

    state: TrainState  # of the current batch size, a leading axis r
    losses: Float[np.ndarray, "b r"]  # nats per byte, lowest so far
    best_steps: Int[np.ndarray, "b r"]  # optimiser steps to them
    since_best: Int[np.ndarray, "b r"]  # evaluations since then
    row: int = 0  # of the current batch size
    call: int = 0  # calls made with it
    num_tokens: int = 0  # trained on by all settings vmapped

    @classmethod
    def at_start(cls, state: TrainState, num_batch_sizes: int, num_rates: int) -> "SearchPosition":
        """The position before the first call."""
        none = np.zeros((num_batch_sizes, num_rates), np.int64)
        return cls(state, np.full(none.shape, np.inf), none, none)

    @property
    def arrays(self) -> tuple:
        """The state, and losses, steps and evaluations of each setting."""
        return self[:4]

    @property
    def counts(self) -> dict[str, Any]:
        """All but the arrays."""
        return {name: getattr(self, name) for name in self._fields[4:]}

    def at(self, arrays: tuple, counts: Mapping[str, Any]) -> "SearchPosition":
        """The position with these arrays and counts."""
        return SearchPosition(*arrays, **counts)

    def evaluated(
        self, validation_losses: Float[np.ndarray, " r"], step: int, *, patience: int
    ) -> "SearchPosition":
        """The position after an evaluation of all rates.

        Args:
            validation_losses: nats per byte.
            step: of the optimiser.
            patience: evaluations without a new best after which a rate's losses no longer
                count, though it still trains with the others.
        """
        row = self.row
        losses, best_steps, since_best = (array.copy() for array in self.arrays[1:])
        better = (validation_losses < losses[row]) & (since_best[row] < patience)
        losses[row][better], best_steps[row][better] = validation_losses[better], step
        since_best[row] = np.where(better, 0, since_best[row] + 1)
        return self._replace(losses=losses, best_steps=best_steps, since_best=since_best)


def search_rates(
    loop: Loop,
    params: Params,
    splits: Splits,
    grid: SearchGrid = _DEFAULT_GRID,
    *,
    config: FineTuneConfig,
    on_progress: Callable[[SearchProgress], None] | None = None,
    checkpoint: Checkpoint | None = None,
) -> SearchResult:
    """Trains with every rate and batch size until patience or epochs run out.

    Args:
        loop: the candidate's compiled steps; its own rate is not used.
        params: where to start.
        splits: the subset to train on, and the validation data that settings are compared on;
            of the test records only the lengths count.
        grid: rates and batch sizes.
        config: when to evaluate and when to stop; its batch size is not used.
        on_progress: called after each call of several steps.
        checkpoint: written when due and after each batch size; the search resumes from its
            file, to the same result bit for bit.  The caller discards it.

    Raises:
        UserError: if there is no rate or batch size, one is not positive, all diverged, there is
            no target, or the checkpoint is damaged or of another search.
    """
    rates, batch_sizes = grid
    if not len(rates) or not len(batch_sizes):
        raise checks.UserError(
            f"`rates` and `batch_sizes` must hold at least one, got {rates} and {batch_sizes}"
        )
    for rate in rates:
        checks.positive("rates", rate)
    check_splits(splits, shift=loop.shift)
    configs = [dataclasses.replace(config, batch_size=size) for size in batch_sizes]
    vmapped = _Vmapped(loop, rates)
    position = SearchPosition.at_start(vmapped.start(params), len(batch_sizes), len(rates))
    settings: dict[str, Any] = {}
    if checkpoint is not None:
        settings = resumed_settings(loop, params, splits, config)
        settings |= {"learning_rate": list(rates), "batch_size": list(batch_sizes)}
        position = checkpoint.load(position, settings)
    num_calls = [one.num_calls(len(splits.train["labels"])) for one in configs]
    if checkpoint is not None:
        checkpoint.check_at_most("row", position.row, len(configs))
        checkpoint.check_at_most("call", position.call, [*num_calls, 0][position.row])
    started, tokens_before = time.monotonic(), position.num_tokens
    for one in configs[position.row :]:
        positions = _positions(vmapped, position, splits, one)
        for position in positions:
            if checkpoint is not None:
                checkpoint.save_if_due(position, settings)
            if on_progress is not None:
                share = (sum(num_calls[: position.row]) + position.call) / sum(num_calls)
                speed = (position.num_tokens - tokens_before) / (time.monotonic() - started)
                on_progress(SearchProgress(share, float(position.losses.min()), speed))
        state, row = vmapped.start(params), position.row + 1
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
    vmapped: "_Vmapped", position: SearchPosition, splits: Splits, config: FineTuneConfig
) -> Iterator[SearchPosition]:
    """The position after each remaining call of one batch size."""
    lengths = row_lengths(splits.train)
    num_calls = config.num_calls(len(lengths))
    calls_per_evaluation = config.calls_per_evaluation(len(lengths))
    vmapped.loop = with_few_positions(vmapped.loop, splits.test, config)
    validation = EvaluationBatches.of(splits.validation, buckets=few_lengths(splits.test))
    last_step = vmapped.loop.last_step(num_calls * config.steps_per_call)
    for call in itertools.islice(config.calls(lengths), position.call, num_calls):
        # before the call: a checkpoint may hold the very end
        if (position.since_best[position.row] >= config.patience).all():
            return
        rows = {name: np.asarray(values)[call.rows] for name, values in splits.train.items()}
        position = position._replace(
            state=vmapped.train(position.state, truncated(rows, call.length), last_step),
            call=position.call + 1,
            num_tokens=position.num_tokens + len(vmapped.rates) * num_tokens(rows),
        )
        if position.call % calls_per_evaluation == 0 or position.call == num_calls:
            position = position.evaluated(
                vmapped.evaluate(position.state.params, validation),
                position.call * config.steps_per_call, patience=config.patience,
            )  # fmt: skip
        yield position


class _Vmapped:
    """Training and evaluation mapped over the rates, in one program each."""

    def __init__(self, loop: Loop, rates: Sequence[float]):
        self.loop, self.rates = loop, np.asarray(rates, np.float32)

        def train(
            states: TrainState, batches: Batch, rates: Array, last_step: Any, frozen: Params,
            num_logits: int | None,
        ) -> TrainState:  # fmt: skip
            def one(state: TrainState, rate: Array) -> TrainState:
                return loop.steps(state, batches, rate, last_step, frozen, num_logits)[0]

            return jax.vmap(one)(states, rates)

        def add(
            params: Params, gradients: Params, part: Batch, divisor: Any, frozen: Params,
            num_logits: int | None,
        ) -> tuple[Params, Array]:  # fmt: skip
            one = functools.partial(
                loop.add_pass, part=part, divisor=divisor, frozen=frozen, num_logits=num_logits
            )
            return jax.vmap(one)(params, gradients)

        def evaluate(
            params: Params, batch: Batch, frozen: Params, num_logits: int | None
        ) -> RecordNats:
            return jax.vmap(lambda one: loop.record_nats(one, batch, frozen, num_logits))(params)

        self._train = jax.jit(train, donate_argnums=0, static_argnums=5)
        self._add = jax.jit(add, donate_argnums=1, static_argnums=5)
        self._update = jax.jit(jax.vmap(loop.update, (0, 0, 0, None)), donate_argnums=(0, 1))
        self._evaluate = jax.jit(evaluate, static_argnums=3)

    def start(self, params: Params) -> TrainState:
        """The state before the first step, stacked over the rates."""
        one = self.loop.start(params)
        return jax.tree.map(lambda leaf: jnp.stack([leaf] * len(self.rates)), one)

    def train(self, state: TrainState, batches: Batch, last_step: np.int32 | None) -> TrainState:
        """The state after the steps of one call."""
        if self.loop.micro_batches > 1:
            return self.loop.in_passes(
                state, batches, self._add,
                lambda state, gradient: self._update(state, gradient, self.rates, last_step),
            )[0]  # fmt: skip
        number = self.loop.num_logits_of(batches)
        batches = self.loop.place_batch(batches, axis=1)
        return self._train(state, batches, self.rates, last_step, self.loop.frozen, number)

    def evaluate(self, params: Params, records: EvaluationBatches) -> Float[np.ndarray, " r"]:
        """Nats per byte of every rate, infinite where they are not finite."""
        found = [
            self._evaluate(params, batch, self.loop.frozen, number).text
            for batch, number in self.loop.placed(records)
        ]
        nats = np.concatenate([awaited(part) for part in found], axis=1).sum(1, dtype=np.float64)
        return np.where(np.isfinite(nats), nats / records.num_bytes.sum(), np.inf)
