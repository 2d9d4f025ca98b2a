"""What a page holds, that it requests nothing, and that no text of a user becomes HTML."""

import dataclasses
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from lensllm_jax.report.html import table, to_html
from lensllm_jax.report.sections import Command, Report, Section, Table, Text
from lensllm_jax.selection.posterior import Concordance, Posterior
from tests.report import samples

VOID = {"meta", "link"}


class Reader(HTMLParser):
    """Collects tags and attributes; refuses tags that do not nest."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags = [], []
        self.feed(text)
        assert not self.open, self.open

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture(scope="module")
def pages():
    return samples.pages()


def addresses(tags):
    """Attributes that a browser would follow or load, those within the page left out."""
    links = [v for _, attrs in tags for k, v in attrs.items() if k in ("src", "href", "action")]
    return [v for v in links if not v.startswith(("#", "data:"))]


@pytest.mark.parametrize("kind", ["selection", "curves", "kernel"])
def test_page_is_whole_and_requests_nothing(pages, kind):
    tags = Reader(pages[kind]).tags
    assert addresses(tags) == []
    assert not re.search(r"https?://|@import|fetch\(|url\((?!#)", pages[kind])
    for tag, attrs in tags:
        if tag == "svg":
            assert attrs["role"] == "img"
            assert len(attrs["aria-label"]) > 30
    assert "--a=&#x27;&lt;1&gt;&#x27;" in pages[kind]  # the command, escaped


def test_a_page_with_a_request_is_caught():
    assert addresses(Reader('<img src="https://example.org/x.png"></img>').tags)
    with pytest.raises(AssertionError):
        Reader("<p><b></p></b>")


def test_names_are_text(pages):
    for text in pages.values():
        assert "<b>" not in text
        assert "a&lt;b&gt;" in text


def test_ranking_holds_the_probabilities_of_the_ranking(pages):
    ranking = samples.selection().ranking
    rows = ranking.rows()
    assert [row["candidate"] for row in rows] == list(ranking.order)
    first, second, third = ranking.order
    assert rows[0]["p_beats_next"] == ranking.probability(first, second)
    assert rows[2]["p_first_beats_it"] == ranking.probability(first, third)
    for row in rows:
        assert f"{row['score']:.4f}" in pages["selection"]


def test_cells_carry_whole_numbers_to_sort_by():
    text = table(Table([{"x": 1.23456789, "y": "b"}, {"x": float("nan"), "y": "a"}], "c"))
    assert 'data-value="1.23456789" class="number">1.2346<' in text
    assert 'data-value="" class="number">-<' in text


def test_same_input_gives_the_same_page(pages):
    assert samples.pages()["kernel"] == pages["kernel"]
    assert np.all([len(text) < 1e6 for text in pages.values()])  # fits in a mail


@pytest.mark.parametrize(("spread", "shown"), [(True, "&gt; 0.99"), (False, "&gt; 0.80")])
def test_no_probability_is_shown_as_certain(spread, shown):
    ranking = samples.selection().ranking
    places = np.array([1.0 + ranking.order.index(name) for name in ranking.scores])
    certain = Posterior(places, np.full(3, 1e-9)) if spread else Concordance(places, 1.0)
    sure = dataclasses.replace(ranking, confidence=certain)
    text = table(Table(sure.rows(), "ranking"))
    assert f'data-value="1.0" class="number">{shown}<' in text
    assert "1.0000" not in text
    less = dataclasses.replace(sure, confidence=Concordance(places, 0.75))
    assert ">0.75<" in table(Table(less.rows(), "ranking"))


def test_a_column_has_one_form_and_a_command_breaks_between_words():
    rows = [{"loss": 3.5, "flops": 7.5e-7}, {"loss": 12.0, "flops": 0.0011}]
    text = table(Table(rows, "two columns"))
    assert re.findall(r">([^<>]+)</td>", text) == ["3.5000", "7.5e-07", "12.0000", "0.0011"]
    page = to_html(Report("", [Section("", [Command("python --a=1")])]))
    assert "<span>python</span> <span>--a=1</span>" in page


def test_marks_of_code_and_weight_are_tags_and_all_else_of_a_text_is_literal():
    text = "**a<b>** has `x < 1`, *not* this"
    page = to_html(Report("", [Section("", [Text(text)])]))
    assert "<p><strong>a&lt;b&gt;</strong> has <code>x &lt; 1</code>, *not* this</p>" in page


def test_details_are_folded():
    text = to_html(Report("A run", [Section("Cost", [Text("all")], details=[Text("each")])]))
    assert "<p>all</p>\n<details><summary>Details</summary>\n<p>each</p>\n</details>" in text
    assert "<details>" not in to_html(Report("A run", [Section("Cost", [Text("all")])]))
