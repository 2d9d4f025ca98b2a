"""Reports as Markdown: tables are tables whatever their cells hold, and details are left out."""

from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import markdown_table, to_markdown
from lensllm_jax.report.sections import Command, Definitions, Report, Section, Table, Text
from lensllm_jax.selection.uncertainty import Probability


def cells(line):
    return line.replace(r"\|", "").count("|") - 1


def test_a_pipe_in_a_cell_does_not_open_a_column():
    table = markdown_table([{"name": "a", "note": "D_l <= |f0 - y|^2"}]).splitlines()
    assert [cells(line) for line in table] == [2, 2, 2]
    assert r"\|f0 - y\|^2" in table[2]
    assert cells("| a | D_l <= |f0 - y|^2 |") == 4  # what it would be without care


def test_floats_have_four_decimals_and_whole_numbers_none():
    assert markdown_table([{"loss": 1.0, "rank": 1}]).splitlines()[2] == "| 1.0000 | 1 |"


def test_what_is_not_known_is_a_dash():
    row = markdown_table([{"a": None, "b": float("nan"), "c": Probability(float("nan")), "d": 0.0}])
    assert row.splitlines()[2] == "| - | - | - | 0.0000 |"


def report():
    table = Table([{"a": 1.0, "b": 59.18, "c": 2}], "three", forms={"b": ".4g"}, page_only={"c"})
    blocks = [Text("word " * 30), table, Command("python -m x  --a=1")]
    details = [Definitions({"seed": 7})]
    return Report("Title", [Section("First", blocks, details)], lead="**Best**.")


def test_a_document_holds_title_lead_headings_and_blocks_in_order():
    text = to_markdown(report())
    assert text.startswith("# Title\n\n**Best**.\n\n## First\n\nword word")
    assert max(map(len, text.splitlines())) <= 100
    assert text.endswith(
        "| a | b |\n|---|---|\n| 1.0000 | 59.18 |\n\n```\npython -m x  --a=1\n```\n"
    )


def test_details_and_columns_of_a_page_are_left_to_the_page():
    page, text = to_html(report()), to_markdown(report())
    for shown in ("<dt>seed</dt><dd>7</dd>", ">c</button>", ">59.18<"):
        assert shown in page
    assert "seed" not in text
    assert "| c |" not in text


def test_an_empty_table_is_a_sentence_in_both():
    empty = Report("", [Section("", [Table([], "losses")])])
    for rendered in (to_html(empty), to_markdown(empty)):
        assert "losses: nothing was measured." in rendered
