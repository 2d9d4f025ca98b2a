r"""A selection: a pool measured within a budget, its ranking, its control and its cost.

The prediction is Eq 10 with the measured kernel and t free; the rectified law, through the
same losses by the same optimiser, is the control: with one t per candidate Eq 10 *is* the
rectified law with a bound on its offset, so what the kernel adds is the difference of the two
rankings.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.language_modelling import BITS_PER_NAT
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.order_cost import FULL_TUNING, OrderCost
from lensllm_jax.selection.orders import Drop, Order
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.ranking import Ranking

_Row = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Selection:
    """Rows are dictionaries; what is not known in them is None."""

    table: LossTable  # nats per byte; NaN where the order measured nothing
    target_size: int  # size that matters, examples
    halving: Halving  # Algorithm 1 at its start
    spectra: Mapping[str, NtkSpectrum]  # kernel of each candidate that is ranked
    ledger: FlopsLedger  # spent on the candidates: fine-tunes by their tokens, and kernels
    order: Order = Order.DOWNWARDS  # in which sizes were measured
    dropped: Mapping[str, Drop] = dataclasses.field(default_factory=dict)  # before the budget
    costs: tuple[OrderCost, ...] = ()  # of every order and of full tuning
    loss_covariance: Float[np.ndarray, "s c c"] | None = None  # as in ``Evidence``

    @cached_property
    def ranked(self) -> LossTable:
        """The losses of the candidates that were measured at the budget."""
        return self.table.select([name for name in self.table.names if name not in self.dropped])

    @cached_property
    def ranking(self) -> Ranking:
        """By Eq 10."""
        return self._rank("lensllm", Evidence(ntk_spectra=self.spectra, ledger=self.ledger))

    @cached_property
    def control(self) -> Ranking:
        """By the rectified law, on the same losses."""
        return self._rank("rectified")

    @cached_property
    def decision(self) -> Ranking:
        """By the posterior of all losses, which reads no kernel."""
        covariance = self.loss_covariance
        if covariance is not None:
            ranked = [self.table.names.index(name) for name in self.ranked.names]
            covariance = covariance[:, ranked][:, :, ranked]
        return self._rank("posterior", Evidence(loss_covariance=covariance))

    def _rank(self, selector: str, evidence: Evidence | None = None) -> Ranking:
        return rank(
            self.ranked,
            budget_size=self.budget_size,
            target_size=self.target_size,
            selector=selector,
            halving=self.halving,
            evidence=evidence,
        )

    @property
    def budget_size(self) -> int:
        """Largest size that was measured, examples."""
        return int(self.table.sizes[-1])

    @property
    def fits(self) -> LawFits:
        """Eq 10 of every candidate that is ranked, in the table's order."""
        assert self.ranking.fits is not None  # the selector lensllm always fits
        return self.ranking.fits

    @property
    def laws(self) -> dict[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]]:
        """Loss by size of every candidate with a usable fit."""
        fits = {name: self.fits[i] for i, name in enumerate(self.ranked.names)}
        return {name: fit.predict for name, fit in fits.items() if fit.status.usable}

    @property
    def dropped_order(self) -> tuple[str, ...]:
        """Dropped candidates, the last first; of those dropped together, the best predicted."""

        def latest(name: str) -> tuple[int, float]:
            return -self.dropped[name].size, self.dropped[name].predicted

        return tuple(sorted(self.dropped, key=latest))

    def rows(self) -> list[_Row]:
        """The pool, best first, dropped candidates last; losses in nats per byte."""
        budget = self.ranked.by_name(self.budget_size)
        rows = []
        for row in self.ranking.rows():
            name = row["candidate"]
            known = {
                "predicted_loss": self.ranking.predicted[name],
                "bits_per_byte": self.ranking.predicted[name] * BITS_PER_NAT,
                "low_90": row.get("low_90"),
                "high_90": row.get("high_90"),
                "p_beats_next": row["p_beats_next"],
                "rectified_loss": self.control.predicted[name],
                "budget_loss": budget[name],
            }
            rows.append(self._row(row["rank"], name, known))
        for place, name in enumerate(self.dropped_order, start=len(rows) + 1):
            rows.append(self._row(place, name, dict.fromkeys(known)))
        return rows

    def _row(self, place: int, name: str, known: _Row) -> _Row:
        i = self.table.names.index(name)
        row = {
            "rank": place,
            "candidate": name,
            **known,
            "zero_shot_loss": float(self.table.column(0)[i]),
            "num_params": int(self.table.num_params[i]),
            "sizes_paid": int((~np.isnan(self.table.losses[i]) & (self.table.sizes > 0)).sum()),
            "pflops": self.ledger.by_candidate()[name] / 1e15,
        }
        if self.order is Order.UPWARDS:
            row["dropped_at"] = self.dropped[name].size if name in self.dropped else ""
        return row

    def drop_rows(self) -> list[_Row]:
        """Dropped candidates, where, and by what prediction; losses in nats per byte."""
        return [
            {
                "candidate": name,
                "dropped_at": self.dropped[name].size,
                "line_at_target": self.dropped[name].predicted,
                "worst_kept": self.dropped[name].cut,
            }
            for name in self.dropped_order
        ]

    def cost_rows(self) -> list[_Row]:
        """Every order next to full tuning, in PFLOPs and in percent: both ends of its range."""
        full = next((cost.high for cost in self.costs if cost.order == FULL_TUNING), np.nan)
        return [
            {
                "order": cost.order,
                "known": "measured" if cost.measured else "counted",
                "pflops_at_least": cost.low / 1e15,
                "pflops_at_most": cost.high / 1e15,
                "percent_at_least": 100 * cost.low / full,
                "percent_at_most": 100 * cost.high / full,
            }
            for cost in self.costs
        ]
