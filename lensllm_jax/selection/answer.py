"""The answer of a selection in one sentence: what to fine-tune, how sure that is, what it cost.

Example:
    >>> answer = Answer(
    ...     candidate="b", target_size=51200, probability=0.93, expected_regret=0.00014,
    ...     predicted_loss=1.0, unit="nats per byte", cost=0.031, next_best=("a", 0.05),
    ...     law_picks="b", reads_kernel=True)
    >>> print(answer)  # doctest: +NORMALIZE_WHITESPACE
    Fine-tune b: best at 51,200 records with P = 0.93; expected to lose 0.002 nats per byte (0.2 %)
    if not. Cost 3.1 % of tuning all; next best a (0.05). LensLLM (Eq 10, exact kernel) agrees.
"""

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np

from lensllm_jax.selection.uncertainty import Probability

_SURE = 0.9  # P(best) from which nothing further is suggested
_CANNOT_TELL = 0.5  # P(best) below which another candidate is more likely the best than the pick


class NextStep(NamedTuple):
    """A fine-tune that would make the answer surer."""

    candidate: str
    size: int  # records
    cost: float | None  # share of fine-tuning every candidate on the target size


class Model(NamedTuple):
    """Where the fine-tuned weights of the pick lie."""

    folder: str
    size: int  # records that they were fine-tuned on


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a selection says; ``str`` is the sentence."""

    candidate: str  # to fine-tune
    target_size: int  # records
    probability: float  # that it is the best there
    expected_regret: float  # of its log loss
    predicted_loss: float  # in ``unit``
    unit: str
    cost: float | None  # share of fine-tuning every candidate on the target size; None: not known
    next_best: tuple[str, float] | None  # the runner-up, and its probability of being the best
    law_picks: str | None = None  # by Eq 10; None: it was not fitted
    reads_kernel: bool = False  # Eq 10 with the measured kernel
    by_law: bool = (
        False  # whether Eq 10 decided, and not the posterior that gives the probabilities
    )
    next_step: NextStep | None = None  # None: nothing left to run
    model: Model | None = None  # None: it was not saved
    failure: str | None = None  # why the race could not fine-tune the pick any further

    @property
    def is_clear(self) -> bool:
        """Whether the pick is more likely the best than all others together."""
        return self.probability >= _CANNOT_TELL

    @property
    def relative_loss_if_wrong(self) -> float:
        """By which share the pick's loss is expected to exceed the best one's, if it is not it.

        NaN where it is the best in every draw.
        """
        return self.expected_regret / (1.0 - self.probability) if self.probability < 1 else math.nan

    @property
    def loss_if_wrong(self) -> float:
        """The same in ``unit``."""
        return self.relative_loss_if_wrong * self.predicted_loss

    def as_dict(self) -> dict[str, Any]:
        """JSON values, the sentence first; None where a number is not known."""
        numbers = {**dataclasses.asdict(self), "loss_if_wrong": self.loss_if_wrong}
        step = self.next_step and self.next_step._asdict()
        known = {k: None if isinstance(v, float) and math.isnan(v) else v
                 for k, v in numbers.items()}  # fmt: skip
        model = self.model and self.model._asdict()
        return {"answer": str(self), **known, "next_step": step, "model": model}

    def __str__(self) -> str:
        failed = f"A fine-tune of it failed: {self.failure}." if self.failure else ""
        sentences = (
            self._pick(), failed, self._price(), self._law(), self._advice(), self._where()
        )  # fmt: skip
        return " ".join(sentence for sentence in sentences if sentence)

    def _pick(self) -> str:
        chance = Probability(self.probability).relation
        best = f"best at {self.target_size:,} records with P {chance}"
        lead = f"Fine-tune {self.candidate}: {best}"
        if self.by_law:
            lead = f"{self._law_name} picks {self.candidate}: {best}"
        elif not self.is_clear:
            lead = (
                f"The data cannot tell: at {self.target_size:,} records {self.candidate} is the "
                f"best bet, with P {chance}"
            )
        if self.probability >= 1.0:
            return f"{lead}."
        loss, share = self.loss_if_wrong, 100.0 * self.relative_loss_if_wrong
        lost = f"{_rounded(loss, 1)} {self.unit} ({_rounded(share, 1)} %)"
        return f"{lead}; expected to lose {lost} if not."

    def _price(self) -> str:
        parts = []
        if self.cost is not None:
            parts.append(f"cost {_percent(self.cost)} of tuning all")
        if self.next_best is not None:
            name, probability = self.next_best
            rank = "next best" if probability <= self.probability else "likelier the best"
            parts.append(f"{rank} {name} ({Probability(probability)})")
        text = "; ".join(parts)
        return f"{text[:1].upper()}{text[1:]}." if text else ""

    def _law(self) -> str:
        if self.law_picks is None or self.by_law:
            return ""
        verdict = "agrees" if self.law_picks == self.candidate else f"picks {self.law_picks}"
        return f"{self._law_name} {verdict}."

    @property
    def _law_name(self) -> str:
        return f"LensLLM (Eq 10, {'exact kernel' if self.reads_kernel else 'no kernel'})"

    def _advice(self) -> str:
        if self.probability >= _SURE or self.next_step is None:
            return ""
        name, size, cost = self.next_step
        price = "" if cost is None else f", for {_percent(cost)} of tuning all"
        return f"To tell more, fine-tune {name} on {size:,} records{price}."

    def _where(self) -> str:
        if self.model is None:
            return ""
        folder, size = self.model
        return f"{self.candidate}, fine-tuned on {size:,} records, is in {folder}."


def _percent(share: float) -> str:
    return f"{_rounded(100.0 * share, 2)} %"


def _rounded(value: float, digits: int) -> str:
    """To significant digits or to a whole number, without an exponent."""
    kept = f"{value:.{digits}g}" if value < 10**digits else f"{value:.0f}"
    return np.format_float_positional(float(kept), trim="-")
