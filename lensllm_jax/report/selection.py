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
from lensllm_jax.scaling.laws import NtkSpectrum
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.rank import Ranking, rank

Row = Mapping[str, Any]
PIPE = r"\|"  # a bare one would open a new column


@dataclasses.dataclass(frozen=True)
class Selection:
    """A pool measured under a budget, and what follows from it.

    Attributes:
        table: measured losses, nats per target token; NaN where Algorithm 1 had stopped.
        target_size: size that matters, examples.
        gamma: Algorithm 1: accepted losses before it may stop.
        tau: Algorithm 1: residual deviations at which it stops.
        spectra: kernel of each candidate.
        searches: Algorithm 1 of each candidate, at its end.
        ledger: spent on the candidates: fine-tunes by their tokens, and kernels.
        task: what was fine-tuned on.
        command: what made all this.
    """

    table: LossTable
    target_size: int
    gamma: int
    tau: float
    spectra: Mapping[str, NtkSpectrum]
    searches: Mapping[str, Halving]
    ledger: FlopsLedger
    task: Task
    command: str

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
            self.table, budget_size=budget_size, target_size=self.target_size, selector=selector,
            gamma=self.gamma, tau=self.tau, **more,
        )  # fmt: skip

    @property
    def fits(self) -> LawFits:
        """Eq 10 of every candidate, as the ranking fitted it."""
        assert self.ranking.fits is not None  # the selector lensllm always fits
        return self.ranking.fits

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates, in the table's order."""
        return self.table.names

    def laws(self) -> dict[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]]:
        """The fitted law of every candidate with a usable fit, as a function of size."""
        usable = [i for i in range(len(self.names)) if self.fits[i].status.usable]
        return {self.names[i]: self.fits[i].predict for i in usable}

    def rows(self) -> list[dict[str, Any]]:
        """The ranking, best first; losses in nats per target token."""
        budget = self.table.column(int(self.table.sizes[-1]))
        zero_shot = self.table.column(0)
        flops = self.ranking.ledger.by_candidate()
        rows = []
        for place, name in enumerate(self.ranking.order, start=1):
            i = self.names.index(name)
            rows.append(
                {
                    "rank": place,
                    "candidate": name,
                    "predicted_loss": self.ranking.predicted[name],
                    "rectified_loss": self.control.predicted[name],
                    "budget_loss": float(budget[i]),
                    "zero_shot_loss": float(zero_shot[i]),
                    "num_params": int(self.table.num_params[i]),
                    "sizes_paid": len(self.searches[name].sizes_spent),
                    "pflops": flops[name] / 1e15,
                }
            )
        return rows


def markdown_table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, floats with four decimals.

    Args:
        rows: dictionaries of the same keys.

    Returns:
        The table, without a newline at its end.
    """

    def line(cells: Iterable[Any]) -> str:
        texts = (f"{cell:.4f}" if isinstance(cell, float) else str(cell) for cell in cells)
        return f"| {' | '.join(text.replace('|', PIPE) for text in texts)} |"

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
        for i, name in enumerate(table.names)
    ]
    agree = "the same" if selection.ranking.order == selection.control.order else "differently"
    splits = f"{len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test"
    return f"""\
# Which candidate for `{task.name}`?

Best at {selection.target_size} training examples, by Eq 10 from at most {table.sizes[-1]}:
**{selection.ranking.selected}**. The rectified law, fitted to the same losses by the same
optimiser, ranks the pool {agree}.

{markdown_table(selection.rows())}

Losses are nats per target token. `predicted_loss` is L(D) = B / (F(Θ, t) + D^β) + E with F of
the measured kernel and t free; `rectified_loss` is the control; `budget_loss` and
`zero_shot_loss` are measured. `pflops` counts 6 N per training token, and the kernel.

![Measured losses and fitted laws](loss_curves.png)

## Measured losses

{markdown_table(losses)}

A dash is a size that Algorithm 1 did not ask for.

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


def _loss(value: float) -> str:
    return "-" if np.isnan(value) else f"{value:.4f}"
