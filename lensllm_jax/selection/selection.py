r"""A selection: a pool measured within a budget, its ranking, its control and its cost.

The prediction is Eq 10 with the measured kernel and t free; the rectified law, through the
same losses by the same optimiser, is the control: with one t per candidate Eq 10 *is* the
rectified law with a bound on its offset, so what the kernel adds is the difference of the two
rankings.  In a race the posterior decides, over the whole pool, and Eq 10 stands beside it for the
candidates whose kernels were computed.
"""

import dataclasses
import math
from collections.abc import Callable, Mapping
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.language_modelling import BITS_PER_NAT
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.answer import Answer, Model, NextStep
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.order_cost import FULL_TUNING, OrderCost
from lensllm_jax.selection.orders import Drop, Order
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.race import OPENING, Race
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.ranking import Ranking
from lensllm_jax.selection.uncertainty import Probability

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
    race: Race | None = None  # at its end, if the order is a race
    steps: tuple[Mapping[str, Any], ...] = ()  # its fine-tunes, rows of race.csv
    model: Model | None = None  # the pick's fine-tuned weights, if they were saved

    @cached_property
    def ranked(self) -> LossTable:
        """The losses of the candidates that Eq 10 compares.

        Those that were measured at the budget; in a race, those whose kernels were computed.
        """
        names = [name for name in self.table.names if name not in self.dropped]
        if self.race is not None:
            names = [name for name in names if name in self.spectra]
        return self.table.select(names)

    @cached_property
    def ranking(self) -> Ranking:
        """By Eq 10; in a race without kernels, by the posterior."""
        if self.race is not None and not self.spectra:
            return self.decision
        evidence = Evidence(ntk_spectra=self.spectra, ledger=self.ledger)
        return self._rank(self.ranked, "lensllm", evidence)

    @cached_property
    def control(self) -> Ranking:
        """By the rectified law, on the same losses."""
        return self._rank(self.ranked, "rectified")

    @cached_property
    def decision(self) -> Ranking:
        """By the posterior of all losses, the race's in a race, which reads no kernel."""
        table = self.ranked if self.race is None else self.table
        covariance = self.loss_covariance
        if covariance is not None:
            rows = [self.table.names.index(name) for name in table.names]
            covariance = covariance[:, rows][:, :, rows]
        evidence = Evidence(loss_covariance=covariance, ledger=self.ledger)
        ranking = self._rank(table, "posterior", evidence)
        return ranking if self.race is None else ranking.by(self.race.posterior)

    @property
    def verdict(self) -> Ranking:
        """That which decides: the posterior in a race, Eq 10 otherwise."""
        return self.ranking if self.race is None else self.decision

    @cached_property
    def answer(self) -> Answer:
        """What to fine-tune, how sure that is, what it cost."""
        pick, chances = self.verdict.selected, self.decision.probability_best
        known = (name for name in chances if name != pick and not math.isnan(chances[name]))
        others = sorted(known, key=lambda name: -chances[name])
        has_law = self.ranking.has_scores and (self.race is None or bool(self.spectra))
        return Answer(
            candidate=pick,
            target_size=self.target_size,
            probability=chances[pick],
            expected_regret=self.decision.expected_regret[pick],
            predicted_loss=self.verdict.predicted[pick],
            unit=self.table.unit or "in loss",
            cost=self.ledger.total / self._full_tuning if self.costs else None,
            next_best=(others[0], chances[others[0]]) if others else None,
            law_picks=self.ranking.selected if has_law else None,
            reads_kernel=has_law,
            by_law=self.race is None,
            next_step=self._next_step(),
            model=self.model,
            failure=None if self.race is None else self.race.failed.get(pick),
        )

    def _next_step(self) -> NextStep | None:
        if self.race is not None:
            move = self.race.suggestion
            return None if move is None else NextStep(move.candidate, move.size, move.cost)
        advice = self.decision.advice
        return None if advice is None else NextStep(advice.candidate, advice.size, None)

    def _rank(self, table: LossTable, selector: str, evidence: Evidence | None = None) -> Ranking:
        return rank(
            table,
            budget_size=int(table.sizes[-1]),
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
    def fits(self) -> LawFits | None:
        """Eq 10 of every candidate that it compares, in the table's order."""
        return self.ranking.fits

    @property
    def laws(self) -> dict[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]]:
        """Loss by size of every candidate with a usable fit."""
        if self.fits is None:
            return {}
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
        rows = []
        for row in self.verdict.rows():
            name = row["candidate"]
            known = {
                "predicted_loss": self.verdict.predicted[name],
                "bits_per_byte": self.verdict.predicted[name] * BITS_PER_NAT,
                "low_90": row.get("low_90"),
                "high_90": row.get("high_90"),
                "p_beats_next": row["p_beats_next"],
                "p_best": Probability(self.decision.probability_best[name]),
                "expected_regret": self.decision.expected_regret[name],
                **self._laws_of(name),
                **self._largest_of(name),
            }
            rows.append(self._row(row["rank"], name, known))
        for place, name in enumerate(self._left_out_of_verdict, start=len(rows) + 1):
            rows.append(self._row(place, name, dict.fromkeys(known)))
        return rows

    @property
    def _left_out_of_verdict(self) -> tuple[str, ...]:
        return self.dropped_order if self.race is None else ()

    def _laws_of(self, name: str) -> _Row:
        """Losses at the target by the laws, where they were fitted."""
        if self.race is None:
            return {"rectified_loss": self.control.predicted[name]}
        is_fitted = name in self.spectra
        return {
            "lensllm_loss": self.ranking.predicted[name] if is_fitted else None,
            "rectified_loss": self.control.predicted[name] if is_fitted else None,
        }

    def _largest_of(self, name: str) -> _Row:
        """The loss at the budget; in a race, at the largest size of each."""
        losses = self.table.losses[self.table.names.index(name)]
        last = int(np.flatnonzero(~np.isnan(losses))[-1])
        if self.race is None:
            return {"budget_loss": float(losses[last])}
        return {"largest_size": int(self.table.sizes[last]), "largest_loss": float(losses[last])}

    def _row(self, place: int, name: str, known: _Row) -> _Row:
        i = self.table.names.index(name)
        row = {
            "rank": place,
            "candidate": name,
            **known,
            "zero_shot_loss": float(self.table.column(0)[i]),
            "num_params": int(self.table.num_params[i]),
            "sizes_paid": int((~np.isnan(self.table.losses[i]) & (self.table.sizes > 0)).sum()),
            "pflops": self.ledger.by_candidate().get(name, 0.0) / 1e15,
        }
        if self.order is Order.UPWARDS:
            row["dropped_at"] = self.dropped[name].size if name in self.dropped else ""
        if self.race is not None:
            out = self.race.dropped
            row["dropped_at"] = out[name].size if name in out else ""
        return row

    def step_rows(self) -> list[_Row]:
        """A race's fine-tunes that failed or came after the first sizes, and what they changed."""
        return [
            {
                "step": row["step"],
                "candidate": row["candidate"],
                "examples": row["size"],
                "percent_of_tuning_all": 100 * row["cost"],
                "test_loss": row["test_loss"],
                "leader": row["leader"],
                "p_best": Probability(row["p_best"]),
                "reason": row["failure"] or row["reason"],
            }
            for row in self.steps
            if row["failure"] or row["reason"] != OPENING
        ]

    def drop_rows(self) -> list[_Row]:
        """Dropped candidates, where, and by what prediction; losses in nats per byte."""
        if self.race is not None:
            return [
                {
                    "candidate": name,
                    "dropped_at": drop.size,
                    "p_best_at_most": drop.probability_best,
                    "leader": drop.leader,
                }
                for name, drop in self.race.dropped.items()
            ]
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
        full = self._full_tuning
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

    @property
    def _full_tuning(self) -> float:
        """FLOPs of fine-tuning every candidate on the target size; NaN if not known."""
        return next((cost.high for cost in self.costs if cost.order == FULL_TUNING), math.nan)
