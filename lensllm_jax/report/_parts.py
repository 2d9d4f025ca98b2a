"""Parts that several reports share: losses, intervals, curves, spectra, and how they were made."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.report import figures
from lensllm_jax.report.sections import Block, Command, Definitions, Drawing, Table, Text, literal
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.ranking import Ranking

Run = Mapping[str, Any]  # content of run.json


def losses_table(measured: LossTable) -> Table:
    """Measured losses; a dash is a size that was not measured."""
    rows = [
        {
            "candidate": name,
            **{f"{s:,}": float(x) for s, x in zip(measured.sizes, row, strict=True)},
        }
        for name, row in zip(measured.names, measured.losses, strict=True)
    ]
    return Table(rows, f"{measured.in_unit('test loss')} by training examples")


def certainty(ranking: Ranking) -> list[Block]:
    """Why there are no intervals, and what to measure next."""
    texts = []
    if not ranking.log_std and ranking.predicted:
        texts.append(
            "No intervals: they come from the selector's own past, which needs four sizes above 0."
        )
    if ranking.advice is not None:
        texts.append(literal(str(ranking.advice)))
    return [Text(text) for text in texts]


def curves(
    measured: LossTable,
    laws: Mapping[str, Callable[..., Any]],
    ranking: Ranking,
    *,
    law: str | None = None,
) -> Drawing:
    """Measured losses, laws (of the selector ``law``), predictions and their intervals."""
    drawn = figures.draw_loss_curves(
        measured, laws, target_size=ranking.target_size, predicted=ranking.predicted,
        intervals=ranking.intervals,
    )  # fmt: skip
    lines = f" Lines: the law of {law or ranking.selector}." if laws else ""
    dashed = (
        " Dashed: from the last loss to the star." if ranking.predicted.keys() - laws.keys() else ""
    )
    bars = "; bars: 90% interval relative to the other candidates" if ranking.log_std else ""
    losses = ", ".join(f"{n} {ranking.predicted[n]:.3f}" for n in ranking.order)
    return Drawing(
        "Measured losses and fitted laws",
        "loss_curves.png",
        figures.svg(*drawn),
        f"Points: measured. Stars: prediction of {ranking.selector} at {ranking.target_size:,} "
        f"examples{bars}.{lines}{dashed}",
        f"Loss against training examples. Predicted at {ranking.target_size}: {losses}.",
    )


def spectra(eigenvalues: Mapping[str, Float[np.ndarray, " n"]]) -> Drawing:
    """Eigenvalues of each candidate's kernel."""
    ranges = ", ".join(
        f"{name} from {values.max():.3g} to {values.min():.3g}"
        for name, values in eigenvalues.items()
    )
    return Drawing(
        "Kernel spectra",
        "kernel_spectra.png",
        figures.svg(*figures.draw_kernel_spectra(eigenvalues)),
        "Eigenvalues of each kernel, largest first.",
        f"Kernel eigenvalues, largest to smallest: {ranges}.",
    )


def settings(run: Run) -> Definitions:
    """Settings, then versions."""
    versions = {k: v for k, v in run.items() if k not in ("settings", "command")}
    return Definitions({**run["settings"], **versions})


def command(run: Run) -> Command:
    """What made the run."""
    return Command(run["command"])
