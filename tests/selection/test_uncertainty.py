"""Probabilities are calibrated, and the advice separates the first two at the least cost."""

import dataclasses

import numpy as np

from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.rank import rank
from tests.selection.fakes import small_table
from tests.selection.tables import TABLES


def test_probabilities_are_better_than_a_coin_and_sure_ones_are_mostly_right():
    for task in TABLES:
        table = read_loss_table(TABLES[task])
        truth = table.column(1638400)
        r = rank(table, budget_size=204800, target_size=1638400, selector="pooled")
        first, second = np.triu_indices(len(truth), 1)
        p, wins = r.win_probability[first, second], truth[first] < truth[second]
        brier = np.mean((p - wins) ** 2)
        assert brier < 0.1 < 0.25  # a coin's
        sure = np.maximum(p, 1 - p) > 0.9
        assert np.mean((p > 0.5)[sure] == wins[sure]) > 0.9


def test_scores_that_read_no_loss_need_no_earlier_one():
    losses = np.array([[3.0, np.nan, 2.0], [3.1, 2.5, 2.2], [np.nan, 2.6, 2.4]])
    params = np.array([3e6, 2e6, 1e6])
    table = LossTable(("a", "b", "c"), np.array([200, 400, 800]), losses, params, ("",) * 3)
    settings = {"budget_size": 800, "target_size": 3200}
    by_size = rank(table, **settings, selector="model_size")
    assert by_size.probability("a", "b") == 1.0
    assert np.isnan(rank(table, **settings, selector="subtuning").probability("a", "b"))


def test_close_candidates_need_more_data_and_the_cheaper_one_is_measured_next():
    table = small_table(2)
    twin = table.losses[[0, 0]] * np.array([[1.0], [1.001]])
    wiggle = 1 + 0.01 * np.sin(np.arange(len(table.sizes)) * np.array([[1.7], [2.3]]))
    r = rank(
        dataclasses.replace(table, losses=twin * wiggle, num_params=np.array([1e6, 1e9])),
        budget_size=6400,
        target_size=51200,
        selector="pooled",
    )
    assert r.advice is not None
    assert r.advice.candidate == "m0"
    assert 6400 < r.advice.size <= 51200
    assert r.advice.gap_std_after < r.advice.gap_std_before
    assert "FLOPs" in str(r.advice)
    unknown = dataclasses.replace(r.advice, flops=float("nan"))
    assert str(unknown).endswith(f"fine-tune m0 on {r.advice.size} examples")
    clear = dataclasses.replace(table, losses=table.losses[[0, 0]] * np.array([[1.0], [3.0]]))
    r = rank(clear, budget_size=6400, target_size=51200, selector="pooled")
    assert r.advice is None
