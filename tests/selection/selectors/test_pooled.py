"""The shared bend of a task, and what early gain says of it."""

import dataclasses

import numpy as np

from lensllm_jax.selection.problem import Problem
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors.pooled import Constants, _early_gain_shares, views
from tests.selection.fakes import small_table


def test_pooled_sees_the_shared_bend_that_straight_lines_miss():
    table = small_table()
    truth = table.column(51200)
    errors = {}
    for selector in ("pooled", "ats"):
        r = rank(table, budget_size=3200, target_size=51200, selector=selector)
        errors[selector] = np.abs(np.log(list(r.predicted.values())) - np.log(truth)).mean()
    assert errors["pooled"] < errors["ats"]


def test_two_sizes_are_enough_for_pooled_and_give_the_straight_line():
    table = small_table(zero=False)
    r = rank(table, budget_size=400, target_size=51200, selector="pooled")
    assert np.isfinite(list(r.predicted.values())).all()
    # one octave shows no growth: as bold as the line for one view, 0.8 of its slope for the other
    fall = np.log(table.losses[:, 0] / table.losses[:, 1]) * np.log2(51200 / 400)
    expected = table.losses[:, 1] * np.exp(-0.5 * (1.0 + 0.8) * fall)
    np.testing.assert_allclose(list(r.predicted.values()), expected, rtol=1e-12)


def test_the_early_gain_share_is_that_of_the_fall_made_on_the_first_examples():
    sizes = np.array([0, 200, 400])
    losses = np.array([[4.0, 2.0, 1.0], [4.0, 1.0, 1.0], [4.0, np.nan, 1.0], [1.0, 2.0, 3.0]])
    # shares 1/2 and 1; the third was not measured, the fourth never fell
    np.testing.assert_allclose(
        _early_gain_shares(losses, sizes), [-0.25, 0.25, 0.0, 0.0], atol=1e-15
    )
    assert not _early_gain_shares(losses[3:], sizes).any()
    assert not _early_gain_shares(losses[:, 1:], sizes[1:]).any()  # no zero-shot loss


def test_on_a_task_that_does_not_bend_early_gain_changes_nothing():
    table = small_table()
    early = table.losses.copy()
    early[0, 0] *= 3.0
    for bend, changes in ((0.0, False), (0.08, True)):
        x = np.log2(table.sizes[1:] / 200.0)
        way = np.expm1(bend * x) / bend if bend else x
        losses = np.column_stack([early[:, 0], np.exp(0.9 - 0.03 * np.ones((4, 1)) * way)])
        one = Problem(dataclasses.replace(table, losses=losses), target_size=409600)
        off = views(one, constants=Constants(early_gain=0.0))
        assert np.allclose(views(one), off, atol=1e-12) != changes
