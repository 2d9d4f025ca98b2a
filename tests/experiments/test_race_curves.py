"""Replays of races next to fixed budgets: what each may spend, and how picks are judged."""

import csv
import dataclasses

import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

CURVES = load("race_curves").module
SIZES = 100 * 2 ** np.arange(9)


def table(names="abcde"):
    rng = np.random.default_rng(0)
    exponents = np.linspace(0.1, 0.3, len(names))
    logs = np.log(9.0) - np.outer(exponents, np.log(SIZES))
    losses = np.exp(logs + 0.002 * rng.standard_normal(logs.shape))
    return LossTable(tuple(names), SIZES, losses, np.arange(1.0, 1.0 + len(names)),
                     ("",) * len(names), task="toy")  # fmt: skip


def test_ways_to_spend_are_compared_at_the_same_cost():
    costs = [0.05, 0.2]
    measured = CURVES._measured(table(), costs)
    assert set(measured) == {"race", "upwards", *CURVES.FIXED}
    for cost, (regret, top, accuracy, dropped, spent) in zip(costs, measured["race"], strict=True):
        assert spent <= cost + 1e-9
        assert (regret, top, accuracy, dropped) == (0.0, 1.0, 100.0, 0.0)


def test_between_two_budgets_regret_is_linear_in_the_logarithm_of_the_cost():
    points = [(4.0, 0.01), (2.0, 0.04)]
    found = CURVES._interpolated(points, [0.01, 0.02, 0.04, 0.5])
    assert [row[0] for row in found] == pytest.approx([4.0, 3.0, 2.0, 2.0])
    assert [row[1] for row in found] == [0.01, 0.02, 0.04, 0.04]  # what the regret costs
    (rounded,) = CURVES._interpolated([(4.0, 0.01 + 2e-18), (2.0, 0.04)], [0.01])
    assert rounded[0] == pytest.approx(4.0)
    (below,) = CURVES._interpolated(points, [0.009])
    assert np.isnan(below).all()  # nobody could pay the cheapest budget


def test_halving_upwards_costs_what_its_survivors_ran():
    picks = [*CURVES._upwards(table("ab"), int(SIZES[-1]))]  # two always stay
    assert picks[0].cost == pytest.approx(sum(SIZES[:3]) / SIZES[-1])
    assert picks[-1].cost == pytest.approx(sum(SIZES[:-1]) / SIZES[-1])
    few = [*CURVES._upwards(table(), int(SIZES[-1]))]
    assert few[-1].cost < picks[-1].cost
    assert [pick.chosen for pick in few] == [4] * len(few)


def test_candidates_of_unknown_size_count_alike():
    known = table("abc")
    unknown = dataclasses.replace(known, num_params=np.array([1.0, np.nan, 3.0]))
    alike = dataclasses.replace(known, num_params=np.ones(3))
    target = int(SIZES[-1])
    assert [*CURVES._upwards(unknown, target)] == [*CURVES._upwards(alike, target)]


def test_a_seed_names_the_pools_and_another_draws_others():
    def drawn(seed):
        return [part.names for part in CURVES._drawn(table("abcdefgh"), [3], 6, seed)[3]]

    assert drawn(1) == drawn(1) != drawn(2)


def test_a_table_of_three_sizes_is_refused(tmp_path):
    short = dataclasses.replace(table(), sizes=SIZES[:3], losses=table().losses[:, :3])
    with pytest.raises(UserError, match="`curves` must have 4 sizes or more above 0, got 3 in toy"):
        CURVES._check(short, [3])


def test_the_binary_writes_a_table_and_a_figure(tmp_path):
    write_loss_table(table(), tmp_path / "toy.csv")
    values = {"curves": [str(tmp_path / "toy.csv")], "pools": ["3"], "draws": 2, "costs": ["0.1"],
              "output_dir": str(tmp_path / "out"), "quiet": True}  # fmt: skip
    load("race_curves", **values).module.main([])
    rows = list(csv.DictReader((tmp_path / "out" / "race_curves.csv").read_text().splitlines()))
    assert {(row["pool"], row["draws"]) for row in rows} == {("3", "2"), ("5", "1")}
    assert (tmp_path / "out" / "toy_race.png").read_bytes()[1:4] == b"PNG"
