"""The rate of a candidate on a task, searched once and kept in a file of the run folder.

The file holds the trials that ended: a killed search goes on behind the last of them.
"""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from lensllm_jax import checks, durable
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.rates import AUTO, Trial, downhill, first_rung
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig

NUM_EXAMPLES = 100  # that rates are compared on: enough steps for a warm-up
_EQUAL = 1e-3  # share of a validation loss that tells no rates apart
_NUM_TRIALS = 3  # of a search that starts at the best rate


class RateSearch(NamedTuple):
    """What a search tried, in this order."""

    trials: tuple[Trial, ...]
    size: int  # examples that each trained on

    @property
    def learning_rate(self) -> float:
        """The highest of those with the lowest loss, nearly: larger subsets make more steps."""
        most = (1 + _EQUAL) * min(trial.validation_loss for trial in self.trials)
        return max(t.learning_rate for t in self.trials if t.validation_loss <= most)

    def as_dict(self) -> dict[str, Any]:
        """As JSON values."""
        losses = (trial.validation_loss for trial in self.trials)
        return {
            "learning_rates": [trial.learning_rate for trial in self.trials],
            # None where it diverged, JSON has no infinity
            "validation_losses": [x if math.isfinite(x) else None for x in losses],
            "num_examples": self.size * len(self.trials),
            "num_tokens": sum(trial.num_tokens for trial in self.trials),
        }


def expected_examples(config: MeasurementConfig, task: Task) -> int:
    """How many examples a search trains on; 0 where the rate is given."""
    return _NUM_TRIALS * min(NUM_EXAMPLES, len(task.train)) if config.learning_rate == AUTO else 0


def search_rate(
    measurement: Measurement, file: Path | None, *, on_progress: Callable[[float, str], None]
) -> RateSearch:
    """The trials of a candidate on the first 100 training examples, or all of a smaller task.

    Args:
        measurement: the candidate, the task and the settings.
        file: of the trials that ended, read and written; None keeps none.
        on_progress: called after each evaluation with the share of the search that is done, if it
            takes three trials, and what was found.

    Raises:
        UserError: if all rates diverged, or the file is damaged.
    """
    known = {} if file is None or not file.exists() else _read(file)
    size = min(NUM_EXAMPLES, len(measurement.task.train))
    trial_of = measurement.trial(size)

    def loss_of(rate: float) -> float:
        def show(within: float, loss: float) -> None:
            share = min((len(known) + within) / _NUM_TRIALS, 1.0)
            on_progress(share, f"rate {rate:g}, validation loss {loss:.4f}")

        if rate not in known:
            trial = trial_of(rate, lambda now: show(now.step / now.max_steps, now.validation_loss))
            known[rate] = trial
            if file is not None:
                durable.replace(file, json.dumps([*known.values()]).encode())
            show(0.0, trial.validation_loss)
        return known[rate].validation_loss

    start = first_rung(measurement.candidate.num_params)
    tried = downhill(loss_of, measurement.config.rates, start=start)
    return RateSearch(tuple(known[rate] for rate in tried), size)


def _read(file: Path) -> dict[float, Trial]:
    """The trials of a file, by rate."""
    try:
        trials = [Trial(float(rate), float(loss), int(n)) for rate, loss, n in
                  json.loads(file.read_bytes())]  # fmt: skip
    except (ValueError, TypeError, RecursionError) as error:
        raise checks.UserError(
            f"`learning_rate` must be searched in a whole file, got {file}, damaged "
            f"({type(error).__name__}: {error}): delete it to search again"
        ) from error
    return {trial.learning_rate: trial for trial in trials}
