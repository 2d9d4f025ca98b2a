"""Pools drawn from loss tables, and the posterior's constants that they choose."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache

import numpy as np
from scipy import stats

from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.posterior import Posterior
from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.selectors import ats, pooled
from lensllm_jax.selection.selectors.posterior import Constants, Views

POOLS = (3, 6, 10)
CHOSEN_ON = 6
SHORT, LONG = (4, 8, 16), (16, 64, 256)
EVERY = (8, 16, 32, 64, 128, 256, 512)
CHOICES = {
    "local": (0.2, 0.4, 0.55, 0.7),
    "slopes": (0.0, 0.15, 0.3, 0.45, 0.6),
    "budget": (0.0, 0.05, 0.1),
    "convergence": (0.0, 1.8, 2.7, 3.6, 4.5, 6.0),
    "width": (0.5, 0.6, 0.7, 0.8, 1.0),
    "dof": (4.0, 8.0, 16.0),
}
VIEWS = ("local view", "slopes model", "loss at the budget")
NUM_SWEEPS = 2
MOST_CASES = 180  # of a table, that choose constants


@dataclasses.dataclass(frozen=True, eq=False)
class Case:
    """A pool at a budget."""

    task: str
    pool: int
    divisor: int
    truth: np.ndarray  # losses at the target
    views: Views  # what the posterior reads, whatever its constants
    others: Mapping[str, np.ndarray]  # selector or view -> predicted losses


def cases_of(table: LossTable, draws: int) -> Iterator[Case]:
    """Drawn pools, then all candidates."""
    rng, target = np.random.default_rng(0), int(table.sizes[-1])
    few = LONG if target // LONG[-1] in table.sizes else SHORT
    for pool in (p for p in POOLS if p < len(table.names)):
        for _ in range(draws):
            rows = np.sort(rng.choice(len(table.names), pool, replace=False))
            part = table.select([table.names[i] for i in rows])
            yield from (case_of(part, target, divisor) for divisor in few)
    every = EVERY if few == LONG else (2, *SHORT)
    yield from (case_of(table, target, divisor) for divisor in every)


def case_of(table: LossTable, target: int, divisor: int) -> Case:
    problem = Problem(table, target).at_budget(target // divisor, target)
    views = Views.of(problem)
    others = dict(zip(VIEWS, np.exp(views.log_losses), strict=True))
    others["pooled"] = np.exp(pooled.views(problem).mean(0))
    others["ats"] = ats.score(problem).scores
    return Case(table.task, len(table.names), divisor, table.column(target), views, others)


def pick_metrics(case: Case, predicted: np.ndarray) -> tuple[float, float, float]:
    """Regret in percent, whether the best was picked, RelAcc in percent."""
    picked, best = float(case.truth[np.argmin(predicted)]), float(case.truth.min())
    regret = 100.0 * (picked / best - 1.0)
    return regret, float(picked == best), relative_accuracy(picked, case.truth)


def belief_metrics(case: Case, belief: Posterior) -> tuple[float, ...]:
    """Brier, the shares of losses within the 50 and 90 % intervals, log score, PearCorr (%).

    The log score is the mean log density of log losses relative to the pool's mean.
    """
    first, second = np.triu_indices(len(case.truth), 1)
    wins = case.truth[first] < case.truth[second]
    brier = float(np.mean((belief.beats(first, second) - wins) ** 2))
    error = np.log(case.truth) - belief.center
    z = np.abs(error - error.mean()) / belief.interval_std
    inside = [float(np.mean(z < belief.quantile(0.5 + 0.5 * level))) for level in (0.5, 0.9)]
    density = stats.t.logpdf(error - error.mean(), belief.dof, scale=belief.interval_std)
    correlation = pearson_correlation(np.exp(belief.center), case.truth)
    return brier, *inside, float(density.mean()), correlation


def cost_on(cases: Sequence[Case]) -> Callable[[Constants], float]:
    """What constants cost on the pools of one table; computed once for each."""
    cases = [case for case in cases if case.pool == CHOSEN_ON][:MOST_CASES]
    of_ats = np.mean([pick_metrics(case, case.others["ats"])[0] for case in cases])

    @cache
    def cost(constants: Constants) -> float:
        costs = []
        for case in cases:
            belief = case.views.posterior(constants)
            regret = pick_metrics(case, belief.center)[0] / of_ats
            brier, *_, log_score, _ = belief_metrics(case, belief)
            costs.append(regret + 4.0 * brier - log_score)
        return float(np.mean(costs))

    return cost


def constants_chosen_on(tables: Sequence[Callable[[Constants], float]]) -> Constants:
    """Coordinate ascent over CHOICES of the mean cost on some tables."""

    def cost(constants: Constants) -> float:
        return float(np.mean([on(constants) for on in tables]))

    best = Constants(**{name: values[len(values) // 2] for name, values in CHOICES.items()})
    for _, name in itertools.product(range(NUM_SWEEPS), CHOICES):
        tried = [dataclasses.replace(best, **{name: value}) for value in CHOICES[name]]
        best = min([best, *tried], key=cost)  # the first of equals
    return best


def constants_left_out(cases: Mapping[str, Sequence[Case]]) -> dict[str, Constants]:
    """By table: the constants that all others choose."""
    costs = {task: cost_on(members) for task, members in cases.items()}
    return {
        task: constants_chosen_on([on for other, on in costs.items() if other != task])
        for task in costs
    }
