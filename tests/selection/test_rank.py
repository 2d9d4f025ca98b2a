"""The selectors: the published rows, our own targets, certainty, cost, and bad input."""

import dataclasses

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.selection.flops import (
    FlopsLedger,
    TrainingCost,
    kernel_flops,
    training_flops,
)
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable, read_loss_table
from lensllm_jax.selection.problem import Evidence, Problem
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors import NEEDS, SELECTORS
from lensllm_jax.selection.selectors.pooled import Constants, early_gain_shares, views
from tests.selection.tables import BUDGET_FRACTIONS, TABLES, needs_tables

FROM_TABLE = sorted(set(SELECTORS) - set(NEEDS))
PREDICTING = ("ats", "lensllm", "pooled", "power", "rectified", "vanilla")

# Lin et al. 2024, results of their repository at commit 5214568, as printed there
PUBLISHED = {
    ("flan", "ats"): (
        [90.9, 73.1, 65.5, 61.1, 52.2, 50.5, 45.6],
        [93.6, 93.2, 93.2, 93.2, 85.3, 93.2, 93.2],
    ),
    ("gigaword", "ats"): (
        [98.9, 97.6, 96.9, 92.0, 91.1, 89.1, 91.0],
        [100.0, 91.4, 94.3, 100.0, 94.3, 94.3, 91.4],
    ),
    ("flan", "subtuning"): (
        [60.9, 46.5, 36.4, 29.0, 24.6, 20.9, 16.4],
        [93.2, 93.2, 93.2, 93.2, 59.6, 59.6, 59.6],
    ),
    ("gigaword", "subtuning"): (
        [93.2, 89.3, 85.4, 80.9, 76.2, 69.9, 64.8],
        [87.6, 87.6, 87.6, 71.3, 71.3, 71.3, 71.3],
    ),
    ("flan", "zero_shot"): ([-10.7] * 7, [85.3] * 7),
    ("gigaword", "zero_shot"): ([-49.2] * 7, [71.3] * 7),
    ("flan", "model_size"): ([-20.9] * 7, [59.6] * 7),
    ("gigaword", "model_size"): ([-24.45] * 7, [71.3] * 7),  # printed as -24.4
}


def small_table(num_candidates=4, num_sizes=9, *, zero=True):
    """Candidates that differ in level and slope, and whose slopes steepen together."""
    sizes = 200 * 2 ** np.arange(num_sizes)
    x = np.log2(sizes / 200.0)
    rows = np.arange(num_candidates, dtype=float)
    slopes = 0.02 + 0.01 * rows
    losses = np.exp(0.9 + 0.06 * rows[:, None] - slopes[:, None] * np.expm1(0.08 * x) / 0.08)
    if zero:
        sizes, losses = np.append(0, sizes), np.column_stack([1.3 * losses[:, 0], losses])
    names = tuple(f"m{i}" for i in range(num_candidates))
    return LossTable(names, sizes, losses, 1e6 * (1 + rows), ("",) * num_candidates, "toy")


def metrics(task, selector):
    table = read_loss_table(TABLES[task])
    target = int(table.sizes[-1])
    truth = table.column(target)
    pearson, accuracy = [], []
    for fraction in BUDGET_FRACTIONS:
        r = rank(table, budget_size=target // fraction, target_size=target, selector=selector)
        pearson.append(pearson_correlation(list(r.scores.values()), truth))
        accuracy.append(relative_accuracy(float(truth[table.names.index(r.selected)]), truth))
    return np.array(pearson), np.array(accuracy)


@needs_tables
@pytest.mark.parametrize(("task", "selector"), PUBLISHED)
def test_published_rows_are_reproduced(task, selector):
    pearson, accuracy = metrics(task, selector)
    expected, expected_accuracy = PUBLISHED[task, selector]
    # printed with one decimal, of a number that was rounded to four before
    np.testing.assert_allclose(pearson, expected, atol=0.055)
    np.testing.assert_allclose(accuracy, expected_accuracy, atol=0.055)


@needs_tables
@pytest.mark.parametrize(("task", "least"), [("flan", 73.0), ("gigaword", 93.8)])
def test_pooled_ranks_and_picks_better_than_ats(task, least):
    pearson, accuracy = metrics(task, "pooled")
    ats_pearson, ats_accuracy = metrics(task, "ats")
    assert pearson.mean() >= max(least, ats_pearson.mean())
    assert accuracy.mean() >= max(95.0, ats_accuracy.mean())


@needs_tables
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


@pytest.mark.parametrize("selector", FROM_TABLE)
def test_every_selector_gives_order_probability_and_flops(selector):
    table = small_table()
    r = rank(table, budget_size=12800, target_size=51200, selector=selector)
    assert sorted(r.order) == sorted(table.names)
    assert np.isfinite(list(r.scores.values())).all()
    assert (len(r.predicted) == 4) == (selector in PREDICTING)
    p = r.win_probability
    np.testing.assert_allclose(p + p.T, 1.0, atol=1e-12)
    assert r.probability("m0", "m0") == 0.5
    trains = selector not in ("zero_shot", "model_size")
    assert (r.flops > 0) == trains


@pytest.mark.parametrize("selector", FROM_TABLE)
def test_sizes_above_the_budget_are_not_looked_at(selector):
    table = small_table()
    spoilt = table.losses.copy()
    spoilt[:, table.sizes > 3200] = 7.0
    ranks = [
        rank(t, budget_size=3200, target_size=51200, selector=selector)
        for t in (table, dataclasses.replace(table, losses=spoilt))
    ]
    assert ranks[0].scores == ranks[1].scores
    assert ranks[0].order == ranks[1].order


def test_pooled_sees_the_shared_bend_that_straight_lines_miss():
    table = small_table()
    truth = table.column(51200)
    errors = {}
    for selector in ("pooled", "ats"):
        r = rank(table, budget_size=3200, target_size=51200, selector=selector)
        errors[selector] = np.abs(np.log(list(r.predicted.values())) - np.log(truth)).mean()
    assert errors["pooled"] < errors["ats"]


def test_the_early_gain_share_is_that_of_the_fall_made_on_the_first_examples():
    sizes = np.array([0, 200, 400])
    losses = np.array([[4.0, 2.0, 1.0], [4.0, 1.0, 1.0], [4.0, np.nan, 1.0], [1.0, 2.0, 3.0]])
    # shares 1/2 and 1; the third was not measured, the fourth never fell
    np.testing.assert_allclose(
        early_gain_shares(losses, sizes), [-0.25, 0.25, 0.0, 0.0], atol=1e-15
    )
    assert not early_gain_shares(losses[3:], sizes).any()
    assert not early_gain_shares(losses[:, 1:], sizes[1:]).any()  # no zero-shot loss


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


def test_ledger_counts_six_n_tokens_epochs_and_rounds():
    cost = TrainingCost(tokens_per_example=10.0, epochs=2.0, search_rounds=3.0)
    r = rank(small_table(1), budget_size=800, target_size=1600, selector="subtuning", cost=cost)
    assert r.flops == 6 * 1e6 * 800 * 10 * 2 * 3
    kernels = {"m0": 5.0}
    table = small_table(1)
    with_kernel, without = (
        rank(table, budget_size=6400, target_size=51200, evidence=Evidence(kernel_flops=k))
        for k in (kernels, None)
    )
    assert with_kernel.flops == without.flops + 5.0


def test_what_was_really_spent_takes_the_place_of_the_estimate():
    spent = FlopsLedger().train("m0", num_params=1e6, num_examples=800, num_tokens=1e3)
    r = rank(
        small_table(1),
        budget_size=800,
        target_size=1600,
        selector="ats",
        evidence=Evidence(ledger=spent),
    )
    assert r.ledger is spent
    assert r.flops == training_flops(1e6, 1e3) == 6e9


def test_a_kernel_costs_its_gradients_and_their_products():
    # 3 gradients of 5 tokens each, 6 pairs of 10 multiplications and 10 additions
    assert kernel_flops(10.0, num_examples=3, num_tokens=15.0) == 6 * 10 * 15 + 6 * 20


@pytest.mark.parametrize("selector", FROM_TABLE)
def test_a_selector_hands_out_the_fits_that_made_its_predictions(selector):
    r = rank(small_table(), budget_size=12800, target_size=51200, selector=selector)
    assert (r.fits is not None) == (selector in ("lensllm", "power", "rectified", "vanilla"))
    if r.fits is not None:
        predicted = r.fits.predict(np.array([51200.0]))[:, 0]
        np.testing.assert_array_equal(predicted, list(r.predicted.values()))


def test_lensllm_with_kernels_reports_both_phases_and_respects_the_bound():
    table = small_table(2)
    spectra = {n: NtkSpectrum(np.array([0.1, 1.0]), np.array([2.0, 3.0]), 0.1) for n in table.names}
    measured = {n: np.linspace(4.0, 1.0, len(table.sizes) - 2) for n in table.names}
    r = rank(
        table,
        budget_size=12800,
        target_size=51200,
        evidence=Evidence(ntk_spectra=spectra, ntk_losses=measured),
    )
    assert all("phase fitting log-RMSE" in m and "one free t" in m for m in r.messages.values())
    partial = Evidence(ntk_spectra={"m0": spectra["m0"]})
    with pytest.raises(checks.UserError, match="got none for 'm1'"):
        rank(table, budget_size=12800, target_size=51200, evidence=partial)


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
    clear = dataclasses.replace(table, losses=table.losses[[0, 0]] * np.array([[1.0], [3.0]]))
    r = rank(clear, budget_size=6400, target_size=51200, selector="pooled")
    assert r.advice is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"budget_size": 300}, "`budget_size` must be one of"),
        ({"budget_size": 0}, "`budget_size` must be one of"),
        ({"target_size": 3200}, "`target_size` must be above"),
        ({"target_size": 200}, "`target_size` must be above"),
        ({"selector": "oracle"}, "`selector` must be one of"),
        ({"selector": "nlp_metrics"}, "`weights` must have an entry"),
        ({"selector": "logme"}, "`features` must have an entry"),
    ],
)
def test_bad_settings_are_one_clear_error(settings, message):
    with pytest.raises(checks.UserError, match=message):
        rank(small_table(), **{"budget_size": 3200, "target_size": 51200, **settings})


def test_zero_shot_without_size_zero_and_model_size_without_sizes_say_what_is_missing():
    table = small_table(zero=False)
    with pytest.raises(checks.UserError, match="`size` must be one of"):
        rank(table, budget_size=3200, target_size=51200, selector="zero_shot")
    unknown = dataclasses.replace(table, num_params=np.full(4, np.nan))
    with pytest.raises(checks.UserError, match="every candidate's `size`"):
        rank(unknown, budget_size=3200, target_size=51200, selector="model_size")
    assert np.isnan(rank(unknown, budget_size=3200, target_size=51200, selector="ats").flops)


@pytest.mark.parametrize("selector", PREDICTING)
def test_without_size_zero_with_one_model_and_with_gaps_there_is_still_an_answer(selector):
    for table in (small_table(zero=False), small_table(1), gappy()):
        r = rank(table, budget_size=12800, target_size=51200, selector=selector)
        assert np.isfinite(list(r.predicted.values())).all()


def gappy():
    table = small_table()
    losses = table.losses.copy()
    losses[1, 1:3] = np.nan  # a candidate whose search had stopped
    return dataclasses.replace(table, losses=losses)


def test_a_ranking_is_evaluated_by_its_pick_and_by_the_scores_that_it_has():
    table = small_table()
    ranking = rank(table, budget_size=400, target_size=1600, selector="subtuning")
    losses = {name: score + 1.0 for name, score in ranking.scores.items()}
    good = ranking.evaluate(losses)
    assert round(good.pearson, 9) == round(good.relative_accuracy, 9) == 100.0
    bad = ranking.evaluate({name: -loss for name, loss in losses.items()})
    assert round(bad.pearson, 9) == -100.0
    assert bad.relative_accuracy == 0.0
    blind = dataclasses.replace(ranking, scores=dict.fromkeys(losses, float("nan")))
    assert np.isnan(blind.evaluate(losses)).all()


def test_too_small_a_budget_is_a_message_and_no_number():
    table = small_table(zero=False)
    for selector in PREDICTING:
        r = rank(table, budget_size=200, target_size=51200, selector=selector)
        assert np.isnan(list(r.predicted.values())).all(), selector
        assert all(r.messages.values()), selector
        assert np.isnan(r.win_probability[0, 1]), selector


def test_two_sizes_are_enough_for_pooled_and_give_the_straight_line():
    table = small_table(zero=False)
    r = rank(table, budget_size=400, target_size=51200, selector="pooled")
    assert np.isfinite(list(r.predicted.values())).all()
    # one octave shows no growth: as bold as the line for one view, 0.8 of its slope for the other
    fall = np.log(table.losses[:, 0] / table.losses[:, 1]) * np.log2(51200 / 400)
    expected = table.losses[:, 1] * np.exp(-0.5 * (1.0 + 0.8) * fall)
    np.testing.assert_allclose(list(r.predicted.values()), expected, rtol=1e-12)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"gamma": 1}, "`gamma` must be 2 or more"), ({"tau": 0.0}, "`tau` must be positive")],
)
def test_bad_settings_of_the_search_are_refused(settings, message):
    with pytest.raises(checks.UserError, match=message):
        Halving(**settings)


def test_search_stops_at_the_kink_and_counts_what_it_spent():
    sizes = np.array([0, 200, 400, 800, 1600, 3200, 6400])
    losses = 9.0 * np.maximum(sizes, 1.0) ** -0.3 * np.array([1, 1.5, 1, 1.001, 1, 0.999, 1])
    search = Halving(gamma=3, tau=5.0).observe_row(sizes, losses)
    assert search.stopped
    assert search.accepted_sizes == (6400, 3200, 1600, 800, 400)
    assert search.sizes_spent == (6400, 3200, 1600, 800, 400, 200)
    assert not Halving(gamma=3, tau=1e6).observe_row(sizes, losses).stopped


def test_an_exact_line_does_not_stop_the_search():
    sizes = 200 * 2 ** np.arange(8)
    assert not Halving().observe_row(sizes, 9.0 * sizes**-0.3).stopped


def test_search_refuses_sizes_that_do_not_descend():
    search = Halving().observe(400, 1.0)
    with pytest.raises(checks.UserError, match="must be below the last one"):
        search.observe(400, 1.0)
