r"""Ranks candidates by what their loss will be after fine-tuning on the whole data.

Every selector has one signature: a loss table cut at a budget and a target size in, a
:class:`Ranking` out: predicted losses where the selector can predict, the order, the probability
that one candidate beats another at the target, and the FLOPs that the selector asked for.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> sizes = np.array([0, 200, 400, 800, 1600, 3200])
    >>> flat, steep = (8.0 * (sizes + 50.0) ** -b for b in (0.1, 0.2))
    >>> table = LossTable(("flat", "steep"), sizes, np.stack([0.5 * flat, steep]),
    ...                   np.array([2e6, 1e6]), ("", ""))
    >>> ranking = rank(table, budget_size=3200, target_size=409600, selector="ats")
    >>> ranking.order
    ('steep', 'flat')
    >>> rank(table, budget_size=3200, target_size=409600, selector="subtuning").order
    ('steep', 'flat')
"""

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection import selectors
from lensllm_jax.selection.flops import FlopsLedger, TrainingCost
from lensllm_jax.selection.logme import logme
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.nlp_metrics import nlp_metrics
from lensllm_jax.selection.pooled import pooled
from lensllm_jax.selection.problem import Problem, Scores, ledger_of
from lensllm_jax.selection.uncertainty import (
    NextMeasurement,
    next_measurement,
    with_uncertainty,
)

SELECTORS: dict[str, Callable[[Problem], Scores]] = {
    "lensllm": selectors.lensllm,
    "ats": selectors.ats,
    "rectified": selectors.rectified,
    "vanilla": selectors.vanilla,
    "power": selectors.power,
    "subtuning": selectors.subtuning,
    "zero_shot": selectors.zero_shot,
    "model_size": selectors.model_size,
    "pooled": pooled,
    "nlp_metrics": nlp_metrics,
    "logme": logme,
}


# what a selector needs besides the table
NEEDS = {"nlp_metrics": "weights", "logme": "features"}
SURE = 0.9  # above it, or below one less it, the first two candidates are told apart


class Verdict(NamedTuple):
    """How good a ranking was, in percent; NaN where nothing is known."""

    pearson: float  # of scores and losses; of log N and losses for model_size
    relative_accuracy: float  # 100 where the best candidate was selected, 0 where the worst


@dataclasses.dataclass(frozen=True)
class Ranking:
    """A selector's verdict on a table."""

    selector: str  # its name
    budget_size: int  # examples, largest subset paid for
    target_size: int  # examples
    scores: dict[str, float]  # as PearCorr takes them: a loss, or log N for model_size
    predicted: dict[str, float]  # loss at the target, nats per token; empty if none is predicted
    order: tuple[str, ...]  # candidates, best first; those without a usable fit last
    messages: dict[str, str]  # how each candidate's fit ended
    win_probability: Float[np.ndarray, "n n"]  # P(row beats column), rows in the table's order
    log_std: dict[str, float]  # of the log predicted losses, from the selector's own past
    advice: NextMeasurement | None  # what to measure next, when the first two overlap
    ledger: FlopsLedger  # what was spent, or what the selector asked for
    fits: LawFits | None  # of the law behind the scores, rows in the table's order, if there is one
    seconds: float  # of the selector and of the predictions of its past

    @property
    def flops(self) -> float:
        """Total of the ledger; NaN if a candidate's number of parameters is unknown."""
        return self.ledger.total

    @property
    def selected(self) -> str:
        """The candidate to fine-tune."""
        return self.order[0]

    def judged(self, losses: Mapping[str, float]) -> Verdict:
        """How good the ranking is beside the losses that were measured in the end.

        Args:
            losses: of every candidate at the target size, nats per token.

        Returns:
            Both metrics.
        """
        truth = np.array([losses[name] for name in self.scores])
        scores = np.array([*self.scores.values()])
        known = np.isfinite(scores)
        if not known.any():  # the first of an order without scores is nobody's pick
            return Verdict(math.nan, math.nan)
        try:
            pearson = pearson_correlation(scores[known], truth[known])
        except checks.UserError:  # too few, or all equal
            pearson = math.nan
        return Verdict(pearson, relative_accuracy(losses[self.selected], truth))

    def interval(self, name: str, *, level: float = 0.9) -> tuple[float, float]:
        """Range of the predicted loss of ``name`` relative to the other candidates'.

        A shift common to all candidates is left out: it changes no order.

        Raises:
            UserError: if the selector predicts no loss, or no past tells its errors.
        """
        if name not in self.log_std:
            raise checks.UserError(
                f"`name` must be a candidate with a known spread, got {name!r}: selector "
                f"{self.selector} has none here (four sizes above 0 are needed)"
            )
        half = statistics.NormalDist().inv_cdf(0.5 + 0.5 * level) * self.log_std[name]
        return self.predicted[name] * math.exp(-half), self.predicted[name] * math.exp(half)

    def probability(self, first: str, second: str) -> float:
        """Probability that ``first`` has the lower loss at the target size."""
        names = list(self.scores)
        row, column = (names.index(checks.one_of("name", n, names)) for n in (first, second))
        return float(self.win_probability[row, column])


def rank(
    table: LossTable,
    *,
    budget_size: int,
    target_size: int,
    selector: str = "lensllm",
    gamma: int = 3,
    tau: float = 5.0,
    ntk_losses: Mapping[str, Float[np.ndarray, " num_sizes"]] | None = None,
    ntk_spectra: Mapping[str, NtkSpectrum] | None = None,
    kernel_flops: Mapping[str, float] | None = None,
    weights: Mapping[str, Any] | None = None,
    features: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None,
    cost: TrainingCost | None = None,
    ledger: FlopsLedger | None = None,
) -> Ranking:
    """Ranks the candidates of ``table`` at ``target_size`` from losses up to ``budget_size``.

    Args:
        table: measured losses; sizes above the budget are not looked at.
        budget_size: largest subset paid for, examples; a column of the table.
        target_size: size that matters, examples; above the budget, not necessarily a column.
        selector: a key of ``SELECTORS``.
        gamma: Algorithm 1 and AtS: pairs before the stop test begins.
        tau: Algorithm 1 and AtS: residual standard deviations that a pair may be off.
        ntk_losses: lensllm: F at each size, from the table's first on and at least up to the
            budget, t observed; NaN = not measured.
        ntk_spectra: lensllm: each candidate's kernel spectrum, t free.
        kernel_flops: lensllm: what each kernel cost.
        weights: nlp_metrics: each candidate's params, safetensors file or folder.
        features: logme: each candidate's features (n, d) and integer labels (n,).
        cost: tokens an example, epochs and search rounds of a fine-tune.
        ledger: what was really spent, where it was counted; default what the selector asked
            for, at ``cost``.

    Returns:
        The ranking.

    Raises:
        UserError: for an unknown selector, a size that is missing, or a target below the budget.
    """
    checks.one_of("selector", selector, SELECTORS)
    if budget_size <= 0 or budget_size not in table.sizes:
        raise checks.UserError(
            f"`budget_size` must be one of the table's sizes above 0 {table.sizes.tolist()}, "
            f"got {budget_size}"
        )
    if target_size <= budget_size:
        raise checks.UserError(
            f"`target_size` must be above `budget_size` {budget_size}, got {target_size}"
        )
    whole = Problem(
        table,
        target_size,
        gamma,
        tau,
        ntk_losses,
        ntk_spectra,
        kernel_flops,
        weights,
        features,
        cost or TrainingCost(),
    )
    problem = whole.at_budget(budget_size, target_size)
    begin = time.perf_counter()
    scores = with_uncertainty(problem, SELECTORS[selector])
    seconds = time.perf_counter() - begin
    if ledger is None:
        ledger = ledger_of(problem, scores)
        if kernel_flops is not None and selector == "lensllm":
            for name, flops in kernel_flops.items():
                ledger = ledger.kernel(name, flops=flops)
    named = {name: float(x) for name, x in zip(table.names, scores.scores, strict=True)}
    best_first = scores.best_first()
    messages = scores.messages or ("",) * len(table.names)
    return Ranking(
        selector=selector,
        budget_size=budget_size,
        target_size=target_size,
        scores=named,
        predicted=named if scores.predicts else {},
        order=tuple(table.names[i] for i in best_first),
        messages=dict(zip(table.names, messages, strict=True)),
        win_probability=scores.probabilities(),
        log_std={}
        if scores.log_std is None
        else {name: float(x) for name, x in zip(table.names, scores.log_std, strict=True)},
        advice=_advice(problem, scores, best_first),
        ledger=ledger,
        fits=scores.fits,
        seconds=seconds,
    )


def _advice(problem: Problem, scores: Scores, best_first) -> NextMeasurement | None:
    """What to measure next if the first two candidates cannot be told apart."""
    if scores.log_std is None or len(best_first) < 2:
        return None
    pair = best_first[:2]
    if not np.isfinite(scores.scores[pair]).all():
        return None
    leader, runner_up = (problem.table.names[i] for i in pair)
    advice = next_measurement(
        leader,
        runner_up,
        scores.scores[pair],
        scores.log_std[pair],
        problem.table.num_params[pair],
        budget_size=problem.budget_size,
        target_size=problem.target_size,
        cost=problem.cost,
    )
    return advice if 1.0 - SURE < advice.probability < SURE else None
