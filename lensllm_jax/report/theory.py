r"""Figures of the theory: the bound beside the losses, and what should fall as a power of n.

Example:
    >>> rows = [{"size": n, "training_loss": 1.0, "test_loss": 2.0, "empirical_term": 1.1,
    ...          "curvature_term": 3.0 / n, "confidence_term": 9.0 / n} for n in (100, 200)]
    >>> bound_figure(rows)[1:4]
    b'PNG'
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lensllm_jax.report.figures import axes_with, colour_of, png

TERMS = ("empirical_term", "curvature_term", "confidence_term")


def bound_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Each known term of Theorem 2, their sum, and the losses, against n.

    Args:
        rows: of theory.csv.

    Returns:
        A PNG.
    """
    figure, axes = axes_with("training examples n", "loss (nats per token)")
    sizes = [row["size"] for row in rows]
    total = np.sum([[row[name] for name in TERMS] for row in rows], axis=1)
    series = {
        **{name.replace("_", " "): [row[name] for row in rows] for name in TERMS},
        "known terms": total,
        "training loss": [row["training_loss"] for row in rows],
        "test loss": [row["test_loss"] for row in rows],
    }
    for i, (label, values) in enumerate(series.items()):
        axes.plot(sizes, values, marker="o", label=label, **colour_of(i))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("Theorem 2 without its remainder, whose constant is not known")
    return png(figure, axes)


def decay_figure(rows: Sequence[Mapping[str, Any]], decays: Mapping[str, Any]) -> bytes:
    """Measured quantities against n, with their fitted powers.

    Args:
        rows: of theory.csv.
        decays: by column, coefficient and exponent where there is a fit.

    Returns:
        A PNG.
    """
    figure, axes = axes_with("training examples n", "relative to the smallest n")
    sizes = np.array([float(row["size"]) for row in rows])
    for i, (name, decay) in enumerate(decays.items()):
        if "exponent" not in decay:
            continue
        values = np.array([row[name] for row in rows])
        style = colour_of(i)
        label = f"{name.replace('_', ' ')}: n^{-decay['exponent']:.2f}"
        axes.plot(sizes, values / values[0], "o", color=style["color"], label=label)
        fitted = decay["coefficient"] * sizes ** -decay["exponent"]
        axes.plot(sizes, fitted / values[0], **style)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_title("What the lemmas say falls with n")
    return png(figure, axes)
