"""The report of rankings from tables of losses."""

from collections.abc import Mapping, Sequence
from typing import Any

from lensllm_jax.report import _parts
from lensllm_jax.report.sections import Block, Drawing, Report, Section, Table
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.ranking import Ranking


def curves_report(
    tables: Sequence[LossTable],
    rankings: Mapping[str, Mapping[int, Mapping[str, Ranking]]],
    rows: Sequence[Mapping[str, Any]],
    run: _parts.Run,
) -> Report:
    """Every selector at every budget, then each task at its largest budget.

    Args:
        tables: one per task.
        rankings: task -> divisor of the largest size -> selector -> ranking.
        rows: of selection.csv: how good each was.
        run: content of run.json.
    """
    metrics = Table(rows, "PearCorr and relative accuracy in percent; FLOPs and seconds spent")
    sections = [Section("Every selector at every budget", [metrics])]
    for losses in tables:
        if by_divisor := rankings.get(losses.task):
            sections += _of_task(losses, by_divisor[min(by_divisor)])
    made = Section("How this was made", [_parts.command(run)], details=[_parts.settings(run)])
    return Report("Rankings from measured losses", [*sections, made])


def _of_task(losses: LossTable, rankings: Mapping[str, Ranking]) -> list[Section]:
    """Selector -> ranking at the largest budget, the curves, the losses and the cost."""
    sections = [
        Section(
            f"{losses.task}: {name} from {ranking.budget_size:,} examples",
            _ranking(ranking, losses.in_unit("predicted loss")),
        )
        for name, ranking in rankings.items()
    ]
    with_law = next((r for r in rankings.values() if r.fits is not None and r.predicted), None)
    if with_law is not None:
        sections.append(Section(f"{losses.task}: curves", [_curves(losses, with_law)]))
    cost = Table(
        [{"selector": name, "FLOPs": ranking.flops} for name, ranking in rankings.items()],
        "what each selector's measurements cost, at the stated tokens per example",
    )
    sections.append(Section(f"{losses.task}: losses", [_parts.losses_table(losses)]))
    sections.append(Section(f"{losses.task}: cost", [cost]))
    return sections


def _ranking(ranking: Ranking, predicted: str) -> list[Block]:
    what = predicted if ranking.predicted else "lower is better"
    if ranking.selector == "model_size":
        what = "log of the number of parameters"
    caption = f"{ranking.selector} at {ranking.target_size:,} examples; score: {what}"
    return [Table(ranking.rows(), caption), *_parts.certainty(ranking)]


def _curves(losses: LossTable, ranking: Ranking) -> Drawing:
    fits = ranking.fits
    assert fits is not None  # the caller's choice
    laws = {n: fits[i].predict for i, n in enumerate(losses.names) if fits[i].status.usable}
    return _parts.curves(losses, laws, ranking)
