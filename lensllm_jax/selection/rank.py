r"""Ranks candidates by what their loss will be after fine-tuning on the whole data.

Every selector has one signature: a loss table cut at a budget and a target size in, a
:class:`Ranking` out: predicted losses where the selector can predict, the order, the probability
that one candidate beats another at the target, and the FLOPs of the measurements that it needs.
The formula of selector NAME is in ``selection/selectors/NAME.py``.

Example:
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

import time

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.selection.flops import Entry, FlopsLedger, TrainingCost
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Evidence, Problem, Scores
from lensllm_jax.selection.ranking import Ranking
from lensllm_jax.selection.selectors import SELECTORS
from lensllm_jax.selection.uncertainty import (
    Contender,
    NextMeasurement,
    next_measurement,
    with_uncertainty,
)

_SURE = 0.9  # P(leader beats runner-up) from which the two are separated


def rank(
    table: LossTable,
    *,
    budget_size: int,
    target_size: int,
    selector: str = "posterior",
    halving: Halving | None = None,
    evidence: Evidence | None = None,
    cost: TrainingCost | None = None,
) -> Ranking:
    """Ranks the candidates of ``table`` at ``target_size`` from losses up to ``budget_size``.

    Args:
        table: measured losses; sizes above the budget are not read.
        budget_size: largest subset within the budget, examples; a column of the table.
        target_size: size that matters, examples; above the budget, not necessarily a column.
        selector: a key of ``SELECTORS``.
        halving: gamma and tau of Algorithm 1 and AtS.
        evidence: what was measured besides the losses: kernels for lensllm, weights for
            nlp_metrics, features for logme, the ledger of what was spent.
        cost: tokens per example, epochs and search rounds of a fine-tune.

    Returns:
        The order, and how sure it is.

    Raises:
        UserError: for an unknown selector, a size that is missing, or a target below the budget.
    """
    checks.one_of("selector", selector, SELECTORS)
    if not isinstance(table, LossTable):
        raise checks.UserError(
            f"`table` must be a LossTable, got {table!r:.80}: take one from `load_loss_table` or "
            "`read_loss_table`"
        )
    if budget_size not in table.sizes.tolist() or budget_size <= 0:
        raise checks.UserError(
            f"`budget_size` must be one of the table's sizes above 0 {table.sizes.tolist()}, "
            f"got {budget_size}"
        )
    if not budget_size < checks.positive("target_size", target_size) < 2**63:
        raise checks.UserError(
            f"`target_size` must be above `budget_size` {budget_size} and below 2**63, got "
            f"{target_size}"
        )
    whole = Problem(
        table,
        target_size,
        halving or Halving(),
        evidence or Evidence(),
        cost or TrainingCost(),
    )
    problem = whole.at_budget(budget_size, target_size)
    start = time.perf_counter()
    scores = with_uncertainty(problem, SELECTORS[selector])
    return _ranking(selector, problem, scores, time.perf_counter() - start)


def _ranking(selector: str, problem: Problem, scores: Scores, seconds: float) -> Ranking:
    names, best_first = problem.table.names, scores.best_first()

    def by_name(values: Float[np.ndarray, " num_candidates"]) -> dict[str, float]:
        return dict(zip(names, map(float, values), strict=True))

    return Ranking(
        selector=selector,
        budget_size=problem.budget_size,
        target_size=problem.target_size,
        scores=by_name(scores.scores),
        predicted=by_name(scores.scores) if scores.predicts else {},
        order=tuple(names[i] for i in best_first),
        messages=dict(zip(names, scores.messages or ("",) * len(names), strict=True)),
        confidence=scores.confidence,
        advice=_advice(problem, scores, best_first),
        ledger=_ledger(selector, problem, scores),
        fits=scores.fits,
        seconds=seconds,
    )


def _ledger(selector: str, problem: Problem, scores: Scores) -> FlopsLedger:
    """What was spent, or what the selector's measurements cost."""
    if problem.evidence.ledger is not None:
        return problem.evidence.ledger
    table, cost = problem.table, problem.cost
    spent = scores.spent or ((),) * len(table.names)
    entries = [
        Entry(name, "train", size, cost.flops(float(num_params), size))
        for name, num_params, sizes in zip(table.names, table.num_params, spent, strict=True)
        for size in sizes
    ]
    if selector == "lensllm":
        kernels = problem.evidence.kernel_flops or {}
        entries += [Entry(name, "kernel", 0, flops) for name, flops in kernels.items()]
    return FlopsLedger(tuple(entries))


def _advice(
    problem: Problem, scores: Scores, best_first: Int[np.ndarray, " num_candidates"]
) -> NextMeasurement | None:
    """What to measure next if the first two candidates are not separated."""
    if scores.log_std is None or len(best_first) < 2:
        return None
    pair = best_first[:2]
    if not np.isfinite(scores.scores[pair]).all():
        return None
    leader, runner_up = (
        Contender(
            problem.table.names[i],
            float(scores.scores[i]),
            float(scores.log_std[i]),
            float(problem.table.num_params[i]),
        )
        for i in pair
    )
    advice = next_measurement(
        leader,
        runner_up,
        budget_size=problem.budget_size,
        target_size=problem.target_size,
        cost=problem.cost,
        dof=scores.dof,
    )
    return advice if 1.0 - _SURE < advice.probability < _SURE else None
