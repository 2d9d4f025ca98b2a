"""What every selector is given, and what every selector gives back.

Example:
    >>> import numpy as np
    >>> scores = Scores(np.array([1.2, 1.1]), log_std=np.array([0.1, 0.1]))
    >>> float(scores.probabilities()[1, 0].round(3))  # that the second beats the first
    0.731
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger, TrainingCost
from lensllm_jax.selection.loss_table import LossTable

Matrix = Float[np.ndarray, "num_candidates num_candidates"]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A selection problem: what was measured under the budget, and the size that matters."""

    table: LossTable  # sizes up to the budget only
    target_size: int  # examples
    gamma: int = 3  # Algorithm 1: pairs before the test begins
    tau: float = 5.0  # Algorithm 1: residuals' standard deviations that a pair may be off
    ntk_losses: Mapping[str, Float[np.ndarray, " num_sizes"]] | None = None  # F, t observed
    ntk_spectra: Mapping[str, NtkSpectrum] | None = None  # F(t), t free
    kernel_flops: Mapping[str, float] | None = None  # cost of each candidate's kernel
    weights: Mapping[str, Any] | None = None  # params, or a safetensors file or folder
    features: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None  # (n, d) and labels (n,)
    cost: TrainingCost = dataclasses.field(default_factory=TrainingCost)

    @property
    def budget_size(self) -> int:
        """Largest size paid for."""
        return int(self.table.sizes[-1])

    @property
    def octaves(self) -> float:
        """Doublings from the budget to the target."""
        return math.log2(self.target_size / self.budget_size)

    def at_budget(self, budget_size: int, target_size: int) -> "Problem":
        """The same problem seen from a smaller budget."""
        table = self.table.up_to(budget_size)
        ntk_losses = self.ntk_losses
        if ntk_losses is not None:
            ntk_losses = {name: f[: len(table.sizes)] for name, f in ntk_losses.items()}
        return dataclasses.replace(
            self, table=table, target_size=target_size, ntk_losses=ntk_losses
        )

    def train_sizes(self, row: int) -> tuple[int, ...]:
        """Sizes above 0 that candidate ``row`` was fine-tuned on."""
        measured = ~np.isnan(self.table.losses[row]) & (self.table.sizes > 0)
        return tuple(int(size) for size in self.table.sizes[measured])


@dataclasses.dataclass(frozen=True)
class Scores:
    """A selector's verdict; the smaller a score, the better the candidate."""

    scores: Float[np.ndarray, " num_candidates"]  # predicted losses where ``predicts``
    log_std: Float[np.ndarray, " num_candidates"] | None = None  # of log predicted losses
    concordance: float | None = (
        None  # share of pairs in right order, of scores that predict nothing
    )
    predicts: bool = True  # scores are losses at the target, nats per token
    bigger_is_better: bool = False  # scores rank the other way round
    reads_losses: bool = True  # scores depend on the measured losses
    picks: Float[np.ndarray, " num_candidates"] | None = None  # the lowest comes first, if given
    messages: tuple[str, ...] | None = None  # one a candidate: how its fit ended
    spent: tuple[tuple[int, ...], ...] | None = None  # sizes paid for, one tuple a candidate
    fits: LawFits | None = None  # of the law that made the scores, one a candidate

    def ranks_by(self) -> Float[np.ndarray, " num_candidates"]:
        """What to sort by, ascending; NaN (no usable fit) sorts last."""
        return -self.scores if self.bigger_is_better else self.scores

    def best_first(self) -> Int[np.ndarray, " num_candidates"]:
        """Candidates, best first: the pick, then the others by score."""
        order = np.argsort(self.ranks_by(), kind="stable")
        if self.picks is None or np.isnan(self.picks).all():
            return order
        pick = int(np.nanargmin(self.picks))
        return np.concatenate([[pick], order[order != pick]])

    def probabilities(self) -> Matrix:
        """P(row beats column) at the target; 0.5 on the diagonal, NaN without evidence."""
        values = self.ranks_by()
        if self.log_std is None or not self.predicts:
            known = math.nan if self.concordance is None else self.concordance
            wins = np.where(values[:, None] < values[None, :], known, 1.0 - known)
            return np.where(values[:, None] == values[None, :], 0.5, wins)
        center = np.log(self.scores)
        gap = center[None, :] - center[:, None]
        spread = np.sqrt(self.log_std[:, None] ** 2 + self.log_std[None, :] ** 2)
        with np.errstate(invalid="ignore", divide="ignore"):
            z = np.where(gap == 0.0, 0.0, gap / spread)
        return 0.5 * (1.0 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2.0)))


def ledger_of(problem: Problem, scores: Scores) -> FlopsLedger:
    """The ledger of everything that the selector asked for."""
    ledger = FlopsLedger()
    table = problem.table
    if scores.spent is None:
        return ledger
    for name, num_params, sizes in zip(table.names, table.num_params, scores.spent, strict=True):
        for size in sizes:
            ledger = ledger.train(
                name,
                num_params=float(num_params),
                num_examples=size,
                num_tokens=problem.cost.tokens(size),
            )
    return ledger


def check_mapping(what: str, mapping: Mapping[str, Any] | None, table: LossTable) -> Mapping:
    """``mapping``, if it has an entry for every candidate."""
    missing = [name for name in table.names if name not in (mapping or {})]
    if mapping is None or missing:
        raise checks.UserError(
            f"`{what}` must have an entry for every candidate, got none for {missing[0]!r}"
        )
    return mapping
