"""Draws every figure of docs/REPRODUCTION.md from the committed tables alone.

    python -m experiments.paper_figures --tables=experiments/results --output_dir=out/figures

or `make figures`.  Nothing is measured, fitted or drawn at random here: the same tables give the
same bytes.  --output_dir receives one PNG per figure; one that is there is made again.  Under a
minute on 2 cores.  Expected: Figures 2 to 4, Tables 3 and 5 to 7, calibration, and three of each
task's kernels.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np

from experiments.common import cli, paper_plots
from experiments.common.flags import define_output_dir, define_tables
from lensllm_jax import checks, durable
from lensllm_jax.report.figures import draw_kernel_spectra, png
from lensllm_jax.runs.run_folder import read_rows
from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.loss_table import read_loss_table

TABLES_FOLDER = define_tables(default="experiments/results")
OUTPUT_DIR = define_output_dir()

LAWS = [law.value for law in (Law.LENSLLM, Law.RECTIFIED, Law.VANILLA, Law.POWER)]
SELECTORS = [
    "posterior", "lensllm", "pooled", "ats", "rectified", "vanilla", "power", "subtuning",
    "zero_shot", "model_size", "nlp_metrics", "logme",
]  # fmt: skip
UNITS = {"as it stands": "as it stands", "fitted": "up to a factor"}
SPECTRUM = ("target_logprob", "64")  # of the figure of spectra

Rows = list[dict[str, str]]


def main(_: Sequence[str]) -> None:
    """Draws what the tables allow."""
    tables, output = Path(TABLES_FOLDER.value), Path(OUTPUT_DIR.value)
    if not tables.is_dir():
        raise checks.UserError(f"`tables` must be a folder of tables, got {tables}")
    if output.is_file():
        raise checks.UserError(f"`output_dir` must be a folder, got the file {output}")
    figures = list(figures_of(tables))
    if not figures:
        raise checks.UserError(f"`tables` must hold a table of results, got none in {tables}")
    for name, draw in figures:
        durable.replace(output / name, draw())
        print(output / name)


def figures_of(tables: Path) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """The name of each figure that the folder's tables allow, and a function that draws it."""
    for path in sorted(tables.glob("phases_*.csv")):
        for task, rows in _by_task(read_rows(path)).items():
            losses = tables / f"{task}.csv"
            if losses.exists():  # curves that are not ours to keep have no figure
                table = read_loss_table(losses)
                yield f"figure2_{_short(task)}.png", partial(paper_plots.phases_figure, table, rows)
    if rows := _joined(tables, "laws_*.csv"):
        yield "figure3_laws.png", partial(paper_plots.errors_figure, rows, laws=LAWS)
    if rows := _joined(tables, "selection_*.csv"):
        for metric in paper_plots.METRICS:
            draw = partial(paper_plots.metrics_figure, rows, metric=metric, selectors=SELECTORS)
            yield f"table3_{metric}.png", draw
    if rows := _joined(tables, "saving.csv"):
        yield "figure4_saving.png", partial(paper_plots.saving_figure, rows)
    if rows := _joined(tables, "calibration.csv"):
        yield "calibration.png", partial(paper_plots.calibration_figure, rows)
    if rows := _joined(tables, "ablation_*.csv"):
        draw = partial(paper_plots.ablation_figure, rows, selector="lensllm")
        yield "tables5to7_ablation.png", draw
    for path in sorted(tables.glob("*_linear_training.csv")):
        task = path.name.removesuffix("_linear_training.csv")
        draw = partial(paper_plots.linear_training_figure, read_rows(path), task=task)
        yield f"linear_training_{task}.png", draw
    for path in sorted(tables.glob("*_spectra.csv")):
        task = path.name.removesuffix("_spectra.csv")
        yield f"spectra_{task}.png", partial(_spectra, read_rows(path))
        if rows := _optional(tables / f"{task}_kernel_laws.csv"):
            yield f"kernel_laws_{task}.png", partial(_kernel_laws, rows, task)
        if rows := _optional(tables / f"{task}_kernel_value.csv"):
            yield f"kernel_value_{task}.png", partial(_kernel_value, rows, task)


def _optional(path: Path) -> Rows:
    return read_rows(path) if path.exists() else []


def _joined(tables: Path, pattern: str) -> Rows:
    """Rows of all tables of one kind, public curves first; loss tables lose their ending."""
    paths = sorted(tables.glob(pattern), key=lambda path: ("public" not in path.name, path.name))
    return [{**row, "task": _short(row["task"])} for path in paths for row in read_rows(path)]


def _short(task: str) -> str:
    return task.removesuffix("_losses")


def _by_task(rows: Rows) -> dict[str, Rows]:
    by_task: dict[str, Rows] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    return by_task


def _spectra(rows: Rows) -> bytes:
    eigenvalues = {
        row["candidate"].removeprefix("zoo/"): np.array(row["eigenvalues"].split(), float)
        for row in rows
        if (row["readout"], row["num_examples"]) == SPECTRUM
    }
    return png(*draw_kernel_spectra(eigenvalues))


def _kernel_laws(rows: Rows, task: str) -> bytes:
    """Held-out differences of the laws with F measured, by what stands in the place of F."""
    compared = [
        {**row, "mean": row["less_rectified"]}
        for row in rows
        if float(row["budget_fraction"]) < 1 and row["less_rectified"] and row["readout"]
    ]
    groups = _grouped(compared, lambda row: f"{row['form']}, F {UNITS[row['unit']]}")
    return paper_plots.differences_figure(
        compared,
        groups=groups,
        x_label="RMSE minus rectified's (nats/byte)",
        title=f"{task}: Eq 10 with F measured, held out (left of 0: F helps)",
    )


def _kernel_value(rows: Rows, task: str) -> bytes:
    """Differences that the kernel makes to a method that does without it."""
    compared = [{**row, "mean": row["less_control"]} for row in rows if row["less_control"]]
    groups = _grouped(
        compared,
        lambda row: "prior of D_l from F" if row["method"] == "prior"
        else f"{row['uses']} on {row['method'].removeprefix('covariates of ')}",
    )  # fmt: skip
    return paper_plots.differences_figure(
        compared,
        groups=groups,
        x_label="|error| minus control's (nats/byte)",
        title=f"{task}: what the kernel adds to a prediction without it (left of 0: it helps)",
    )


def _grouped(rows: Rows, label: Callable[[dict[str, str]], str]) -> dict[str, list[int]]:
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        groups.setdefault(label(row), []).append(i)
    return groups


if __name__ == "__main__":
    cli.run(main)
