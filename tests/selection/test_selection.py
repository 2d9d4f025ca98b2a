"""A selection: dropped candidates come last, the control is the rectified law, costs are shares."""

import dataclasses

import numpy as np
import pytest

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.selection import selection as selection_module
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.order_cost import FULL_TUNING, OrderCost
from lensllm_jax.selection.orders import Drop, Order
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selection import Selection
from tests.selection.fakes import small_table

SPECTRUM = NtkSpectrum(np.array([0.1, 1.0]), np.array([2.0, 3.0]), 0.1)


@pytest.fixture
def selection():
    table, ledger = small_table(num_sizes=5), FlopsLedger()
    for name in table.names:
        ledger = ledger.kernel(name, flops=2e15)
    spectra = dict.fromkeys(table.names, SPECTRUM)
    return Selection(table, 25600, Halving(), spectra, ledger)


@pytest.fixture
def upwards(selection):
    losses = selection.table.losses.copy()
    losses[0, -1] = losses[1, -2:] = losses[2, -2:] = np.nan
    dropped = {"m0": Drop(1600, 3.0, 2.0), "m1": Drop(800, 4.0, 2.0), "m2": Drop(800, 3.5, 2.0)}
    return dataclasses.replace(
        selection,
        table=dataclasses.replace(selection.table, losses=losses),
        order=Order.UPWARDS,
        dropped=dropped,
    )


def test_the_decision_reads_no_kernel_and_has_a_probability(selection):
    decision = selection.decision
    assert decision.selector == "posterior"
    assert 0.0 < decision.probability_best[decision.selected] <= 1.0
    without = dataclasses.replace(selection, spectra={}).decision
    assert without.scores == decision.scores


def test_a_covariance_is_that_of_the_candidates_that_are_ranked(upwards, monkeypatch):
    seen = []

    def spy(table, **settings):
        seen.append((table, settings["evidence"]))
        return rank(table, **settings)

    monkeypatch.setattr(selection_module, "rank", spy)
    each = np.arange(6 * 4 * 4, dtype=float).reshape(6, 4, 4)
    dataclasses.replace(upwards, loss_covariance=each).decision  # noqa: B018, what is asked for
    ((table, evidence),) = seen
    assert table.names == ("m3",)
    assert evidence.loss_covariance.tolist() == each[:, 3:, 3:].tolist()


def test_dropped_candidates_come_last_by_where_they_were_dropped_and_their_line(upwards):
    rows = upwards.rows()
    assert [row["candidate"] for row in rows] == ["m3", "m0", "m2", "m1"]
    assert [row["rank"] for row in rows] == [1, 2, 3, 4]
    assert [row["dropped_at"] for row in rows] == ["", 1600, 800, 800]
    assert [row["sizes_paid"] for row in rows] == [5, 4, 3, 3]
    assert rows[0]["predicted_loss"] == upwards.ranking.predicted["m3"]
    assert {row["predicted_loss"] for row in rows[1:]} == {None}
    assert [row["candidate"] for row in upwards.drop_rows()] == ["m0", "m2", "m1"]


def test_without_drops_all_are_ranked_and_none_has_a_place_of_dropping(selection):
    assert set(selection.ranking.order) == set(selection.table.names)
    assert all("dropped_at" not in row for row in selection.rows())
    assert selection.drop_rows() == []
    assert {row["pflops"] for row in selection.rows()} == {2.0}


def test_the_control_is_the_rectified_law_on_the_same_losses(selection):
    control = rank(selection.table, budget_size=3200, target_size=25600, selector="rectified")
    assert selection.control.predicted == control.predicted
    assert selection.control.predicted != selection.ranking.predicted


def test_costs_are_shares_of_full_tuning(selection):
    costs = (OrderCost("all", True, 1e15, 2e15), OrderCost(FULL_TUNING, False, 4e15, 4e15))
    row, full = dataclasses.replace(selection, costs=costs).cost_rows()
    assert (row["percent_at_least"], row["percent_at_most"]) == (25.0, 50.0)
    assert (row["known"], full["known"]) == ("measured", "counted")
    assert selection.cost_rows() == []
