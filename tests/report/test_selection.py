"""The report of a selection says the same on a page, in Markdown and on the terminal."""

import dataclasses
import html
import math
import re

import numpy as np
import pytest

from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import to_markdown
from lensllm_jax.runs.select_model import _numbers
from lensllm_jax.selection.orders import Drop, Order
from lensllm_jax.selection.posterior import Concordance
from lensllm_jax.selection.race import OPENING, RaceRule, replay
from lensllm_jax.selection.uncertainty import NextMeasurement
from tests.messages.binaries import load
from tests.report import samples


def chances_in(text, start, column):
    """By candidate, the cell of a column of the table whose heading starts with ``start``."""
    text = re.sub(r"\\([<*])", r"\1", text)  # of Markdown
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines()]
    head = next(i for i, cells in enumerate(lines) if cells[:2] == start)
    at = lines[head].index(column)
    body = (cells for cells in lines[head + 1 :] if len(cells) == len(lines[head]))
    return {cells[1]: cells[at] for cells in body if cells[1] in samples.NAMES}


def chances_on_page(text):
    head, *body = re.findall(r"<tr>(.*?)</tr>", text, re.DOTALL)
    names = re.findall(r"<button[^>]*>([^<]*)<", head)
    cells = [re.findall(r"<td[^>]*>([^<]*)<", row) for row in body]
    return {html.unescape(row[1]): html.unescape(row[names.index("p beats next")])
            for row in cells[: len(samples.NAMES)]}  # fmt: skip


@pytest.fixture
def selection():
    """A pool whose first two are not separated."""
    selection = samples.selection()
    advice = NextMeasurement("last", 3200, 1e15, 0.6, 0.2, 0.1)
    vars(selection)["ranking"] = dataclasses.replace(selection.ranking, advice=advice)
    return selection


def test_terminal_page_and_markdown_show_the_same_probabilities(selection, capsys):
    load("select_model").module.show(selection)
    terminal = capsys.readouterr().out
    shown = chances_in(terminal, ["rank", "candidate"], "p beats next")
    first, second, _ = selection.ranking.order
    assert set(shown) == set(samples.NAMES)
    assert shown[selection.ranking.order[-1]] == "-"
    sure = selection.ranking.probability(first, second)
    assert shown[first] == (f"{sure:.2f}" if sure <= 0.99 else "> 0.99")
    assert chances_on_page(to_html(samples.report(selection))) == shown
    page = to_markdown(samples.report(selection))
    assert chances_in(page, ["rank", "candidate"], "p_beats_next") == shown
    for text in (terminal, page):
        assert "need more data to tell (P = 0.60): fine-tune last on 3200 examples" in text


def test_a_dropped_candidate_beats_none(capsys):
    dropped = dataclasses.replace(
        samples.selection(), order=Order.UPWARDS, dropped={"last": Drop(800, 3.0, 2.0)}
    )
    load("select_model").module.show(dropped)
    shown = chances_in(capsys.readouterr().out, ["rank", "candidate"], "p beats next")
    assert (shown["last"], list(shown)[-1]) == ("-", "last")


def test_a_table_of_numbers_holds_the_probability_itself(selection):
    rows = [_numbers(row) for row in selection.rows()]
    first, second, _ = selection.ranking.order
    assert str(rows[0]["p_beats_next"]) == repr(selection.ranking.probability(first, second))
    assert (rows[0]["low_90"], rows[0]["high_90"]) == selection.ranking.interval(first, level=0.9)
    assert rows[-1]["p_beats_next"] is None
    blind = Concordance(np.array(list(selection.ranking.scores.values())), math.nan)
    short = dataclasses.replace(selection.ranking, confidence=blind)  # no backtest
    vars(selection)["ranking"] = short
    assert selection.rows()[0]["low_90"] is None


def test_no_number_is_cut_on_a_terminal_of_80_characters(selection, capsys, monkeypatch):
    for name, value in {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "80"}.items():
        monkeypatch.setenv(name, value)
    load("select_model").module.show(selection)
    printed = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)
    assert max(map(len, printed.splitlines()[:-1])) <= 80  # the advice below may be longer
    assert "\u2026" not in printed
    for row in selection.rows():
        assert f"{row['predicted_loss']:.4f}" in printed
        assert f"{row['budget_loss']:.4f}" in printed


def test_a_race_shows_its_fine_tunes_after_the_first_sizes_and_why_it_stopped():
    table = samples.loss_table()
    whole = dataclasses.replace(table, losses=np.nan_to_num(table.losses, nan=3.0))
    *_, race = replay(whole, RaceRule(target_size=1600, sizes=(200, 400, 800), max_cost=0.9))
    common = {"cost": 0.1, "test_loss": 2.5, "failure": None, "leader": "last", "p_best": 0.875}
    steps = (
        {"step": 1, "candidate": "last", "size": 200, "reason": OPENING, **common},
        {"step": 2, "candidate": "last", "size": 400, "reason": "it pays", **common},
    )
    chosen = dataclasses.replace(
        samples.selection(), table=whole, spectra={}, order=Order.RACE, race=race, steps=steps
    )
    page = to_markdown(samples.report(chosen))
    assert f"The race stopped by its {race.stop.reason} rule: {race.stop.text}" in page
    (row,) = (line for line in page.splitlines() if "it pays" in line)
    assert row == "| 2 | last | 400 | 10.0000 | 2.5000 | last | 0.88 | it pays |"
    assert OPENING not in page
    # nothing is known of a kernel: its columns stay away
    assert "lensllm_loss" not in page
    assert "lensllm_loss" in chosen.rows()[0]
