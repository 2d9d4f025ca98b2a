"""Orders, crossings, predictions and agreement, on curves whose truth is known."""

import csv

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load

orders = load("pool_orders").module
SIZES = np.array([0, 200, 400, 800, 1600])
FLAT, STEEP, WORST = [1.0, 0.9, 0.88, 0.86, 0.84], [2.0, 1.2, 1.0, 0.8, 0.6], [3.0] * 5


def table(names, losses, sizes=SIZES):
    count = len(names)
    return LossTable(tuple(names), np.array(sizes), np.array(losses), np.ones(count), ("",) * count)


def test_a_curve_that_overtakes_is_named_with_the_sizes_between_which_it_does():
    (row,) = orders.crossing_rows("full", table("ab", [FLAT, STEEP]))
    assert row == {"tuning": "full", "overtakes": "b", "is_overtaken": "a",
                   "above_size": 400, "by_size": 800}  # fmt: skip
    assert not list(orders.crossing_rows("full", table("ab", [FLAT, WORST])))


def test_a_tie_on_the_way_hides_no_crossing():
    tied = table("ab", [[3.0, 2.0, 1.5, 1.4], [4.0, 2.0, 1.5, 1.2]], SIZES[1:])
    (row,) = orders.crossing_rows("full", tied)
    assert (row["overtakes"], row["is_overtaken"]) == ("b", "a")
    assert (row["above_size"], row["by_size"]) == (200, 1600)
    touched = table("ab", [[3.0, 2.0, 1.5, 1.4], [4.0, 2.0, 1.6, 1.5]], SIZES[1:])
    assert not list(orders.crossing_rows("full", touched))  # a tie alone is no crossing


def test_tables_are_joined_where_all_candidates_have_a_loss():
    first = table("ab", [FLAT, STEEP])
    longer = table("c", [[*WORST, 2.0]], sizes=[*SIZES, 3200])
    losses = np.array([FLAT])
    losses[0, 2] = np.nan
    both = orders.joined([first, longer, table("d", losses)])
    assert (both.names, both.sizes.tolist()) == (tuple("abcd"), [0, 200, 800, 1600])
    assert both.losses[:, 1].tolist() == [0.9, 1.2, 3.0, 0.9]
    some = orders.joined([first, longer], ["c", "a"])
    assert (some.names, some.sizes.tolist()) == (("c", "a"), SIZES.tolist())


def test_places_and_predictions_stand_beside_what_was_measured():
    both = table("ab", [FLAT, STEEP])
    places = [(r["size"], r["candidate"]) for r in orders.order_rows("full", both)]
    assert places == [(0, "a"), (0, "b"), (200, "a"), (200, "b"), (1600, "b"), (1600, "a")]
    rows = {(r["selector"], r["candidate"]): r
            for r in orders.prediction_rows("full", both, ["subtuning", "posterior"])}  # fmt: skip
    plain = rows["subtuning", "a"]  # the loss at a quarter: a is better there, and not later
    assert (plain["predicted_place"], plain["place"], plain["measured"]) == (1, 2, 0.84)
    total = sum(rows["posterior", name]["probability_best"] for name in "ab")
    assert total == pytest.approx(1.0)


def test_a_selector_without_a_fit_gives_no_place():
    both = table("ab", [FLAT, STEEP])  # of a quarter, two sizes: fewer than the law has parameters
    rows = list(orders.prediction_rows("full", both, ["rectified"]))
    assert [row["candidate"] for row in rows] == ["a", "b"]
    assert np.isnan([(row["predicted_place"], row["predicted"]) for row in rows]).all()


def test_a_race_says_how_far_it_ran_each_and_what_that_cost():
    sizes, octaves = SIZES, np.arange(4)
    falling = [[1.2 * level, *(level * 0.9**octaves)] for level in (1.0, 2.0, 2.1)]
    first, *others = orders.race_rows("full", table("abc", falling, sizes=sizes))
    assert (first["candidate"], first["dropped"]) == ("a", False)
    assert first["probability_best"] >= 0.95
    assert first["stop"].startswith("a is best with P > 0.99")
    rows = [first, *others]
    assert [row["ran_to"] for row in rows] == [400] * 3  # two sizes of everybody, then it is sure
    assert sum(row["cost"] for row in rows) == pytest.approx((200 + 400) / 1600)
    # the control: nobody is ahead, so that it runs on, as far as 1 pays for
    rows = list(orders.race_rows("full", table("ab", [falling[0], falling[0]], sizes=sizes)))
    assert [row["ran_to"] for row in rows] == [800, 800]


def test_two_kinds_of_tuning_agree_on_pairs():
    full, lora = table("abc", [FLAT, STEEP, WORST]), table("cab", [WORST, FLAT, FLAT[::-1]])
    last = list(orders.agreement_rows(full, lora))[-1]
    # a before b by LoRA, b before a by full tuning; c last by both
    assert last == {"size": 1600, "same_order": "0.6667", "best_full": "b", "best_lora": "a"}
    with pytest.raises(checks.UserError, match="`lora_curves` must share two"):
        list(orders.agreement_rows(full, table("xy", [FLAT, STEEP])))


def test_the_binary_writes_its_tables(tmp_path):
    for name, kind in (("full", [FLAT, STEEP]), ("lora", [STEEP, FLAT])):
        write_loss_table(table("ab", kind), tmp_path / f"{name}.csv")
    full, lora, output = (str(tmp_path / name) for name in ("full.csv", "lora.csv", "out"))
    load("pool_orders", curves=[full], lora_curves=[lora], selectors=["posterior"],
         output_dir=output).module.main([])  # fmt: skip
    counts = {}
    for path in sorted((tmp_path / "out").glob("*.csv")):
        with path.open() as file:
            counts[path.stem] = len(list(csv.DictReader(file)))
    assert counts == {"agreement": 5, "crossings": 2, "orders": 12, "predictions": 4, "race": 4}
