r"""The page ``report.html`` of a selection, of rankings from a table, and of a kernel.

Example:
    >>> import numpy as np
    >>> spectrum = NtkSpectrum(np.array([2.0, 1.0]), np.array([5.0, 1.0]), learning_rate=0.1)
    >>> "Spectrum" in kernel_page("a", np.eye(2), spectrum, {"settings": {}, "command": "run"})
    True
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.report import figures
from lensllm_jax.report.page import (
    Section,
    command,
    definitions,
    figure,
    page,
    paragraph,
    table,
)
from lensllm_jax.report.selection import (
    COST_NOTE,
    DROPPED_NOTE,
    Selection,
    interval_of,
    ranking_rows,
)
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.rank import Ranking


def selection_page(selection: Selection, run: Mapping[str, Any]) -> str:
    """The report of a pool measured under a budget.

    Args:
        selection: what was measured.
        run: content of run.json.

    Returns:
        A self-contained HTML document.
    """
    measured, ranking = selection.table, selection.ranking
    agree = "the same" if ranking.order == selection.control.order else "differently"
    lead = (
        f"Best at {selection.target_size:,} training examples, by Eq 10 from at most "
        f"{measured.sizes[-1]:,}: {ranking.selected}. The rectified law, the control, ranks the "
        f"pool {agree}."
    )
    more = {row["candidate"]: row for row in selection.rows()}
    rows = [{**row, **_beside(more[row["candidate"]])} for row in ranking_rows(ranking)]
    eigenvalues = {name: s.eigenvalues for name, s in selection.spectra.items()}
    sections = [
        Section("Ranking", _ranking(ranking, rows)),
        *_dropped(selection),
        Section("Curves", _curves(selection)),
        Section("Measured losses", losses_table(measured)),
        Section("Fits", _fits(selection)),
        Section("Kernels", _spectra(eigenvalues)),
        Section("Cost", _orders(selection) + _cost(ranking)),
        Section("How this was made", paragraph(selection.task.description) + _made(run)),
    ]
    return page(f"Which candidate for {selection.task.name}?", sections, lead=lead)


def curves_page(
    tables: Sequence[LossTable],
    rankings: Mapping[str, Mapping[int, Mapping[str, Ranking]]],
    rows: Sequence[Mapping[str, Any]],
    run: Mapping[str, Any],
) -> str:
    """The report of rankings from tables of losses.

    Args:
        tables: one a task.
        rankings: task -> divisor of the largest size -> selector -> ranking.
        rows: of selection.csv: how good each was.
        run: content of run.json.

    Returns:
        A self-contained HTML document.
    """
    sections = [
        Section("Every selector at every budget", table(
            rows, "PearCorr and relative accuracy in percent; FLOPs and seconds spent")),
    ]  # fmt: skip
    for losses in tables:
        by_divisor = rankings.get(losses.task, {})
        if not by_divisor:
            continue
        largest = by_divisor[min(by_divisor)]
        for name, ranking in largest.items():
            title = f"{losses.task}: {name} from {ranking.budget_size:,} examples"
            sections.append(Section(title, _ranking(ranking, ranking_rows(ranking))))
        laws = next((r for r in largest.values() if r.fits is not None and r.predicted), None)
        if laws is not None:
            sections.append(Section(f"{losses.task}: curves", _table_curves(losses, laws)))
        sections.append(Section(f"{losses.task}: losses", losses_table(losses)))
        sections.append(
            Section(
                f"{losses.task}: cost",
                table(
                    [{"selector": n, "FLOPs": r.flops} for n, r in largest.items()],
                    "what each selector asked for, at the stated tokens an example",
                ),
            )
        )
    sections.append(Section("How this was made", _made(run)))
    return page("Rankings from measured losses", sections)


def kernel_page(
    name: str,
    theta: Float[np.ndarray, "n n"],
    spectrum: NtkSpectrum,
    run: Mapping[str, Any],
    summary: Mapping[str, Any] | None = None,
) -> str:
    """The report of one kernel.

    Args:
        name: of the candidate.
        theta: the kernel, squared nats per unit of parameters.
        spectrum: of it, for F(t).
        run: content of run.json.
        summary: content of ntk.json, of which single values are shown.

    Returns:
        A self-contained HTML document.
    """
    values = np.sort(np.asarray(spectrum.eigenvalues, np.float64))[::-1]
    rows = [
        {"j": j, "eigenvalue": float(x), "share_of_trace": float(x / values.sum())}
        for j, x in enumerate(values, start=1)
    ]
    said = {
        "examples": len(values),
        "trace": f"{values.sum():.6g}",
        "largest eigenvalue": f"{values[0]:.6g}",
        "smallest eigenvalue": f"{values[-1]:.6g}",
        "asymmetry, largest |Θij − Θji|": f"{np.abs(theta - theta.T).max():.3g}",
    }
    if summary:
        single = {k: v for k, v in summary.items() if isinstance(v, str | int | float)}
        said = {**single, **said}
    sections = [
        Section("The kernel", definitions(said)),
        Section("Spectrum", _spectra({name: values}) + table(rows, "eigenvalues of Θ")),
        Section("Kernel loss", _kernel_loss(name, spectrum)),
        Section("How this was made", _made(run)),
    ]
    return page(f"Neural tangent kernel of {name}", sections)


def losses_table(measured: LossTable) -> str:
    """Measured losses; a dash is a size that was not asked for."""
    rows = [
        {
            "candidate": name,
            **{f"{s:,}": float(x) for s, x in zip(measured.sizes, row, strict=True)},
        }
        for name, row in zip(measured.names, measured.losses, strict=True)
    ]
    return table(rows, "test loss (nats per token) by training examples")


def _ranking(ranking: Ranking, rows: Sequence[Mapping[str, Any]]) -> str:
    what = "predicted loss (nats per token)" if ranking.predicted else "score, lower is better"
    if ranking.selector == "model_size":
        what = "log of the number of parameters"
    body = table(rows, f"{ranking.selector} at {ranking.target_size:,} examples; score: {what}")
    if not ranking.log_std and ranking.predicted:
        body += paragraph(
            "No intervals: they come from the selector's own past, which needs four sizes above 0."
        )
    if ranking.advice is not None:
        body += paragraph(str(ranking.advice))
    return body


def _beside(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a selection knows besides its ranking."""
    names = ("rectified_loss", "budget_loss", "zero_shot_loss", "num_params", "pflops")
    return {name: row[name] for name in names}


def _curves(selection: Selection) -> str:
    ranking = selection.ranking
    drawn = figures.draw_loss_curves(
        selection.table, selection.laws(), target_size=selection.target_size,
        intervals=_intervals(ranking),
    )  # fmt: skip
    return figure(figures.svg(*drawn), _caption(ranking), _spoken(ranking))


def _table_curves(losses: LossTable, ranking: Ranking) -> str:
    fits = ranking.fits
    assert fits is not None  # asked for by the caller
    laws = {n: fits[i].predict for i, n in enumerate(losses.names) if fits[i].status.usable}
    drawn = figures.draw_loss_curves(
        losses, laws, target_size=ranking.target_size, intervals=_intervals(ranking)
    )
    return figure(figures.svg(*drawn), _caption(ranking), _spoken(ranking))


def _intervals(ranking: Ranking) -> dict[str, tuple[float, float]]:
    both = {name: interval_of(ranking, name) for name in ranking.log_std}
    return {name: ends for name, ends in both.items() if np.isfinite(ends).all()}


def _caption(ranking: Ranking) -> str:
    bars = "; bars: 90% interval relative to the other candidates" if ranking.log_std else ""
    return (
        f"Points: measured. Lines: the law of {ranking.selector}. Stars: prediction at "
        f"{ranking.target_size:,} examples{bars}."
    )


def _spoken(ranking: Ranking) -> str:
    losses = ", ".join(f"{n} {ranking.predicted[n]:.3f}" for n in ranking.order)
    return f"Loss against training examples. Predicted at {ranking.target_size}: {losses}."


def _fits(selection: Selection) -> str:
    rows = []
    for i, name in enumerate(selection.names):
        fit = selection.fits[i]
        rows.append(
            {"candidate": name, **fit.params, "log-RMSE": fit.log_rmse, "what it says": fit.message}
        )
    units = ", ".join(f"{name}: {unit}" for name, unit in selection.fits[0].units.items())
    return table(rows, f"L(D) = B / (F(Θ, t) + D^β) + E; {units}")


def _spectra(eigenvalues: Mapping[str, Float[np.ndarray, " n"]]) -> str:
    spoken = ", ".join(
        f"{name} from {values.max():.3g} to {values.min():.3g}"
        for name, values in eigenvalues.items()
    )
    drawn = figures.draw_kernel_spectra(eigenvalues)
    return figure(
        figures.svg(*drawn),
        "Eigenvalues of each kernel, largest first.",
        f"Kernel eigenvalues, largest to smallest: {spoken}.",
    )


def _kernel_loss(name: str, spectrum: NtkSpectrum) -> str:
    start = float(spectrum.loss(np.array(0.0)))
    fastest = 1.0 / (2.0 * spectrum.learning_rate * float(spectrum.eigenvalues.max()))
    steps = fastest * np.geomspace(1e-2, 1e5, 200)
    drawn, axes = figures.axes_with("optimiser steps t", "kernel loss F(Θ, t) (squared output)")
    axes.plot(steps, spectrum.loss(steps), label=name, **figures.colour_of(0))
    axes.set_xscale("log")
    axes.set_title("Decay of the kernel loss (Eq 9)")
    end = float(spectrum.loss(steps[-1:])[0])
    spoken = f"F falls from {start:.4g} at t = 0 to {end:.4g} at t = {steps[-1]:.3g} steps."
    return figure(figures.svg(drawn, axes), spoken, spoken)


def _dropped(selection: Selection) -> list[Section]:
    if not selection.dropped:
        return []
    rows = table(selection.drop_rows(), "losses in nats per token; sizes in training examples")
    return [Section("Dropped", rows + paragraph(DROPPED_NOTE))]


def _orders(selection: Selection) -> str:
    if not selection.costs:
        return ""
    caption = f"orders of measuring, of which {selection.order.value} was run"
    return table(selection.cost_rows(), caption) + paragraph(COST_NOTE)


def _cost(ranking: Ranking) -> str:
    rows = [
        {
            "candidate": entry.candidate,
            "act": entry.act,
            "examples": entry.num_examples if entry.act == "train" else None,
            "PFLOPs": entry.flops / 1e15,
        }
        for entry in ranking.ledger.entries
    ]
    return table(rows, f"{len(rows)} acts, {ranking.flops / 1e15:.4g} PFLOPs in all")


def _made(run: Mapping[str, Any]) -> str:
    settings = {**run["settings"]}
    versions = {k: v for k, v in run.items() if k not in ("settings", "command")}
    return command(run["command"]) + definitions({**settings, **versions})
