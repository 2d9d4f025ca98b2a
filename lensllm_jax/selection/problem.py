"""What every selector is given, and what every selector returns.

Example:
    >>> scores = Scores(np.array([1.2, 1.1]), log_std=np.array([0.1, 0.1]))
    >>> float(scores.confidence.beats(1, 0).round(3))  # that the second beats the first
    0.731
"""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger, TrainingCost
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.posterior import Concordance, Posterior


@dataclasses.dataclass(frozen=True)
class Evidence:
    """What was measured besides the losses; every mapping has an entry per candidate."""

    ntk_losses: Mapping[str, Float[np.ndarray, " num_sizes"]] | None = None  # F, t observed
    # one per size, from the table's first at least up to the budget; NaN = not measured
    ntk_spectra: Mapping[str, NtkSpectrum] | None = None  # F(t), t free
    kernel_flops: Mapping[str, float] | None = None  # cost of each kernel
    weights: Mapping[str, Any] | None = None  # params, or (name, array) pairs of stored tensors
    features: Mapping[str, tuple[np.ndarray, np.ndarray]] | None = None  # (n, d) and labels (n,)
    ledger: FlopsLedger | None = None  # what was spent, instead of an estimate
    loss_covariance: Float[np.ndarray, "s c c"] | None = None  # squared unit of the losses
    # of the test losses of c candidates at s sizes over the same records; NaN = not measured

    def of_each(self, kind: str, names: Sequence[str]) -> list[Any]:
        """One kind of evidence, in the order of ``names``.

        Raises:
            UserError: if a candidate has none.
        """
        mapping = getattr(self, kind) or {}
        missing = [name for name in names if name not in mapping]
        if missing:
            raise checks.UserError(
                f"`{kind}` must have an entry for every candidate, got none for {missing[0]!r}"
            )
        return [mapping[name] for name in names]


@dataclasses.dataclass(frozen=True)
class Problem:
    """A selection problem: what was measured within the budget, and the size that matters."""

    table: LossTable  # sizes up to the budget only
    target_size: int  # examples
    halving: Halving = dataclasses.field(default_factory=Halving)  # Algorithm 1 at its start
    evidence: Evidence = dataclasses.field(default_factory=Evidence)
    cost: TrainingCost = dataclasses.field(default_factory=TrainingCost)

    @property
    def budget_size(self) -> int:
        """Largest size within the budget."""
        return int(self.table.sizes[-1])

    @property
    def octaves(self) -> float:
        """Doublings from the budget to the target."""
        return math.log2(self.target_size / self.budget_size)

    @property
    def measured(self) -> Bool[np.ndarray, "num_candidates num_sizes"]:
        """Where the table has a loss."""
        return ~np.isnan(self.table.losses)

    @property
    def train_sizes(self) -> tuple[tuple[int, ...], ...]:
        """Sizes above 0 that each candidate was fine-tuned on."""
        trained = self.measured & (self.table.sizes > 0)
        return tuple(tuple(int(size) for size in self.table.sizes[row]) for row in trained)

    def at_budget(self, budget_size: int, target_size: int) -> "Problem":
        """The same problem seen from a smaller budget."""
        table, evidence = self.table.up_to(budget_size), self.evidence
        if evidence.loss_covariance is not None:
            covariance = evidence.loss_covariance[: len(table.sizes)]
            evidence = dataclasses.replace(evidence, loss_covariance=covariance)
        if evidence.ntk_losses is not None:
            ntk_losses = {name: f[: len(table.sizes)] for name, f in evidence.ntk_losses.items()}
            evidence = dataclasses.replace(evidence, ntk_losses=ntk_losses)
        return dataclasses.replace(self, table=table, target_size=target_size, evidence=evidence)

    def among(self, rows: Int[np.ndarray, " m"]) -> "Problem":
        """The same problem of some of the candidates, with the losses alone as evidence."""
        covariance = self.evidence.loss_covariance
        if covariance is not None:
            covariance = covariance[:, rows][:, :, rows]
        return dataclasses.replace(
            self,
            table=self.table.select([self.table.names[row] for row in rows]),
            evidence=Evidence(loss_covariance=covariance),
        )


@dataclasses.dataclass(frozen=True)
class Scores:
    """A selector's result; the smaller a score, the better the candidate."""

    scores: Float[np.ndarray, " num_candidates"]  # predicted losses where ``predicts``
    log_std: Float[np.ndarray, " num_candidates"] | None = None  # of log predicted losses
    dof: float = math.inf  # degrees of freedom of log predicted losses; infinite: normal
    distance_std: Float[np.ndarray, " num_candidates"] | float = 0.0  # see ``Posterior``
    # share of pairs in right order, of scores that predict nothing
    concordance: float | None = None
    predicts: bool = True  # scores are losses at the target, nats per byte
    bigger_is_better: bool = False  # scores rank the other way round
    reads_losses: bool = True  # scores depend on the measured losses
    messages: tuple[str, ...] | None = None  # how each candidate's fit ended
    spent: tuple[tuple[int, ...], ...] | None = None  # sizes fine-tuned on, by candidate
    fits: LawFits | None = None  # of the law behind the scores, one per candidate

    def ranks_by(self) -> Float[np.ndarray, " num_candidates"]:
        """What to sort by, ascending; NaN (no usable fit) sorts last."""
        return -self.scores if self.bigger_is_better else self.scores

    def best_first(self) -> Int[np.ndarray, " num_candidates"]:
        """Candidates, best first."""
        return np.argsort(self.ranks_by(), kind="stable")

    @property
    def confidence(self) -> Posterior | Concordance:
        """How sure the order is; a concordance of NaN without evidence."""
        if self.log_std is not None and self.predicts:
            with np.errstate(divide="ignore", invalid="ignore"):
                return Posterior(np.log(self.scores), self.log_std, self.dof, self.distance_std)
        share = math.nan if self.concordance is None else self.concordance
        return Concordance(self.ranks_by(), share)


Selector = Callable[[Problem], Scores]
