"""Figures of the paper hold what their tables hold, each selector in its look."""

import itertools

import pytest

from experiments.common import paper_plots
from lensllm_jax.report.figures import style_of_selector
from tests.committed import table


@pytest.fixture
def panels_of(monkeypatch):
    """The panels of what a function of the module draws."""
    figures = []
    monkeypatch.setattr(paper_plots, "as_png", lambda figure: figures.append(figure) or b"")
    return lambda draw, *arguments, **more: draw(*arguments, **more) or figures[-1].axes


def lines_of(axes):
    return {line.get_label(): line for line in axes.get_lines()}


def test_figure_4_has_a_panel_for_each_metric_and_task(panels_of):
    rows = table("saving")
    tasks = list(dict.fromkeys(row["task"] for row in rows))
    panels = panels_of(paper_plots.saving_figure, rows)
    assert [axes.get_title() for axes in panels] == [*tasks, *[""] * len(tasks)]
    assert [panels[0].get_ylabel(), panels[len(tasks)].get_ylabel()] == [
        *paper_plots.METRICS.values()
    ]
    assert all(axes.get_xlabel() for axes in panels[len(tasks) :])


def test_figure_4_holds_every_point_that_costs_something(panels_of):
    rows = table("saving")
    task = rows[0]["task"]
    above = lines_of(panels_of(paper_plots.saving_figure, rows)[0])
    for name in {row["selector"] for row in rows}:
        points = {
            (float(row["percent_of_full_tuning"]), float(row["pearson"]))
            for row in rows
            if (row["task"], row["selector"]) == (task, name)
            and float(row["flops"]) > 0 and row["pearson"]
        }  # fmt: skip
        assert (name in above) == bool(points)
        if points:
            assert set(zip(*above[name].get_data(), strict=True)) == points
            style = style_of_selector(name)
            assert (above[name].get_color(), above[name].get_marker()) == (
                style["color"],
                style["marker"],
            )
    assert "zero_shot" not in above
    x, y = above["Pareto front"].get_data()
    assert (x[-1], y[-1]) == (100.0, 100.0)
    assert all(a <= b for a, b in itertools.pairwise(y))


def test_a_law_looks_like_its_selector(panels_of):
    rows = [
        {"task": "a", "law": law, "budget_fraction": budget, "mean_rmse": "0.1"}
        for law in ("lensllm", "power")
        for budget in ("0.5", "1.0")
    ]
    (axes,) = panels_of(paper_plots.errors_figure, rows, laws=["lensllm", "power"])
    for law, line in lines_of(axes).items():
        assert line.get_color() == style_of_selector(law)["color"]


def test_linear_training_shows_both_residuals_of_every_share_as_parts_of_the_start(panels_of):
    rows = [
        {"candidate": name, "share": share, "step": str(step),
         "measured": str(8.0 / (1 + step)), "linear": str(8.0 * 0.5**step)}
        for name in ("a", "b") for share in ("1", "0.1") for step in (0, 1, 2)
    ]  # fmt: skip
    panels = panels_of(paper_plots.linear_training_figure, rows, task="toy")
    assert [axes.get_title() for axes in panels] == ["a", "b"]
    lines = lines_of(panels[1])
    assert len(lines) == 4
    x, y = lines["linear, 0.1"].get_data()
    assert (list(x), list(y)) == ([0.0, 0.1, 0.2], [1.0, 0.5, 0.25])
    assert list(lines["measured, 1"].get_data()[1]) == [1.0, 0.5, 1 / 3]
