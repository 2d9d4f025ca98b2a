"""Figures: one style for all, colour-blind safe, axes with units.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.report.figures import kernel_spectra
    >>> png = kernel_spectra({"a": np.array([1.0, 0.1]), "b": np.array([2.0, 0.5])})
    >>> png[1:4]
    b'PNG'
"""

import io
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lensllm_jax.selection.loss_table import LossTable

# Okabe and Ito (2008), told apart by every common kind of colour vision; then dashed again
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
LINES = ("-", "--", ":", "-.")


def colour_of(index: int) -> dict[str, Any]:
    """Colour and dash of the ``index``-th candidate, the same in every figure.

    Args:
        index: position of the candidate.

    Returns:
        Keyword arguments of matplotlib's ``plot``.
    """
    return {
        "color": COLOURS[index % len(COLOURS)],
        "linestyle": LINES[index // len(COLOURS) % len(LINES)],
    }


def loss_curves(
    table: LossTable,
    laws: Mapping[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]],
    *,
    target_size: int,
) -> bytes:
    """Measured losses, the fitted law of each candidate, and its prediction at the target.

    Args:
        table: measured losses.
        laws: candidate -> predicted losses at sizes; a candidate without a usable fit is
            left out.
        target_size: how far the laws are drawn, examples.

    Returns:
        A PNG.
    """
    figure, axes = axes_with("training examples D", "test loss (nats per token)")
    positive = table.sizes[table.sizes > 0]
    grid = np.geomspace(positive[0], target_size, 200)
    for i, name in enumerate(table.names):
        style = colour_of(i)
        axes.plot(table.sizes, table.losses[i], "o", color=style["color"], label=name)
        if name in laws:
            axes.plot(grid, laws[name](grid), **style)
            at_target = laws[name](np.array([float(target_size)]))
            axes.plot([target_size], at_target, "*", markersize=11, color=style["color"])
    axes.set_xscale("symlog", linthresh=float(positive[0]))
    axes.set_xticks([0, *positive.tolist(), target_size])
    axes.set_xticklabels([f"{size:g}" for size in [0, *positive.tolist(), target_size]])
    axes.minorticks_off()
    axes.set_title(f"{table.task}: measured losses, fitted laws, predictions (stars)")
    return png(figure, axes)


def kernel_spectra(eigenvalues: Mapping[str, Float[np.ndarray, " n"]]) -> bytes:
    """Eigenvalues of each candidate's kernel, largest first.

    Args:
        eigenvalues: candidate -> eigenvalues in any order.

    Returns:
        A PNG.
    """
    figure, axes = axes_with("index j", r"eigenvalue $\lambda_j$ of $\Theta$")
    for i, (name, values) in enumerate(eigenvalues.items()):
        axes.plot(np.arange(1, len(values) + 1), np.sort(values)[::-1], label=name, **colour_of(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Spectra of the neural tangent kernels")
    return png(figure, axes)


def axes_with(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure in the style of all.

    Args:
        x_label: with its unit.
        y_label: with its unit.

    Returns:
        The figure and its axes.
    """
    figure = Figure(figsize=(7.5, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def png(figure: Figure, axes: Axes) -> bytes:
    """The figure, its legend beside it, as a PNG; the same input gives the same bytes."""
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), frameon=False)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()
