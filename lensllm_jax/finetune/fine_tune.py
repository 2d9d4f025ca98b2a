r"""Fine-tune: one candidate trained on one subset until its validation loss stops falling.

The result is one point of a learning curve: the test loss at the best validation step, in
nats per target token.  Everything is decided by the settings and the seed, so that a run
which was cut off gives the same number when it is made again.

Example:
    >>> import numpy as np, lensllm_jax as lens
    >>> from lensllm_jax.finetune.fine_tune import FineTuneConfig, fine_tune
    >>> from lensllm_jax.finetune.loop import Loop, OptimizerConfig
    >>> c = lens.load_candidate(lens.list_zoo()[0])
    >>> ids = np.random.default_rng(0).integers(5, 50, (8, 12)).astype(np.int32)
    >>> data = {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    >>> config = FineTuneConfig(batch_size=4, max_epochs=2)
    >>> loop = Loop(c.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    >>> result = fine_tune(loop, c.params, data, data, data, config=config).result
    >>> result.test_loss < loop.evaluate(c.params, [data])
    True
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.finetune.loop import Loop
from lensllm_jax.typing import IGNORE, Array, Batch, Params

EVALUATION_BATCH = 64  # examples; one shape for every evaluation


@dataclasses.dataclass(frozen=True)
class FineTuneConfig:
    """When to look and when to stop.

    Attributes:
        batch_size: examples a step.
        max_epochs: passes over the subset at most.
        patience: evaluations in a row without a new best after which training stops.
        steps_per_call: steps between looks at the losses; evaluations fall on its multiples.
        evaluations_per_epoch: validation evaluations in a pass over the subset, where it is
            long enough for that many calls.
        seed: of the order of examples.
    """

    batch_size: int = 32
    max_epochs: int = 10
    patience: int = 3
    steps_per_call: int = 8
    evaluations_per_epoch: int = 2
    seed: int = 0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            check = checks.not_negative if field.name == "seed" else checks.positive
            check(field.name, getattr(self, field.name))

    def num_calls(self, num_examples: int) -> int:
        """Calls of ``steps_per_call`` steps that cover ``max_epochs`` passes."""
        steps = self.max_epochs * num_examples / self.batch_size
        return max(1, int(np.ceil(steps / self.steps_per_call)))

    def calls_per_evaluation(self, num_examples: int) -> int:
        """Calls between two evaluations."""
        steps = num_examples / self.batch_size / self.evaluations_per_epoch
        return max(1, round(steps / self.steps_per_call))


class FineTuneResult(NamedTuple):
    """One point of a learning curve."""

    test_loss: float  # nats per target token, at the best step
    validation_loss: float  # nats per target token, at the best step
    best_step: int  # optimiser steps to the lowest validation loss
    num_steps: int  # optimiser steps made
    num_tokens: int  # tokens trained on, prompts included, padding not
    stopped_early: bool  # whether patience ended it (else the last epoch did)


class FineTuned(NamedTuple):
    """A point of a learning curve, with the weights that it belongs to."""

    result: FineTuneResult
    params: Params  # at the best step


class Progress(NamedTuple):
    """Where a fine-tune is."""

    step: int  # optimiser steps made
    max_steps: int  # made if patience never runs out
    train_loss: float  # nats per target token, mean of the last call
    validation_loss: float  # nats per target token, last evaluated


def fine_tune(
    loop: Loop,
    params: Params,
    train: Batch,
    validation: Batch,
    test: Batch,
    *,
    config: FineTuneConfig,
    on_progress: Callable[[Progress], None] | None = None,
) -> FineTuned:
    """Trains until patience or epochs run out and measures the test loss at the best step.

    Args:
        loop: the candidate's compiled steps.
        params: where to start.
        train: the subset, arrays (n, s).
        validation: decides when to stop.
        test: measured once, at the best step.
        config: when to look and when to stop.
        on_progress: called after each evaluation.

    Returns:
        The point of the learning curve, and the weights at the best step.

    Raises:
        FloatingPointError: if a loss is not finite.
    """
    num_examples = len(train["input_ids"])
    num_calls = config.num_calls(num_examples)
    calls_per_evaluation = config.calls_per_evaluation(num_examples)
    validation_batches = evaluation_batches(validation)
    lengths = np.asarray(train["attention_mask"]).sum(1)
    state = loop.start(params)
    best = (np.inf, 0, params)
    num_tokens = since_best = 0
    for call, rows in enumerate(_rows_of_calls(num_examples, config), start=1):
        batches = {name: np.asarray(values)[rows] for name, values in train.items()}
        state, losses = loop.train(state, batches)
        num_tokens += int(lengths[rows].sum())
        if call % calls_per_evaluation and call < num_calls:
            continue
        step = call * config.steps_per_call
        validation_loss = loop.evaluate(state.params, validation_batches)
        if validation_loss < best[0]:
            # a copy, since the next step reuses the state's memory
            best, since_best = (validation_loss, step, jax.tree.map(jnp.copy, state.params)), 0
        else:
            since_best += 1
        if on_progress is not None:
            max_steps = num_calls * config.steps_per_call
            on_progress(Progress(step, max_steps, float(losses.mean()), validation_loss))
        if since_best == config.patience or call == num_calls:
            break
    result = FineTuneResult(
        test_loss=loop.evaluate(best[2], evaluation_batches(test)),
        validation_loss=best[0],
        best_step=best[1],
        num_steps=step,
        num_tokens=num_tokens,
        stopped_early=since_best == config.patience,
    )
    return FineTuned(result, best[2])


def evaluation_batches(data: Batch) -> list[Batch]:
    """The examples in batches of one shape; rows that fill up the last one have no target.

    Args:
        data: arrays (n, s).

    Returns:
        Batches (``EVALUATION_BATCH``, s).
    """
    num_missing = -len(data["input_ids"]) % EVALUATION_BATCH
    filled = {
        name: np.pad(
            values, ((0, num_missing), (0, 0)), constant_values=IGNORE if name == "labels" else 1
        )
        for name, values in data.items()
    }
    starts = range(0, len(filled["input_ids"]), EVALUATION_BATCH)
    return [{k: v[i : i + EVALUATION_BATCH] for k, v in filled.items()} for i in starts]


def _rows_of_calls(num_examples: int, config: FineTuneConfig) -> Iterator[Int[Array, "t b"]]:
    """Rows of every call: pass after pass in a new order, batches running across the seam."""
    shape = (config.steps_per_call, config.batch_size)
    wanted = int(np.prod(shape))
    rows = np.zeros(0, np.int64)
    epoch = 0
    while True:
        while len(rows) < wanted:
            order = subset_order(num_examples, seed=(config.seed, epoch))
            rows = np.concatenate([rows, order])
            epoch += 1
        yield rows[:wanted].reshape(shape)
        rows = rows[wanted:]
