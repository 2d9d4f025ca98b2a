"""A ranking: its rows and intervals, and how it is evaluated."""

import dataclasses

import numpy as np
import pytest

from lensllm_jax.selection.posterior import Concordance
from lensllm_jax.selection.rank import rank
from tests.selection.fakes import small_table


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


@pytest.fixture
def ranking():
    return rank(small_table(), budget_size=6400, target_size=51200, selector="ats")


def test_an_interval_holds_the_prediction_and_widens_with_its_level(ranking):
    for name, predicted in ranking.predicted.items():
        low, high = ranking.interval(name, level=0.5)
        assert low < predicted < high
        assert ranking.interval(name, level=0.9)[0] < low
        assert ranking.intervals[name] == ranking.interval(name, level=0.9)


def test_rows_are_the_order_with_what_is_known_of_each(ranking):
    first, second, *_, last = rows = ranking.rows()
    assert [row["candidate"] for row in rows] == list(ranking.order)
    assert first["p_beats_next"] == ranking.probability(first["candidate"], second["candidate"])
    assert last["p_first_beats_it"] == ranking.probability(first["candidate"], last["candidate"])
    assert (first["p_first_beats_it"], last["p_beats_next"]) == (None, None)
    assert (first["low_90"], first["high_90"]) == ranking.intervals[first["candidate"]]
    blind = Concordance(np.array(list(ranking.scores.values())), 1.0)
    without = dataclasses.replace(ranking, confidence=blind).rows()
    assert "low_90" not in without[0]  # the control: no past, no interval
    assert str(without[0]["p_beats_next"]) == "> 0.87"
