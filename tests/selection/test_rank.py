"""The published rows, our own targets, and what every selector has in common."""

import dataclasses

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.selection.loss_table import read_loss_table
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors import NEEDS, SELECTORS
from tests.selection.fakes import small_table
from tests.selection.tables import BUDGET_FRACTIONS, TABLES

FROM_TABLE = sorted(set(SELECTORS) - set(NEEDS))

PREDICTING = ("ats", "lensllm", "pooled", "posterior", "power", "rectified", "vanilla")

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


@pytest.mark.parametrize(("task", "selector"), PUBLISHED)
def test_published_rows_are_reproduced(task, selector):
    pearson, accuracy = metrics(task, selector)
    expected, expected_accuracy = PUBLISHED[task, selector]
    # printed with one decimal, of a number that was rounded to four before
    np.testing.assert_allclose(pearson, expected, atol=0.055)
    np.testing.assert_allclose(accuracy, expected_accuracy, atol=0.055)


@pytest.mark.parametrize(("selector", "task", "least", "picks"), [
    ("pooled", "flan", 73.0, 91.0),
    ("pooled", "gigaword", 93.8, 95.8),
    ("posterior", "flan", 72.0, 90.0),
    ("posterior", "gigaword", 94.0, 94.0),
])  # fmt: skip
def test_ours_rank_better_than_ats_and_pick_as_well(selector, task, least, picks):
    pearson, accuracy = metrics(task, selector)
    ats_pearson, ats_accuracy = metrics(task, "ats")
    assert pearson.mean() >= max(least, ats_pearson.mean())
    # seven picks of one pool, of which one moves the mean by 1.1 here; benchmarks/selection.py
    # compares picks on hundreds of pools
    assert accuracy.mean() >= max(picks, ats_accuracy.mean() - 2.1)


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
    perturbed = table.losses.copy()
    perturbed[:, table.sizes > 3200] = 7.0
    ranks = [
        rank(t, budget_size=3200, target_size=51200, selector=selector)
        for t in (table, dataclasses.replace(table, losses=perturbed))
    ]
    assert ranks[0].scores == ranks[1].scores
    assert ranks[0].order == ranks[1].order


@pytest.mark.parametrize("selector", FROM_TABLE)
def test_a_selector_hands_out_the_fits_that_made_its_predictions(selector):
    r = rank(small_table(), budget_size=12800, target_size=51200, selector=selector)
    assert (r.fits is not None) == (selector in ("lensllm", "power", "rectified", "vanilla"))
    if r.fits is not None:
        predicted = r.fits.predict(np.array([51200.0]))[:, 0]
        np.testing.assert_array_equal(predicted, list(r.predicted.values()))


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


def test_too_small_a_budget_is_a_message_and_no_number():
    table = small_table(zero=False)
    for selector in set(PREDICTING) - {"posterior"}:
        r = rank(table, budget_size=200, target_size=51200, selector=selector)
        assert np.isnan(list(r.predicted.values())).all(), selector
        assert all(r.messages.values()), selector
        assert np.isnan(r.win_probability[0, 1]), selector
