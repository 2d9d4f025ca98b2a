r"""Figures of the paper, drawn from tables of results: rows as ``csv.DictReader`` reads them.

Example:
    >>> rows = [{"gamma": "3", "tau": "1.0", "task": "a", "selector": "lensllm", "pearson": "80"},
    ...         {"gamma": "3", "tau": "2.0", "task": "a", "selector": "lensllm", "pearson": "90"}]
    >>> ablation_figure(rows, selector="lensllm")[1:4]
    b'PNG'
"""

import collections
import itertools
from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from lensllm_jax.report.figures import HEAT, as_png, colour_of, small_panels, style_of_selector
from lensllm_jax.selection.loss_table import LossTable

Rows = Sequence[Mapping[str, str]]

DATA, FIT, SPLIT = "#000000", "#0072B2", "#D55E00"  # of the palette: measured, law, transition
PHASES = {"TRANSITION": "transition", "FLATTENING": "flattens", "ONE": "one piece"}
NUM_COLUMNS = 5  # of small panels
METRICS = {"pearson": "PearCorr (%)", "relative_accuracy": "RelAcc (%)"}


def phases_figure(table: LossTable, rows: Rows) -> bytes:
    """Figure 2: each measured curve, its two pieces, their meeting point, and the fitted law.

    ``rows`` are those of phases.csv of the table's task.
    """
    by_name = {row["candidate"]: row for row in rows}
    figure, panels = small_panels(len(table.names), num_columns=NUM_COLUMNS, width=2.5, height=2.3)
    sizes = table.sizes[table.sizes > 0].astype(np.float64)
    grid = np.geomspace(sizes[0], sizes[-1], 100)
    for i, (axes, name, losses) in enumerate(
        zip(panels, table.names, table.losses[:, table.sizes > 0], strict=True)
    ):
        row = by_name[name]
        value = {key: float(row[key]) for key in row if key not in ("task", "candidate", "phase")}
        law = value["B"] / (value["D_l"] + grid ** value["beta"]) + value["E"]
        axes.plot(grid, law, color=FIT, label="rectified law")
        _draw_pieces(axes, sizes, losses, row["phase"], value)
        axes.plot(sizes, losses, "o", color=DATA, markersize=4, label="measured")
        axes.set_xscale("log")
        axes.set_yscale("log")
        _plain_ticks(axes, sizes, losses)
        axes.set_title(f"{name.removeprefix('zoo/')}: {PHASES[row['phase']]}", fontsize=9)
        if i % NUM_COLUMNS == 0:
            axes.set_ylabel(f"test loss ({unit_of(table.task)})")
        if i + NUM_COLUMNS >= len(panels):
            axes.set_xlabel("training examples D")
    _legend_below(figure, panels)
    figure.suptitle(
        f"{table.task.removesuffix('_losses')}: pre-power and power phase on measured curves"
    )
    return as_png(figure)


def unit_of(task: str) -> str:
    """Of its losses: those of Lin et al. 2024 are published per token, ours per byte of text."""
    return "nats/token" if task in ("flan", "gigaword") else "nats/byte"


def _draw_pieces(
    axes: Axes, sizes: np.ndarray, losses: np.ndarray, phase: str, value: Mapping[str, float]
) -> None:
    """Two straight pieces through the measured points, where the F test finds two."""
    if phase == "ONE":
        return
    x, y, meeting = np.log(sizes), np.log(losses), np.log(value["size"])
    before, after = value["slope_before"], value["slope_after"]

    def shape(at: np.ndarray) -> np.ndarray:
        return before * np.minimum(at - meeting, 0.0) + after * np.maximum(at - meeting, 0.0)

    level = float(np.mean(y - shape(x)))  # least squares, given the slopes
    ends = np.array([x[0], meeting, x[-1]])
    axes.plot(np.exp(ends), np.exp(level + shape(ends)), "--", color=SPLIT, label="two pieces")
    axes.axvline(value["size"], color=SPLIT, linewidth=1, label="transition D*")
    axes.axvspan(value["low"], value["high"], color=SPLIT, alpha=0.15, label="its 90 % interval")


def _plain_ticks(axes: Axes, sizes: np.ndarray, losses: np.ndarray) -> None:
    """Three sizes and three losses in plain figures."""
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_minor_locator(NullLocator())
    shown = sizes[[0, len(sizes) // 2, -1]]
    axes.set_xticks(shown, [f"{size:,.0f}" for size in shown])
    low, high = float(losses.min()), float(losses.max())
    ticks = np.geomspace(low, high, 3)
    axes.set_yticks(ticks, [f"{tick:.2f}" for tick in ticks])


def errors_figure(rows: Rows, *, laws: Sequence[str]) -> bytes:
    """Figure 3: mean error of each law, in sample and held out, one panel per task.

    Args:
        rows: of comparison.csv of ``law_errors``: task, law, budget_fraction, mean_rmse.
        laws: in the order of the legend.
    """
    tasks = _ordered(row["task"] for row in rows)
    figure, panels = small_panels(len(tasks), num_columns=3, width=3.6, height=3.4)
    for axes, task in zip(panels, tasks, strict=True):
        fractions = _fractions(rows, task)
        for i, law in enumerate(laws):
            known = _against_budget(rows, "mean_rmse", task=task, law=law)
            # a law looks like its selector; larger than those that it may coincide with
            style = {**style_of_selector(law), "markersize": 6 + 2 * i}
            positions = [fractions.index(fraction) for fraction, _ in known]
            axes.plot(positions, [error for _, error in known], label=law, **style)
        labels = ["in sample" if f == 1 else f"1/{1 / f:.0f}" for f in fractions]
        axes.set_xticks(range(len(fractions)), labels)
        axes.set_xlabel("fitted to this part of the data")
        axes.set_yscale("log")
        axes.margins(0.08)
        _plain_losses(axes)
        axes.set_title(f"{task} ({unit_of(task)})")
    panels[0].set_ylabel("mean RMSE")
    _legend_below(figure, panels)
    return as_png(figure)


def _plain_losses(axes: Axes) -> None:
    low, high = axes.get_ylim()
    ticks = [x for x in (0.01, 0.02, 0.03, 0.05, 0.1, 0.2, 0.3, 0.5, 1.0) if low <= x <= high]
    axes.yaxis.set_minor_locator(NullLocator())
    axes.set_yticks(ticks, [f"{tick:g}" for tick in ticks])


def metrics_figure(rows: Rows, *, metric: str, selectors: Sequence[str]) -> bytes:
    """Table 3 as lines: a metric of each selector against the budget, one panel per task.

    Args:
        rows: of selection.csv of ``rank_curves``.
        metric: a key of ``METRICS``.
        selectors: in the order of the legend.
    """
    tasks = _ordered(row["task"] for row in rows)
    figure, panels = small_panels(len(tasks), num_columns=3, width=3.8, height=3.6)
    for axes, task in zip(panels, tasks, strict=True):
        for selector in selectors:
            known = _against_budget(rows, metric, task=task, selector=selector)
            if known:
                axes.plot(*zip(*known, strict=True), label=selector, **style_of_selector(selector))
        axes.set_xscale("log", base=2)
        fractions = _fractions(rows, task)
        axes.set_xticks(fractions, [f"1/{1 / f:.0f}" for f in fractions], fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xlabel("budget (part of the full data)")
        axes.set_title(task)
    panels[0].set_ylabel(METRICS[metric])
    _legend_below(figure, panels)
    return as_png(figure)


def saving_figure(rows: Rows) -> bytes:
    """Figure 4: both metrics against FLOPs in percent of full tuning, with the Pareto front.

    ``rows`` are those of saving.csv; selectors without cost have no place on a logarithmic axis.
    """
    rows = [row for row in rows if float(row["flops"]) > 0]
    tasks = _ordered(row["task"] for row in rows)
    figure, panels = small_panels(
        len(METRICS) * len(tasks), num_columns=len(tasks), width=3.8, height=3.4
    )
    for axes, (metric, task) in zip(panels, itertools.product(METRICS, tasks), strict=True):
        _draw_costs(axes, [row for row in rows if row["task"] == task and row[metric]], metric)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
        if metric == next(iter(METRICS)):
            axes.set_title(task)
        else:
            axes.set_xlabel("FLOPs (% of full tuning)")
        if task == tasks[0]:
            axes.set_ylabel(METRICS[metric])
    _legend_below(figure, panels)
    return as_png(figure)


def _draw_costs(axes: Axes, rows: Rows, metric: str) -> None:
    """What each selector reached for its FLOPs, on top of the front of all of them."""
    front = sorted(_cost(row, metric) for row in rows if row[f"pareto_{metric}"] == "True")
    front.append((100.0, 100.0))  # full tuning, by definition
    axes.step(*zip(*front, strict=True), where="post", color="0.8", linewidth=6,
              label="Pareto front")  # fmt: skip
    for selector in _ordered(row["selector"] for row in rows):
        points = sorted(_cost(row, metric) for row in rows if row["selector"] == selector)
        style = {**style_of_selector(selector), "linewidth": 1.0, "markersize": 5.0}
        axes.plot(*zip(*points, strict=True), label=selector, **style)
    axes.axvline(5.0, color=DATA, linewidth=0.6, linestyle=":", label="5 %")


def _cost(row: Mapping[str, str], metric: str) -> tuple[float, float]:
    return float(row["percent_of_full_tuning"]), float(row[metric])


def _legend_below(
    figure: Figure, panels: Sequence[Axes], title: str | None = None, *, num_columns: int = 5
) -> None:
    """One legend of all panels."""
    handles: dict[str, Artist] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(handles.values(), handles.keys(), title=title, loc="outside lower center",
                  ncols=min(len(handles), num_columns), frameon=False)  # fmt: skip


def linear_training_figure(rows: Rows, *, task: str) -> bytes:
    """What gradient descent leaves of the residual, and the linear model, one panel per candidate.

    ``rows`` are those of linear_training.csv; time counts in units of the fastest mode.
    """
    names = _ordered(row["candidate"] for row in rows)
    figure, panels = small_panels(len(names), num_columns=3, width=3.4, height=3.0)
    shares = sorted({row["share"] for row in rows}, key=float)
    for axes, name in zip(panels, names, strict=True):
        for share, color in zip(shares, itertools.cycle(f"C{i}" for i in range(10))):
            points = [row for row in rows if (row["candidate"], row["share"]) == (name, share)]
            start = float(points[0]["measured"])
            time = [float(row["share"]) * int(row["step"]) for row in points]
            for column, style in (("measured", "o-"), ("linear", "--")):
                left = [float(row[column]) / start for row in points]
                axes.plot(time, left, style, color=color, markersize=4.0, linewidth=1.0,
                          label=f"{column}, {share}")  # fmt: skip
        axes.set_xscale("symlog", linthresh=float(shares[0]))
        axes.set_yscale("log")
        axes.set_ylim(bottom=1e-3)
        axes.set_title(name)
        axes.set_xlabel("η λ_max t")
    panels[0].set_ylabel("|f - y|² / its start")
    _legend_below(figure, panels, title="η λ_max", num_columns=len(panels) + 1)
    figure.suptitle(f"{task}: plain gradient descent, and the kernel at pretrained weights")
    return as_png(figure)


def calibration_figure(rows: Rows) -> bytes:
    """How often the likelier of two candidates won, against what was said, one panel per task.

    ``rows`` are those of calibration.csv of ``benchmarks.calibration``.
    """
    rows = [row for row in rows if row["kind"] == "pair"]
    tasks = _ordered(row["task"] for row in rows)
    figure, panels = small_panels(len(tasks), num_columns=2, width=3.6, height=3.4)
    for i, (axes, task) in enumerate(zip(panels, tasks, strict=True)):
        axes.plot([0.5, 1.0], [0.5, 1.0], color="0.8", linewidth=6, label="calibrated")
        for selector in _ordered(row["selector"] for row in rows):
            points = [
                (float(row["said"]), float(row["happened"]))
                for row in rows
                if (row["task"], row["selector"]) == (task, selector)
            ]
            axes.plot(*zip(*points, strict=True), label=selector, **style_of_selector(selector))
        axes.set_title(task)
        if i % 2 == 0:
            axes.set_ylabel("observed share of pairs")
        if i + 2 >= len(panels):
            axes.set_xlabel("stated P(A beats B)")
    _legend_below(figure, panels)
    return as_png(figure)


def ablation_figure(rows: Rows, *, selector: str) -> bytes:
    """Tables 5 to 7: mean PearCorr over budgets for each gamma and tau, one panel per task.

    ``rows`` are those of ablation.csv of ``rank_curves``.
    """
    rows = [row for row in rows if row["selector"] == selector and row["pearson"]]
    tasks = _ordered(row["task"] for row in rows)
    gammas = sorted({int(row["gamma"]) for row in rows})
    taus = sorted({float(row["tau"]) for row in rows})
    by_setting: dict[tuple[str, int, float], list[float]] = collections.defaultdict(list)
    for row in rows:
        setting = row["task"], int(row["gamma"]), float(row["tau"])
        by_setting[setting].append(float(row["pearson"]))
    figure, panels = small_panels(len(tasks), num_columns=3, width=4.6, height=2.8)
    for axes, task in zip(panels, tasks, strict=True):
        mean = np.array([[np.mean(by_setting[task, g, tau]) for tau in taus] for g in gammas])
        image = axes.imshow(mean, cmap=HEAT, aspect="auto")
        middle = 0.5 * (mean.min() + mean.max())
        for (i, j), value in np.ndenumerate(mean):
            ink = "white" if value < middle else "black"
            axes.text(j, i, f"{value:.1f}", ha="center", va="center", color=ink, fontsize=9)
        axes.grid(visible=False)
        axes.set_xticks(range(len(taus)), [f"{tau:g}" for tau in taus])
        axes.set_yticks(range(len(gammas)), [str(gamma) for gamma in gammas])
        axes.set_xlabel(r"$\tau$ (residual deviations)")
        axes.set_ylabel(r"$\gamma$ (pairs)")
        axes.set_title(f"{task}: {selector}")
        figure.colorbar(image, ax=axes, label="mean PearCorr (%)")
    return as_png(figure)


def differences_figure(
    rows: Rows, *, groups: Mapping[str, Sequence[int]], x_label: str, title: str
) -> bytes:
    """Paired differences with their intervals, sorted within groups; left of 0 is better.

    Args:
        rows: with mean, low, high and budget_fraction.
        groups: label -> indices of rows.
        x_label: with its unit.
        title: of the figure.
    """
    figure, panels = small_panels(len(groups), num_columns=3, width=3.7, height=4.4)
    budgets = sorted({float(row["budget_fraction"]) for row in rows}, reverse=True)
    for axes, (label, indices) in zip(panels, groups.items(), strict=True):
        ranked = sorted((rows[i] for i in indices), key=lambda row: float(row["mean"]))
        for i, budget in enumerate(budgets):
            _draw_intervals(axes, ranked, budget, color=colour_of(i)["color"], marker="os^D"[i % 4])
        axes.axvline(0.0, color=DATA, linewidth=0.8)
        axes.set_xscale("symlog", linthresh=0.01)
        left, right = axes.get_xlim()
        ticks = [x for x in (-1.0, -0.1, -0.01, 0.0, 0.01, 0.1, 1.0) if left <= x <= right]
        axes.xaxis.set_minor_locator(NullLocator())
        axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axes.set_yticks([])
        axes.set_xlabel(x_label)
        axes.set_title(f"{label} ({len(ranked)})", fontsize=10)
    for axes in panels[::3]:
        axes.set_ylabel("comparisons, sorted")
    _legend_below(figure, panels, title="predicted from")
    figure.suptitle(title)
    return as_png(figure)


def _draw_intervals(axes: Axes, ranked: Rows, budget: float, *, color: str, marker: str) -> None:
    """The differences of one budget, each at its rank among those of all budgets."""
    points = [
        (rank, *(float(row[k]) for k in ("mean", "low", "high")))
        for rank, row in enumerate(ranked)
        if float(row["budget_fraction"]) == budget
    ]
    if points:
        rank, mean, low, high = map(np.array, zip(*points, strict=True))
        axes.hlines(rank, low, high, color=color, linewidth=1, alpha=0.6)
        axes.plot(mean, rank, marker, color=color, markersize=4, label=f"1/{1 / budget:.0f}")


def _fractions(rows: Rows, task: str) -> list[float]:
    """The budgets of a task, ascending, as parts of its largest size."""
    return sorted({float(row["budget_fraction"]) for row in rows if row["task"] == task})


def _against_budget(rows: Rows, column: str, **of: str) -> list[tuple[float, float]]:
    """Budget and value of the rows that hold ``of``, ascending; an empty cell has no place."""
    return sorted(
        (float(row["budget_fraction"]), float(row[column]))
        for row in rows
        if row[column] and all(row[name] == value for name, value in of.items())
    )


def _ordered(names: Iterable[str]) -> list[str]:
    """Each once, in the order of appearance."""
    return list(dict.fromkeys(names))
