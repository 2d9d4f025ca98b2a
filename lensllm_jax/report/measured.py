"""Measured losses alone, before anything is predicted from them."""

import numpy as np

from lensllm_jax.report import _parts, figures
from lensllm_jax.report.sections import Block, Drawing
from lensllm_jax.selection.loss_table import LossTable


def measured_losses(table: LossTable) -> list[Block]:
    """A table of losses by training examples; their curves, where two sizes or more have any."""
    rows = _parts.losses_table(table)
    if len(table.sizes[table.sizes > 0]) < 2:
        return [rows]
    drawn = figures.draw_loss_curves(table, {}, target_size=int(table.sizes[-1]))
    lowest = float(np.nanmin(table.losses))
    about = f"{table.in_unit('Test loss')} by training examples; the lowest is {lowest:.4f}."
    curves = Drawing("Measured losses", "loss_curves.png", figures.svg(*drawn), about, about)
    return [rows, curves]
