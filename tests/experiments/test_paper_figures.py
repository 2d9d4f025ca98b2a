"""Every committed table has its figure, drawn from the table alone."""

from pathlib import Path

import pytest

from lensllm_jax import checks
from tests.messages.binaries import load

figures = load("paper_figures").module
figures_of = figures.figures_of

RESULTS = Path(__file__).parents[2] / "experiments" / "results"


def test_the_committed_tables_give_every_figure():
    names = [name for name, _ in figures_of(RESULTS)]
    assert len(set(names)) == len(names)
    assert {
        "figure2_pydoc.png", "figure3_laws.png", "table3_pearson.png",
        "table3_relative_accuracy.png", "tables5to7_ablation.png", "spectra_pydoc.png",
        "kernel_laws_pydoc.png", "kernel_value_pydoc.png",
    } <= set(names)  # fmt: skip


@pytest.mark.parametrize("name", ["figure3_laws.png", "kernel_value_pydoc.png"])
def test_a_figure_is_the_same_bytes_each_time(name):
    draw = dict(figures_of(RESULTS))[name]
    picture = draw()
    assert picture[:8] == b"\x89PNG\r\n\x1a\n"
    assert picture == draw()


def test_a_table_that_is_gone_has_no_figure(tmp_path):
    assert list(figures_of(tmp_path)) == []
    (tmp_path / "laws_toy.csv").write_text("task,law,budget_fraction,mean_rmse\n")
    assert list(figures_of(tmp_path)) == []
    figures.TABLES_FOLDER.value, figures.OUTPUT_DIR.value = str(tmp_path), str(tmp_path / "out")
    with pytest.raises(checks.UserError, match="must hold a table of results, got none"):
        figures.main([])
