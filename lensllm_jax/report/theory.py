r"""Figures of the theory: the bound next to the losses, and what should fall as a power of n.

Example:
    >>> rows = [{"size": n, "training_loss": 1.0, "test_loss": 2.0, "empirical_term": 1.1,
    ...          "curvature_term": 3.0 / n, "confidence_term": 9.0 / n} for n in (100, 200)]
    >>> bound_figure(rows)[1:4]
    b'PNG'
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from lensllm_jax.report.figures import COLOURS, as_png, colour_of, panels, png

_TERMS = {
    "empirical_term": "(1 + ε) training loss",
    "curvature_term": "curvature",
    "confidence_term": "confidence",
    "remainder_term": "remainder, K assumed",
}
_QUANTITIES = {
    "sum_h": r"$\Sigma\,h_i$",
    "trace": "trace of the Hessian",
    "gradient_variance": "variance of the gradient",
    "squared_displacement": r"$\Sigma\,\|v_i\|^2$",
}
_INK = COLOURS[-1]  # of the losses


def bound_figure(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """Theorem 2 against n: its terms stacked, with the losses, and each alone; a PNG.

    ``rows`` are those of theory.csv, with a remainder where its constant was assumed.
    """
    x_label = "training examples n"
    figure, (stacked, alone) = panels(
        (x_label, "loss (nats per token)"), (x_label, "term (nats per token)"), width=11.0
    )
    sizes = np.array([float(row["size"]) for row in rows])
    terms = {
        label: [row[name] for row in rows] for name, label in _TERMS.items() if name in rows[0]
    }
    colours = [COLOURS[i] for i in range(len(terms))]
    stacked.stackplot(
        sizes, *terms.values(), labels=terms, colors=colours, alpha=0.55, linewidth=0.0
    )
    for name, style in (("test_loss", "o-"), ("training_loss", "o:")):
        losses = [row[name] for row in rows]
        stacked.plot(sizes, losses, style, color=_INK, label=name.replace("_", " "))
    stacked.set_ylim(bottom=0.0)
    for colour, values in zip(colours, terms.values(), strict=True):
        alone.plot(sizes, values, "o-", color=colour)
    _log_values(alone)
    for axes in (stacked, alone):
        _log_sizes(axes, sizes)
    whole = "remainder_term" in rows[0]
    stacked.set_title("Theorem 2" if whole else "Theorem 2 without its remainder: no bound")
    alone.set_title("Each term alone")
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return as_png(figure)


def decay_figure(rows: Sequence[Mapping[str, Any]], decays: Mapping[str, Any]) -> bytes:
    """Measured quantities against n, each with its error, and their fitted powers; a PNG.

    ``rows`` are those of theory.csv, ``decays`` by column the fit and its interval.
    """
    labels = ("training examples n", "relative to the smallest n (no unit)")
    figure, (axes,) = panels(labels, width=9.5)
    sizes = np.array([float(row["size"]) for row in rows])
    for i, (name, decay) in enumerate(decays.items()):
        if "exponent" not in decay:
            axes.plot([], [], " ", label=f"{_QUANTITIES.get(name, name)}: not positive at every n")
            continue
        values = np.array([row[name] for row in rows])
        style = colour_of(i)
        axes.errorbar(
            sizes * 1.02 ** (i - 1.5),  # next to each other, not on top of each other
            values / values[0], _errors(rows, name) / values[0], fmt="o", capsize=3.0,
            color=style["color"], label=f"{_QUANTITIES.get(name, name)}: {_power(decay)}",
        )  # fmt: skip
        fitted = decay["coefficient"] * sizes ** -decay["exponent"]
        axes.plot(sizes, fitted / values[0], **style)
    axes.plot(sizes, sizes[0] / sizes, color="0.5", linestyle=":", label="Lemma 2: 1/n")
    _log_values(axes)
    _log_sizes(axes, sizes)
    axes.set_title("Measured powers of n, with their intervals")
    return png(figure, axes)


def _errors(rows: Sequence[Mapping[str, Any]], name: str) -> Float[np.ndarray, "2 m"]:
    """How far below and above each value its error or interval reaches; nothing if it has none."""
    if f"{name}_error" in rows[0]:
        return np.array([[row[f"{name}_error"] for row in rows]] * 2)
    if f"{name}_low" in rows[0]:
        low = [row[name] - row[f"{name}_low"] for row in rows]
        return np.array([low, [row[f"{name}_high"] - row[name] for row in rows]])
    return np.zeros((2, len(rows)))


def _power(decay: Mapping[str, Any]) -> str:
    """The fitted power of n and its interval; positive where values grow."""
    # 0.0 is added so that -0.001 reads 0.00
    power, low, high = (0.0 - round(decay[key], 2) for key in ("exponent", "high", "low"))
    ends = f"{low:.2f} to {high:.2f}" if math.isfinite(low) else "two sizes: no interval"
    return f"$n^{{{power:.2f}}}$ ({ends})"


def _log_values(axes: Axes) -> None:
    """A logarithmic axis of values, with ticks also where it spans less than a decade."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter("{x:g}")


def _log_sizes(axes: Axes, sizes: Float[np.ndarray, " m"]) -> None:
    """Puts a logarithmic axis of sizes under a panel, a tick at each."""
    axes.set_xscale("log")
    axes.set_xticks(sizes, [f"{size:,.0f}" for size in sizes])
    axes.minorticks_off()
