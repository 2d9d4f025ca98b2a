r"""Fine-tune: one candidate trained on one subset until its validation loss stops falling.

The result is one point of a learning curve: the test loss at the best validation step.  Steps
descend nats per target token, the end token included; validation and test are measured in nats
per byte of target text (:mod:`lensllm_jax.finetune.evaluation`).  Settings and seed decide
everything, so a killed run gives the same number when it is run again.

Example:
    >>> import numpy as np, lensllm_jax as lens
    >>> from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
    >>> from lensllm_jax.finetune.loop import Loop, OptimizerConfig
    >>> c = lens.load_candidate("zoo/gpt2-xs")
    >>> ids = np.random.default_rng(0).integers(5, 50, (8, 12)).astype(np.int32)
    >>> data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids,
    ...         "is_end": np.zeros(ids.shape, bool), "num_target_bytes": np.full(8, 30)}
    >>> config = FineTuneConfig(batch_size=4, max_epochs=2)
    >>> loop = Loop(c.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    >>> tuned = fine_tune(loop, c.params, Splits(data, data, data), config=config)
    >>> tuned.test.loss < loop.evaluate(c.params, EvaluationBatches.of(data)).loss
    True
"""

import dataclasses
import itertools
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.data.buckets import check_buckets, few_lengths, row_lengths, truncated
from lensllm_jax.finetune.evaluation import (
    ROWS,
    Evaluation,
    EvaluationBatches,
    check_text,
    completed,
    concatenated,
    is_far_behind,
)
from lensllm_jax.finetune.loop import Loop
from lensllm_jax.finetune.num_logits import num_logits_by_shape
from lensllm_jax.finetune.objective import num_tokens
from lensllm_jax.finetune.order import Call, calls_of, order_digest
from lensllm_jax.finetune.resume import Checkpoint, Position
from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.typing import IGNORE, Array, Batch, Params

_FEWEST_TESTED = 128  # records, before a rival is compared with


class Splits(NamedTuple):
    """Token arrays (n, s) of a task's splits, the last two with what ``evaluation`` needs."""

    train: Batch
    validation: Batch  # decides when to stop
    test: Batch  # measured once, at the best step


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """When to evaluate and when to stop.

    Attributes:
        batch_size: examples a step.
        max_epochs: passes over the subset, rounded up to whole calls: on few examples calls of
            eight steps are several passes.
        patience: evaluations in a row without a new best after which training stops.
        steps_per_call: steps of one compiled call; evaluations fall on its multiples.
        evaluations_per_epoch: validation evaluations in a pass over the subset, where it is
            long enough for that many calls.
        seed: of the order of examples.
        buckets: ascending lengths (tokens); a call trains on examples of one bucket and drops
            the padding behind it, and each length is compiled once.  Without any, all have full
            length.
    """

    batch_size: int = 32
    max_epochs: int = 10
    patience: int = 3
    steps_per_call: int = 8
    evaluations_per_epoch: int = 2
    seed: int = 0
    buckets: tuple[int, ...] = ()

    def __post_init__(self):
        checks.not_negative("seed", self.seed)
        check_buckets(self.buckets)
        for name in ("batch_size", "max_epochs", "patience", "steps_per_call",
                     "evaluations_per_epoch"):  # fmt: skip
            checks.positive(name, getattr(self, name))

    def num_calls(self, num_examples: int) -> int:
        """Calls of ``steps_per_call`` steps that cover ``max_epochs`` passes."""
        steps = self.max_epochs * num_examples / self.batch_size
        return max(1, int(np.ceil(steps / self.steps_per_call)))

    def calls_per_evaluation(self, num_examples: int) -> int:
        """Calls between two evaluations."""
        steps = num_examples / self.batch_size / self.evaluations_per_epoch
        return max(1, round(steps / self.steps_per_call))

    def calls(self, lengths: Int[np.ndarray, " n"]) -> Iterator[Call]:
        """The calls of a fine-tune, without end, for examples of these lengths (tokens)."""
        return calls_of(
            lengths, self.buckets,
            steps=self.steps_per_call, batch_size=self.batch_size, seed=self.seed,
        )  # fmt: skip


class FineTuneResult(NamedTuple):
    """One point of a learning curve."""

    test_loss: float  # nats per byte, at the best step
    validation_loss: float  # nats per byte, at the best step
    best_step: int  # optimiser steps to the lowest validation loss
    num_steps: int  # optimiser steps made
    num_tokens: int  # trained on, see ``objective.num_tokens``
    stopped_early: bool  # whether patience ended it (else the last epoch did)
    data_order_sha256: str  # of the examples in the order in which they were trained on


class FineTuned(NamedTuple):
    """A point of a learning curve, with the weights that it belongs to."""

    result: FineTuneResult
    params: Params  # at the best step
    test: Evaluation  # at the best step


class Progress(NamedTuple):
    """Where a fine-tune is."""

    step: int  # optimiser steps made
    max_steps: int  # made if patience never runs out
    train_loss: float  # nats per target token, mean of the last call
    validation_loss: float  # nats per byte, last evaluated
    tokens_per_second: float  # trained on by this process, compiling and evaluating included


def fine_tune(
    loop: Loop,
    params: Params,
    splits: Splits,
    *,
    config: FineTuneConfig,
    on_progress: Callable[[Progress], None] | None = None,
    checkpoint: Checkpoint | None = None,
    rival: Float[np.ndarray, "2 n"] | None = None,
) -> FineTuned:
    """Trains until patience or epochs run out and measures the test loss at the best step.

    Args:
        loop: the candidate's compiled steps.
        params: where to start.
        splits: the subset to train on, validation and test.
        config: when to evaluate and when to stop.
        on_progress: called after each evaluation.
        checkpoint: written when due; training resumes from its file, to the same result bit
            for bit.  The caller discards it.
        rival: see ``evaluated``.

    Raises:
        FloatingPointError: if a loss is not finite.
        UserError: if the checkpoint is damaged, or of another fine-tune, or there is no target.
    """
    position = trained(
        loop, params, splits, config=config, on_progress=on_progress, checkpoint=checkpoint
    )
    lengths, num_calls = row_lengths(splits.train), position.call
    test = evaluated(loop, position.best_params, splits.test, rival=rival)
    result = FineTuneResult(
        test_loss=test.loss,
        validation_loss=position.best_loss,
        best_step=position.best_step,
        num_steps=num_calls * config.steps_per_call,
        num_tokens=position.num_tokens,
        stopped_early=position.since_best == config.patience,
        data_order_sha256=order_digest(
            splits.train, itertools.islice(config.calls(lengths), num_calls)
        ),
    )
    return FineTuned(result, position.best_params, test)


def trained(
    loop: Loop, params: Params, splits: Splits, *, config: FineTuneConfig,
    on_progress: Callable[[Progress], None] | None = None, checkpoint: Checkpoint | None = None,
) -> Position:  # fmt: skip
    """Where patience or epochs run out; arguments as those of ``fine_tune``."""
    check_splits(splits, shift=loop.shift)
    loop = with_few_positions(loop, splits.test, config)
    lengths = row_lengths(splits.train)
    num_calls = config.num_calls(len(lengths))
    calls_per_evaluation = config.calls_per_evaluation(len(lengths))
    # lengths of the test records, which are those of every subset: none is compiled later
    validation = EvaluationBatches.of(splits.validation, buckets=few_lengths(splits.test))
    position = Position.at_start(loop.start(params))
    if checkpoint is not None:
        settings = resumed_settings(loop, position.state.params, splits, config)
        position = checkpoint.load(position, settings)
        checkpoint.check_at_most("call", position.call, num_calls)
    max_steps = num_calls * config.steps_per_call
    last_step = loop.last_step(max_steps)
    started, tokens_before = time.monotonic(), position.num_tokens
    for call in itertools.islice(config.calls(lengths), position.call, None):
        # before the call: a checkpoint may hold the very end
        if position.since_best >= config.patience or position.call == num_calls:
            break
        position, losses = _after_call(loop, position, splits.train, call, last_step)
        if position.call % calls_per_evaluation == 0 or position.call == num_calls:
            loss = loop.evaluate(position.state.params, validation).loss
            step = position.call * config.steps_per_call
            position = _after_evaluation(position, loss, step)
            if on_progress is not None:
                speed = (position.num_tokens - tokens_before) / (time.monotonic() - started)
                on_progress(Progress(step, max_steps, float(losses.mean()), loss, speed))
        if checkpoint is not None:
            checkpoint.save_if_due(position, settings)
    return position


def evaluated(
    loop: Loop, params: Params, test: Batch, *, rival: Float[np.ndarray, "2 n"] | None = None
) -> Evaluation:
    """The test losses, where a rival is known of as many records as it takes to fall behind.

    Args:
        loop: the candidate's compiled steps.
        params: its parameters.
        test: the n test records.
        rival: nats and bytes of each record, of the best candidate so far; once the loss on the
            first 128, 256, ... records is far above its loss, the others are not evaluated.
    """
    loop = loop.computing(_num_logits_evaluated(test, shift=loop.shift))
    count, lengths = len(test["labels"]), few_lengths(test)
    doubling = (_FEWEST_TESTED << k for k in range(count.bit_length() if rival is not None else 0))
    ends = [0, *(end for end in doubling if end < count), count]
    parts: list[Evaluation] = []
    for start, end in itertools.pairwise(ends):
        records = {name: np.asarray(values)[start:end] for name, values in test.items()}
        parts.append(loop.evaluate(params, EvaluationBatches.of(records, buckets=lengths)))
        if rival is not None and end < count:
            so_far = concatenated(parts)
            if is_far_behind(so_far, rival):
                return completed(so_far, rival)
    return concatenated(parts)


def with_few_positions(loop: Loop, test: Batch, config: FineTuneConfig) -> Loop:
    """The loop, which computes as many logits and positions as records like ``test`` need."""
    rows = config.batch_size // loop.micro_batches
    numbers = num_logits_by_shape(test, rows=rows, shift=loop.shift, buckets=config.buckets)
    numbers |= _num_logits_evaluated(test, shift=loop.shift)
    return loop.computing(numbers, config.buckets)


def _num_logits_evaluated(test: Batch, *, shift: bool) -> dict[tuple[int, int], int]:
    """Of the batches in which records are evaluated."""
    return num_logits_by_shape(test, rows=ROWS, shift=shift, buckets=few_lengths(test))


def check_splits(splits: Splits, *, shift: bool) -> None:
    """Refuses splits without a target: their mean loss would be 0 / 0.

    Raises:
        UserError: if one has none, or validation or test no byte of target text.
    """
    for name, data in splits._asdict().items():
        labels = np.asarray(data["labels"])
        if not ((labels[:, 1:] if shift else labels) != IGNORE).any():
            raise checks.UserError(
                f"`{name}` must hold a target token, got none in {len(labels)} examples: keep more "
                "of each"
            )
    for name in ("validation", "test"):
        check_text(name, getattr(splits, name))


def _after_call(
    loop: Loop, position: Position, train: Batch, call: Call, last_step: np.int32 | None
) -> tuple[Position, Float[Array, " t"]]:
    """The position after one call, and the loss before each of its steps."""
    batches = truncated({name: np.asarray(v)[call.rows] for name, v in train.items()}, call.length)
    state, losses = loop.train(position.state, batches, last_step)
    count = position.num_tokens + num_tokens(batches)
    return position._replace(state=state, call=position.call + 1, num_tokens=count), losses


def _after_evaluation(position: Position, loss: float, step: int) -> Position:
    """The position once the validation loss is known."""
    if not loss < position.best_loss:
        return position._replace(since_best=position.since_best + 1)
    # a copy, since the next step reuses the state's memory
    best_params = jax.tree.map(jnp.copy, position.state.params)
    return position._replace(best_params=best_params, best_loss=loss, best_step=step, since_best=0)


def resumed_settings(
    loop: Loop, params: Params, splits: Splits, config: FineTuneConfig
) -> dict[str, Any]:
    """What a resumed fine-tune must share with its checkpoint, as JSON values."""
    return {
        **dataclasses.asdict(config),
        **dataclasses.asdict(loop.config),
        "micro_batches": loop.micro_batches,
        "params": fingerprint([params, loop.frozen] if loop.frozen else params),
        "train": fingerprint(dict(splits.train)),
        "validation": fingerprint(dict(splits.validation)),
    }
