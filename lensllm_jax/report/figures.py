"""Figures: one style for all, colour-blind safe, axes with units.

No palette has a colour for every selector that is distinguishable in all kinds of colour vision:
selectors of a family (:data:`FAMILIES`) share one, and within it each has a dash and a marker of
its own.  Candidates take the colours in turn, then again with the next dash and marker.  Kernels
are drawn in a map that rises in lightness.

Example:
    >>> drawn = draw_kernel_spectra({"a": np.array([1.0, 0.1]), "b": np.array([2.0, 0.5])})
    >>> png(*drawn)[1:4]
    b'PNG'
"""

import contextlib
import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from lensllm_jax.language_modelling import BITS_PER_NAT, LOSS_UNIT
from lensllm_jax.printable import printable
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.rank import SELECTORS

# Okabe and Ito, "Color Universal Design" (2008): distinguishable in all common colour vision
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
_LINES = ("-", "--", ":", "-.")
_MARKERS = "os^D"
_LONGEST_NAME, _LONGEST_TITLE = 48, 96  # characters of a line in a legend, in a title
_MOST_LABELS, _LONGEST_LABEL = 20, 24  # labels at the ends of curves; characters of one
_CHARACTER, _LINE = 0.0125, 0.048  # of a label's text, shares of the axes
HEAT = "cividis"  # rises in lightness, and reads alike in every colour vision

# what a selector goes by -> colour; selector -> marker, of its own over all families
FAMILIES: dict[str, tuple[str, dict[str, str]]] = {
    "a law with an offset, by candidate": ("#0072B2", {"lensllm": "o", "rectified": "s"}),
    "slopes shared by the pool": ("#56B4E9", {"pooled": "*", "posterior": "H", "race": "o"}),
    "a law without an offset": ("#009E73", {"vanilla": "^", "power": "v"}),
    "a straight line of log loss": ("#D55E00", {"ats": "D", "upwards": "d"}),
    "a loss as it was measured": ("#E69F00", {"subtuning": "P", "zero_shot": "X"}),
    "weights or features, no fine-tuning": ("#CC79A7", {"logme": "h", "nlp_metrics": "p"}),
    "anything else": ("#000000", {"model_size": "<"}),
}
_SPARE = ">8+x|_1234"  # markers of selectors that no family names: they join the last


def colour_of(index: int) -> dict[str, Any]:
    """``plot`` arguments: colour and dash of the ``index``-th candidate in all figures."""
    return {"color": COLOURS[index % len(COLOURS)], "linestyle": _again(_LINES, index)}


def _again(looks: Sequence[str], index: int) -> str:
    """The same while the colours last, the next when they start again."""
    return looks[index // len(COLOURS) % len(looks)]


def style_of_selector(name: str) -> dict[str, Any]:
    """``plot`` arguments of a selector, or of the order ``upwards``, in all figures.

    Lines that coincide stay visible, as the markers are hollow and differ.
    """
    colour, dash, marker = _looks()[name]
    return {
        "color": colour,
        "linestyle": dash,
        "marker": marker,
        "markersize": 6.0,
        "markerfacecolor": "none",
    }


def _looks() -> dict[str, tuple[str, str, str]]:
    """Colour, dash and marker of everything that ranks."""
    named = {name for _, members in FAMILIES.values() for name in members}
    unknown = dict(zip((n for n in SELECTORS if n not in named), _SPARE, strict=False))
    families = {**FAMILIES}
    last, (colour, members) = families.popitem()
    families[last] = colour, members | unknown
    return {
        name: (colour, _LINES[i % len(_LINES)], marker)
        for colour, members in families.values()
        for i, (name, marker) in enumerate(members.items())
    }


def draw_loss_curves(
    table: LossTable,
    laws: Mapping[str, Callable[[Float[np.ndarray, " s"]], Float[np.ndarray, " s"]]],
    *,
    target_size: int,
    predicted: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
) -> tuple[Figure, Axes]:
    """Measured losses, fitted laws, and predictions at the target.

    Args:
        table: measured losses.
        laws: candidate -> losses by size; those without a usable fit are left out.
        target_size: up to which the laws are drawn, examples.
        predicted: candidate -> loss at the target, drawn as a star; without a law a dashed line
            leads to it.
        intervals: candidate -> lower and upper loss at the target, drawn as a bar.
    """
    figure, axes = axes_with("training examples D", table.in_unit("test loss"))
    positive = table.sizes[table.sizes > 0]
    grid = np.geomspace(positive[0], target_size, 200)
    ends = []
    for i, name in enumerate(table.names):
        style, marker = colour_of(i), _again(_MARKERS, i)
        axes.plot(table.sizes, table.losses[i], marker, color=style["color"], label=name)
        last = np.flatnonzero(~np.isnan(table.losses[i]))[-1:]
        ends += [_End(name, i, float(table.sizes[j]), float(table.losses[i, j])) for j in last]
        if name in laws:
            axes.plot(grid, laws[name](grid), **style)
            ends[-1] = _End(name, i, float(target_size), laws[name](grid[-1:]).item())
        if predicted and name in predicted:
            star = _End(name, i, float(target_size), predicted[name])
            if name not in laws and ends[-1].x < star.x:
                path = [ends[-1].x, star.x], [ends[-1].y, star.y]
                axes.plot(*path, color=style["color"], linestyle=(0, (4, 3)), linewidth=0.9)
            axes.plot([star.x], [star.y], "*", markersize=11, color=style["color"])
            ends[-1] = star
        if intervals and name in intervals:
            # next to each other and the stars, not on top of them
            position = target_size * 1.15 * 1.06**i
            axes.vlines(position, *intervals[name], color=style["color"], linewidth=2, alpha=0.8)
    axes.set_xscale("symlog", linthresh=float(positive[0]))
    ticks = sorted({0, *positive.tolist(), target_size})
    axes.set_xticks(ticks, [f"{size:g}" for size in ticks])
    axes.set_yscale("log")  # before fine-tuning losses are far above all others
    axes.yaxis.set_major_locator(MaxNLocator(8))
    axes.yaxis.set_major_formatter("{x:g}")
    axes.minorticks_off()
    _label_ends(axes, ends)
    if table.unit == LOSS_UNIT:
        _add_bits(axes)
    axes.set_title(f"{table.task}: measured losses and predictions (stars)")
    return figure, axes


class _End(NamedTuple):
    """Where the curve of a candidate ends, in the units of the axes."""

    name: str
    place: int  # of the candidate in its table
    x: float
    y: float


def _label_ends(axes: Axes, ends: Sequence[_End]) -> None:
    """Names beside the ends of their curves, in a margin of the axes that this makes.

    More than fit below each other stay in the legend.
    """
    if not ends or len(ends) > _MOST_LABELS:
        return
    names = [_shortened(printable(end.name), _LONGEST_LABEL) for end in ends]
    scale = axes.xaxis.get_transform()
    left, right = scale.transform(np.array(axes.get_xlim()))
    margin = 0.06 + _CHARACTER * max(map(len, names))  # share of the width
    edge = left + (right - left) / (1.0 - margin)
    low, high = axes.get_ylim()
    axes.set(xlim=(axes.get_xlim()[0], scale.inverted().transform(edge)), ylim=(low, high))
    to_axes = axes.transScale + axes.transLimits
    at = to_axes.transform([(end.x, end.y) for end in ends])
    places = _spread(at[:, 1], gap=_LINE)
    for end, name, (x, y), place in zip(ends, names, at, places, strict=True):
        style = {"color": colour_of(end.place)["color"], "transform": axes.transAxes}
        start = 1.0 - margin + 0.03
        axes.plot([x, start], [y, place], ":", linewidth=0.8, **style)  # no law: it leads to a name
        axes.plot([start + 0.012], [place], _again(_MARKERS, end.place), markersize=4, **style)
        axes.text(
            start + 0.03, place, name, fontsize="small", verticalalignment="center",
            transform=axes.transAxes,
        )  # fmt: skip
    for line in axes.lines:
        line.set_label("_named at its end")


def _spread(heights: Float[np.ndarray, " n"], *, gap: float) -> Float[np.ndarray, " n"]:
    """Heights in 0 to 1, moved by the least squares that leave ``gap`` between them."""
    order = np.argsort(heights)
    steps = gap * np.arange(len(heights))
    # less the gaps below them they must ascend: pool adjacent violators
    blocks: list[list[float]] = []
    for value in heights[order] - steps:
        blocks.append([value])
        while len(blocks) > 1 and np.mean(blocks[-2]) > np.mean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    level = np.concatenate([np.full(len(block), np.mean(block)) for block in blocks])
    placed = np.empty(len(heights))
    placed[order] = np.clip(level, gap / 2, 1.0 - gap / 2 - steps[-1]) + steps
    return placed


def _add_bits(axes: Axes) -> None:
    """A second scale, on the right, of losses in nats per byte."""
    to_bits = functools.partial(np.multiply, BITS_PER_NAT)
    to_nats = functools.partial(np.multiply, 1 / BITS_PER_NAT)
    bits = axes.secondary_yaxis("right", functions=(to_bits, to_nats))
    bits.set_ylabel("bits per byte")
    bits.yaxis.set_major_locator(MaxNLocator(8))
    bits.yaxis.set_major_formatter("{x:g}")
    bits.minorticks_off()


def draw_kernel_spectra(eigenvalues: Mapping[str, Float[np.ndarray, " n"]]) -> tuple[Figure, Axes]:
    """Eigenvalues (in any order) of each candidate's kernel, largest first."""
    figure, axes = axes_with("index j", r"eigenvalue $\lambda_j$ of $\Theta$ (squared output)")
    ends = []
    for i, (name, values) in enumerate(eigenvalues.items()):
        axes.plot(np.arange(1, len(values) + 1), np.sort(values)[::-1], label=name, **colour_of(i))
        ends.append(_End(name, i, float(len(values)), float(values.min())))
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_yscale("log")
    _label_ends(axes, [end for end in ends if end.y > 0])
    axes.set_title("Spectra of the neural tangent kernels")
    return figure, axes


def axes_with(x_label: str, y_label: str) -> tuple[Figure, Axes]:
    """An empty figure; labels hold their units."""
    figure, (axes,) = panels((x_label, y_label))
    return figure, axes


def panels(*labels: tuple[str, str], width: float = 7.5) -> tuple[Figure, tuple[Axes, ...]]:
    """Empty panels in a row, by their x and y labels; ``width`` is the figure's, in inches."""
    count = len(labels)
    figure, all_axes = small_panels(count, num_columns=count, width=width / count, height=4.8)
    for axes, (x_label, y_label) in zip(all_axes, labels, strict=True):
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
    return figure, tuple(all_axes)


def small_panels(
    count: int, *, num_columns: int, width: float, height: float
) -> tuple[Figure, list[Axes]]:
    """Empty panels of one size (inches) in rows of ``num_columns``."""
    num_columns = min(num_columns, count)
    num_rows = -(-count // num_columns)
    figure = Figure(figsize=(width * num_columns, height * num_rows), layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = [figure.add_subplot(num_rows, num_columns, i + 1) for i in range(count)]
    for axes in all_axes:
        axes.grid(alpha=0.25)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, all_axes


def draw_kernels(kernels: Mapping[str, Float[np.ndarray, "n n"]]) -> tuple[Figure, Axes]:
    """Heat maps of kernels of the same examples, by title, on one colour scale."""
    labels = [("example i", "example j")] * len(kernels)
    figure, all_axes = panels(*labels, width=1.5 + 4.0 * len(kernels))
    low = min(float(theta.min()) for theta in kernels.values())
    high = max(float(theta.max()) for theta in kernels.values())
    for axes, (title, theta) in zip(all_axes, kernels.items(), strict=True):
        image = axes.imshow(theta, cmap=HEAT, vmin=low, vmax=high)
        axes.set_title(title)
        axes.grid(visible=False)
    figure.colorbar(image, ax=all_axes, label=r"$\Theta_{ij}$ (squared output)", shrink=0.8)
    return figure, all_axes[-1]


def png(figure: Figure, axes: Axes) -> bytes:
    """A PNG with the legend of ``axes``; the same input gives the same bytes."""
    _legend(axes)
    return as_png(figure)


def _as_written(figure: Figure) -> None:
    """Draws titles and legends, which hold names of users, without a part taken as mathematics."""
    titles = [*(axes.title for axes in figure.axes), *figure.texts]
    legends = [legend for axes in figure.axes if (legend := axes.get_legend()) is not None]
    names = [text for legend in legends for text in legend.get_texts()]
    names += [text for axes in figure.axes for text in axes.texts]
    for texts, longest in ((titles, _LONGEST_TITLE), (names, _LONGEST_NAME)):
        for text in texts:
            lines = text.get_text().split("\n")
            text.set_parse_math(False)
            text.set_text("\n".join(_shortened(printable(line), longest) for line in lines))


def _shortened(text: str, longest: int) -> str:
    """Both ends of a long line: a figure must have room for the rest of it."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}\u2026{text[-half:]}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """A character that the font lacks is drawn as a box, and nobody need be told."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        yield


def as_png(figure: Figure) -> bytes:
    """A PNG without a legend; the same input gives the same bytes."""
    buffer = io.BytesIO()
    _as_written(figure)
    with _quiet():
        figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        right = 1.12 if axes.child_axes else 1.0  # behind a second scale
        axes.legend(loc="center left", bbox_to_anchor=(right, 0.5), frameon=False)


# matplotlib draws text and lines in black; on a page they take the colour of its text
_INK = ("#000000", "#b0b0b0")


def svg(figure: Figure, axes: Axes) -> str:
    """An ``<svg>`` element with the legend of ``axes``; the same input gives the same text.

    Text stays text, in the page's font and colour, so that it is legible in dark mode.
    """
    _legend(axes)
    buffer = io.StringIO()
    _as_written(figure)
    with _quiet(), rc_context({"svg.fonttype": "none", "svg.hashsalt": axes.get_title()}):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    text = text[text.index("<svg ") :]
    # metadata names licences and vocabularies by address: a page needs neither
    text = re.sub(r"<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' xmlns(:xlink)?="[^"]*"', "", text).replace("xlink:href", "href")
    # what has no colour of its own is black as well
    text = text.replace("<svg ", '<svg fill="currentColor" ', 1)
    for shade in _INK:
        text = text.replace(shade, "currentColor")
    return text
