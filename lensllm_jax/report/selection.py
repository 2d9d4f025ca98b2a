r"""Selection report: the ranking of a pool, with its control and its cost.

The prediction is Eq 10 with the measured kernel and t free; the rectified law, through the
same losses by the same optimiser, is the control: with one t a candidate Eq 10 *is* the
rectified law with a bound on its offset, so what the kernel adds is the difference of the two
columns.

Example:
    >>> from lensllm_jax.report.selection import markdown_table
    >>> print(markdown_table([{"candidate": "a", "loss": 1.25}]))
    | candidate | loss |
    |---|---|
    | a | 1.2500 |
"""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.data.task import Task
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.report.page import Probability
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.order_cost import FULL_TUNING, OrderCost
from lensllm_jax.selection.orders import Drop, Order
from lensllm_jax.selection.rank import Ranking, rank

Row = Mapping[str, Any]
COST_NOTE = (
    "Orders with the kernels of the candidates that they rank; full tuning: every candidate once "
    "on the target size. Measured: the tokens that were trained on. Counted: the order replayed "
    "on the same losses, at the same tokens an example; at least and at most differ where it hangs "
    "on losses that nobody measured."
)
DROPPED_NOTE = (
    "Given up after dropped_at examples: a straight line of log loss on log size through its last "
    "losses ends above those of the candidates that went on."
)
LEVEL = 0.9
BEATS = "P beats the next"
PIPE = r"\|"  # a bare one would open a new column


@dataclasses.dataclass(frozen=True)
class Selection:
    """A pool measured under a budget, and what follows from it.

    Attributes:
        table: measured losses, nats per target token; NaN where the order did not ask.
        target_size: size that matters, examples.
        gamma: Algorithm 1: accepted losses before it may stop.
        tau: Algorithm 1: residual deviations at which it stops.
        spectra: kernel of each candidate that is ranked.
        ledger: spent on the candidates: fine-tunes by their tokens, and kernels.
        task: what was fine-tuned on.
        command: what made all this.
        order: in which sizes were measured.
        dropped: candidates given up before the budget, and why.
        costs: of every order and of full tuning.
    """

    table: LossTable
    target_size: int
    gamma: int
    tau: float
    spectra: Mapping[str, NtkSpectrum]
    ledger: FlopsLedger
    task: Task
    command: str
    order: Order = Order.DOWNWARDS
    dropped: Mapping[str, Drop] = dataclasses.field(default_factory=dict)
    costs: tuple[OrderCost, ...] = ()

    @cached_property
    def ranked(self) -> LossTable:
        """The losses of the candidates that were measured at the budget."""
        return self.table.select([name for name in self.table.names if name not in self.dropped])

    @cached_property
    def ranking(self) -> Ranking:
        """LensLLM's verdict."""
        return self._rank("lensllm", ntk_spectra=self.spectra, ledger=self.ledger)

    @cached_property
    def control(self) -> Ranking:
        """The rectified law's verdict on the same losses."""
        return self._rank("rectified")

    def _rank(self, selector: str, **more: Any) -> Ranking:
        budget_size = int(self.table.sizes[-1])
        return rank(
            self.ranked, budget_size=budget_size, target_size=self.target_size, selector=selector,
            gamma=self.gamma, tau=self.tau, **more,
        )  # fmt: skip

    @property
    def fits(self) -> LawFits:
        """Eq 10 of every candidate, as the ranking fitted it."""
        assert self.ranking.fits is not None  # the selector lensllm always fits
        return self.ranking.fits

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates that are ranked, in the table's order."""
        return self.ranked.names

    def laws(self) -> dict[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]]:
        """The fitted law of every candidate with a usable fit, as a function of size."""
        usable = [i for i in range(len(self.names)) if self.fits[i].status.usable]
        return {self.names[i]: self.fits[i].predict for i in usable}

    def rows(self) -> list[dict[str, Any]]:
        """The pool, best first, dropped candidates last; losses in nats per target token.

        How sure the order is stands beside the prediction; what is not known is None.
        """
        budget = self.ranked.column(int(self.table.sizes[-1]))
        rows = []
        for row in ranking_rows(self.ranking):
            name = row["candidate"]
            known = {
                "predicted_loss": self.ranking.predicted[name],
                "low_90": _known(row.get("low 90%")),
                "high_90": _known(row.get("high 90%")),
                "p_beats_next": row[BEATS],
                "rectified_loss": self.control.predicted[name],
                "budget_loss": float(budget[self.names.index(name)]),
            }
            rows.append(self._row(row["rank"], name, known))
        for place, name in enumerate(self.dropped_order, start=len(rows) + 1):
            rows.append(self._row(place, name, dict.fromkeys(known)))
        return rows

    @property
    def dropped_order(self) -> tuple[str, ...]:
        """Who was dropped: the last first, and of those dropped together the best predicted."""

        def latest(name: str) -> tuple[int, float]:
            return -self.dropped[name].size, self.dropped[name].predicted

        return tuple(sorted(self.dropped, key=latest))

    def _row(self, place: int, name: str, known: Row) -> dict[str, Any]:
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

    def drop_rows(self) -> list[dict[str, Any]]:
        """Who was dropped, where, and by what prediction; losses in nats per target token."""
        return [
            {
                "candidate": name,
                "dropped_at": self.dropped[name].size,
                "line_at_target": self.dropped[name].predicted,
                "worst_kept": self.dropped[name].cut,
            }
            for name in self.dropped_order
        ]

    def cost_rows(self) -> list[dict[str, Any]]:
        """Every order beside full tuning, in PFLOPs and in percent: both ends of what is known."""
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


def ranking_rows(ranking: Ranking) -> list[dict[str, Any]]:
    """The ranking, best first, with how sure it is.

    Args:
        ranking: of any selector.

    Returns:
        Rows: place, candidate, score, interval, P(beats the next), P(the first beats it).
    """
    rows = []
    for place, name in enumerate(ranking.order, start=1):
        low, high = interval_of(ranking, name)
        row: dict[str, Any] = {"rank": place, "candidate": name, "score": ranking.scores[name]}
        if ranking.log_std:
            row |= {"low 90%": low, "high 90%": high}
        following = ranking.order[place] if place < len(ranking.order) else None
        row[BEATS] = None if following is None else _chance(ranking, name, following)
        row["P the first beats it"] = (
            None if place == 1 else _chance(ranking, ranking.order[0], name)
        )
        rows.append(row)
    return rows


def _chance(ranking: Ranking, first: str, second: str) -> Probability:
    """That the first beats the second; where it is a share of pairs, they set its limit."""
    value = ranking.probability(first, second)
    if ranking.log_std:
        return Probability(value)
    count = len(ranking.order)
    return Probability(value, limit=Probability.limit_of(count * (count - 1) // 2))


def interval_of(ranking: Ranking, name: str) -> tuple[float, float]:
    """The 90% interval of a predicted loss; NaN where no past tells one."""
    if name not in ranking.log_std:
        return float("nan"), float("nan")
    return ranking.interval(name, level=LEVEL)


def _known(value: float | None) -> float | None:
    return None if value is None or np.isnan(value) else value


def shown(cell: Any) -> str:
    """A cell of a table: floats with four decimals, small ones with four digits.

    A probability is shown as far as the evidence can tell; None as a dash.

    Args:
        cell: what stands there.

    Returns:
        Text.
    """
    if cell is None:
        return "-"
    if isinstance(cell, Probability) or not isinstance(cell, float):
        return str(cell)
    return f"{cell:.4g}" if 0 < abs(cell) < 1e-3 else f"{cell:.4f}"


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, cells as :func:`shown`.

    Args:
        rows: dictionaries of the same keys.

    Returns:
        The table, without a newline at its end.
    """

    def line(cells: Iterable[Any]) -> str:
        return f"| {' | '.join(shown(cell).replace('|', PIPE) for cell in cells)} |"

    header = rows[0].keys()
    return "\n".join([line(header), "|" + "---|" * len(header), *(line(r.values()) for r in rows)])


def selection_markdown(selection: Selection) -> str:
    """The report of a run.

    Args:
        selection: what was measured.

    Returns:
        A Markdown page; its figures lie beside it.
    """
    table, task = selection.table, selection.task
    losses = [
        {"candidate": name, **{str(s): _loss(x) for s, x in zip(table.sizes, row, strict=True)}}
        for name, row in zip(table.names, table.losses, strict=True)
    ]
    fits = [
        {
            "candidate": name,
            **{parameter: f"{value:.4g}" for parameter, value in selection.fits[i].params.items()},
            "log-RMSE": selection.fits[i].log_rmse,
            "what the fit says": selection.fits[i].message,
        }
        for i, name in enumerate(selection.names)
    ]
    agree = "the same" if selection.ranking.order == selection.control.order else "differently"
    splits = f"{len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test"
    return f"""\
# Which candidate for `{task.name}`?

Best at {selection.target_size} training examples, by Eq 10 from at most {table.sizes[-1]}:
**{selection.ranking.selected}**. The rectified law, fitted to the same losses by the same
optimiser, ranks the pool {agree}.

{markdown_table(selection.rows())}
{_advice(selection)}
Losses are nats per target token. `predicted_loss` is L(D) = B / (F(Θ, t) + D^β) + E with F of the
measured kernel and t free, `low_90` to `high_90` its interval relative to the other candidates,
`p_beats_next` the probability of a lower loss at the target than the candidate below;
`rectified_loss` is the control; `budget_loss` and `zero_shot_loss` are measured. `pflops` counts
6 N per training token, and the kernel.

![Measured losses and fitted laws](loss_curves.png)

## Measured losses

{markdown_table(losses)}

A dash is a size that the order `{selection.order.value}` did not ask for.
{_dropped(selection)}
## Cost

{_costs(selection)}

## Fits

{markdown_table(fits)}

![Kernel spectra](kernel_spectra.png)

## How this was made

```
{selection.command}
```

{task.description}

{splits} examples (sha256 {task.fingerprint[:16]}); left out: {dict(task.removed)}. Settings
and versions: `run.json`.
"""


def _advice(selection: Selection) -> str:
    advice = selection.ranking.advice
    return "" if advice is None else f"\n{advice}\n"


def _dropped(selection: Selection) -> str:
    if not selection.dropped:
        return ""
    return f"""
## Dropped

{markdown_table(selection.drop_rows())}

{DROPPED_NOTE}
"""


def _costs(selection: Selection) -> str:
    if not selection.costs:
        return f"{selection.ranking.flops / 1e15:.4g} PFLOPs."
    return f"{markdown_table(selection.cost_rows())}\n\n{COST_NOTE}"


def _loss(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"
