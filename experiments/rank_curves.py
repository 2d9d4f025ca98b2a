r"""Every selector on measured curves: how well each ranks, and picks, at each budget.

    python -m experiments.rank_curves --curves=lin2024/flan,lin2024/gigaword --output_dir=out/curves
    python -m experiments.rank_curves --curves=lin2024/flan --budgets=8,64 --selectors=ats,pooled \
        --output_dir=out/few
    python -m experiments.rank_curves --curves=lin2024/flan --ablation --output_dir=out/ablation

A budget of 8 means sizes up to 1/8 of the table's largest, which is the target.  Writes
selection.csv (task, budget_fraction, selector, pearson, relative_accuracy, flops, seconds),
selected.csv (the selected candidate, how sure, what to measure next), ablation.csv (gamma x tau, on
request), report.html, and for each task a figure of both metrics against budget and one of
predicted against true loss.  Under a minute for two tables on two cores.  Expected: ats gives
the published rows (FLAN PearCorr 90.9 73.1 65.5 61.1 52.2 50.5 45.6), pooled a mean of 73.1 on
FLAN and 93.8 on Gigaword with relative accuracies of 96.0 and 97.1.

PearCorr is the correlation in percent between scores and true losses: predicted losses should
correlate positively; model_size scores by log N, so there a negative value means bigger is better.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments.common import cli
from experiments.common.curves import (
    budgets_of,
    digests,
    read_curves,
    selectors_of,
)
from experiments.common.flags import (
    define_budgets_there,
    define_curves,
    define_gamma,
    define_higher_is_better,
    define_output_dir,
    define_quiet,
    define_selectors,
    define_tau,
    define_tokens_per_example,
)
from experiments.common.ranking_metrics import metrics_row, show_metrics
from lensllm_jax import checks
from lensllm_jax.report import figures
from lensllm_jax.report.curves import curves_report
from lensllm_jax.report.html import to_html
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.run_folder import RUN, RunFolder, file_name_of, known
from lensllm_jax.selection.flops import TrainingCost
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.ranking import Ranking, RankingMetrics
from lensllm_jax.selection.selectors import SELECTORS

CURVES = define_curves()
HIGHER_IS_BETTER = define_higher_is_better()
BUDGETS = define_budgets_there()
SELECTED = define_selectors()
OUTPUT_DIR = define_output_dir()
GAMMA = define_gamma()
TAU = define_tau()
TOKENS = define_tokens_per_example("Tokens per example, for the FLOPs.")
EPOCHS = flags.DEFINE_float("epochs", 1.0, "Epochs of a fine-tune, for the FLOPs.")
ROUNDS = flags.DEFINE_float("search_rounds", 1.0, "Fine-tunes per subset, for the FLOPs.")
QUIET = define_quiet()
ABLATION = flags.DEFINE_bool("ablation", False, "Also run gamma 3..5 x tau 1..5.")

GAMMAS, TAUS = (3, 4, 5), (1.0, 2.0, 3.0, 4.0, 5.0)
ABLATED = ("lensllm", "ats")

Key = tuple[str, int, str]  # task, divisor, selector


def main(_: Sequence[str]) -> None:
    """Reads the tables, ranks at every budget, writes the results."""
    names = selectors_of(SELECTED.value)
    cost = TrainingCost(TOKENS.value, EPOCHS.value, ROUNDS.value)
    tables = read_curves(CURVES.value, higher_is_better=HIGHER_IS_BETTER.value)
    divisors = {table.task: _checked_budgets(table) for table in tables}
    folder = RunFolder.open(OUTPUT_DIR.value, _settings(names, divisors))
    settings = {"halving": Halving(gamma=GAMMA.value, tau=TAU.value), "cost": cost}
    rankings = _rank_all(tables, divisors, names, settings)
    _write(folder, "selection.csv", [_row(tables, k, r) for k, r in rankings.items()])
    _write(folder, "selected.csv", [_selected_row(k, r) for k, r in rankings.items()])
    folder.write_text("report.html", _page(tables, rankings, folder))
    for table in tables:
        _print_table(table, divisors[table.task], names, rankings)
        stem = file_name_of(table.task)
        figure = _metrics_figure(table, divisors[table.task], rankings)
        folder.write_bytes(f"{stem}_metrics.png", figure)
        folder.write_bytes(f"{stem}_predicted.png", _predicted_figure(table, rankings))
    if ABLATION.value:
        _write(folder, "ablation.csv", _ablation(tables, divisors, cost))
    print(f"written to {folder.path}")


def _settings(names: Sequence[str], divisors: Mapping[str, list[int]]) -> dict[str, Any]:
    return {
        "curves": digests(CURVES.value),
        "higher_is_better": HIGHER_IS_BETTER.value,
        "selectors": list(names),
        "budgets": dict(divisors),
        "gamma": GAMMA.value,
        "tau": TAU.value,
        "tokens_per_example": TOKENS.value,
        "epochs": EPOCHS.value,
        "search_rounds": ROUNDS.value,
        "ablation": ABLATION.value,
        "seed": None,  # nothing is random
    }


def _checked_budgets(table: LossTable) -> list[int]:
    if len(table.names) < 2:
        raise checks.UserError(
            f"{table.task}: a ranking must have two or more candidates, got {table.names[0]!r}"
        )
    return budgets_of(table, BUDGETS.value)


def _rank_all(
    tables: Sequence[LossTable], divisors: Mapping[str, list[int]], names: Sequence[str],
    settings: Mapping[str, Any],
) -> dict[Key, Ranking]:  # fmt: skip
    rankings: dict[Key, Ranking] = {}
    total = float(len(names) * sum(map(len, divisors.values())))
    with Progress(total=total, quiet=QUIET.value) as progress:
        for table in tables:
            for name in names:
                for divisor in divisors[table.task]:
                    ranking = _rank_or_skip(table, divisor, name, settings)
                    if ranking is not None:
                        rankings[table.task, divisor, name] = ranking
                    progress.finish(1.0, f"{table.task} 1/{divisor} {name}")
    return rankings


def _rank_or_skip(table, divisor, name, settings) -> Ranking | None:
    """None if the table lacks what the selector needs, unless --selectors names it."""
    target = int(table.sizes[-1])
    try:
        return rank(
            table, budget_size=target // divisor, target_size=target, selector=name, **settings
        )
    except checks.UserError as error:
        if SELECTED.value != ["all"]:
            raise
        terminal.warn(f"{table.task}: no {name}: {error}")
        return None


def _metrics(table: LossTable, ranking: Ranking) -> RankingMetrics:
    """PearCorr and RelAcc by the losses at the largest size."""
    return ranking.evaluate(table.by_name(int(table.sizes[-1])))


def _row(tables: Sequence[LossTable], key: Key, ranking: Ranking) -> dict[str, Any]:
    task, divisor, name = key
    return metrics_row(next(t for t in tables if t.task == task), name, divisor, ranking)


def _selected_row(key: Key, ranking: Ranking) -> dict[str, Any]:
    task, divisor, name = key
    scored = [name for name in ranking.order if math.isfinite(ranking.scores[name])]
    first, second = [*scored, "", ""][:2]
    return {
        "task": task,
        "budget_fraction": 1.0 / divisor,
        "selector": name,
        "selected": first,
        "runner_up": second,
        "probability": ranking.probability(first, second) if second else math.nan,
        "next_measurement": "" if ranking.advice is None else str(ranking.advice),
    }


def _page(tables, rankings: Mapping[Key, Ranking], folder: RunFolder) -> str:
    nested: dict[str, dict[int, dict[str, Ranking]]] = {}
    for (task, divisor, name), ranking in rankings.items():
        nested.setdefault(task, {}).setdefault(divisor, {})[name] = ranking
    rows = [_row(tables, key, ranking) for key, ranking in rankings.items()]
    return to_html(curves_report(tables, nested, rows, folder.read_json(RUN)))


def _ablation(tables, divisors, cost) -> list[dict[str, Any]]:
    rows = []
    for gamma in GAMMAS:
        for tau in TAUS:
            settings = {"halving": Halving(gamma, tau), "cost": cost}
            rankings = _rank_all(tables, divisors, ABLATED, settings)
            rows += [
                {"gamma": gamma, "tau": tau, **_row(tables, key, ranking)}
                for key, ranking in rankings.items()
            ]
    return rows


def _write(folder: RunFolder, name: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A table, in which a number that is not known is an empty cell."""
    if not rows:
        raise checks.UserError("`selectors` must leave one that the tables allow, got none")
    folder.write_rows(name, [known(row) for row in rows])


def _print_table(table: LossTable, divisors, names, rankings) -> None:
    whole = [n for n in names if all((table.task, d, n) in rankings for d in divisors)]
    show_metrics(table.task, divisors, {
        name: [_metrics(table, rankings[table.task, divisor, name]) for divisor in divisors]
        for name in whole
    })  # fmt: skip


def _ranked_on(table: LossTable, rankings) -> list[str]:
    """Selectors with a ranking of the table, in the order in which they are drawn."""
    names = {name for task, _, name in rankings if task == table.task}
    return [name for name in SELECTORS if name in names]


def _metrics_figure(table: LossTable, divisors, rankings) -> bytes:
    x_label = "budget (fraction of the full data)"
    figure, panels = figures.panels((x_label, "PearCorr (%)"), (x_label, "RelAcc (%)"), width=12.0)
    for name in _ranked_on(table, rankings):
        ranked = [d for d in divisors if (table.task, d, name) in rankings]
        values = [_metrics(table, rankings[table.task, d, name]) for d in ranked]
        for axes, series in zip(panels, zip(*values, strict=True), strict=True):
            shares = [1.0 / d for d in ranked]
            axes.plot(shares, series, label=name, **figures.style_of_selector(name))
    for axes in panels:
        axes.set_xscale("log", base=2)
        axes.set_xticks([1.0 / d for d in divisors], [f"1/{d}" for d in divisors])
        axes.minorticks_off()
    figure.suptitle(f"{table.task}: target {table.sizes[-1]:,} examples")
    return figures.png(figure, panels[-1])


def _predicted_figure(table: LossTable, rankings) -> bytes:
    """Predicted against true loss at the largest budget, of the selectors that predict one."""
    predicting = {key: r for key, r in rankings.items() if key[0] == table.task and r.predicted}
    truth = table.column(int(table.sizes[-1]))
    least = min((key[1] for key in predicting), default=0)
    figure, axes = figures.axes_with(table.in_unit("true loss"), table.in_unit("predicted loss"))
    for name in _ranked_on(table, predicting):
        by_name = predicting[table.task, least, name].predicted
        predicted = [by_name[candidate] for candidate in table.names]
        style = {**figures.style_of_selector(name), "linestyle": "none"}
        axes.plot(truth, predicted, label=name, **style)
    axes.axline((truth.min(), truth.min()), slope=1.0, color="black", linewidth=0.8)
    axes.set_title(f"{table.task}: predicted from 1/{least} of the data")
    return figures.png(figure, axes)


if __name__ == "__main__":
    cli.run(main)
