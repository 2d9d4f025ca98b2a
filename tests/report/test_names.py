"""Names of users are shown as they are: no markup, mathematics, HTML or control character acts."""

import re

import numpy as np
import pytest

from lensllm_jax.printable import printable
from lensllm_jax.report import figures
from lensllm_jax.report.html import to_html
from lensllm_jax.report.markdown import markdown_table, to_markdown
from lensllm_jax.report.sections import Command, Definitions, Report, Section, Table, Text, literal

NASTY = [
    "<script>alert(1)</script>", "a `b` **c**", "[x](http://evil)", "![x](y)", "a\nb | c",
    "$\\frac{1}$", "a $\\frac{1}$", "\x1b[2J\x07", "\u202eabc", "&lt;", "_a_ __b__", "~~a~~",
    "a\\|b", "```\n# x", "**", "`", "\\", "a$b", "漢字", "\x00", "\r\n\r\n# heading", "<!--",
    "a" * 300,
]  # fmt: skip
SIZES = np.array([0, 200, 400])


def report(name):
    rows = [{"candidate": name, "loss": 1.0}]
    blocks = [
        Table(rows, name), Text(f"**{literal(name)}** is `best`"), Definitions({name: name}),
        Command(f"python --x='{name}'"),
    ]  # fmt: skip
    return Report(name, [Section(name, blocks)], lead=literal(name))


@pytest.mark.parametrize("name", NASTY)
def test_a_page_shows_a_name_and_holds_no_control_character(name):
    page = to_html(report(name))
    for tag in ("<script>alert", "<!--", "<x"):
        assert tag not in page
    assert not [c for c in page if not c.isprintable() and c != "\n"]
    cell = re.search(r'<td data-value="([^"]*)"', page)[1]
    assert "`" not in name or "`" in cell


@pytest.mark.parametrize("name", NASTY)
def test_markdown_shows_a_name_in_one_cell_of_one_line(name):
    text = to_markdown(report(name))
    outside = re.sub(r"(`{3,})\n.*?\n\1", "", text, flags=re.DOTALL)
    unescaped = re.sub(r"\\.", "", outside)
    shown = re.sub(r"`best`|\*\*|^[#*] |\n", "", unescaped, flags=re.MULTILINE)
    assert not set("`[$") & set(shown)
    assert not re.search(r"<[a-z!/]|&\w+;", unescaped)
    assert not [c for c in outside if not c.isprintable() and c != "\n"]
    row = markdown_table([{"candidate": name, "loss": 1.0}]).splitlines()
    assert len(row) == 3
    assert re.sub(r"\\.", "", row[2]).count("|") == 3


@pytest.mark.parametrize("name", NASTY)
def test_a_figure_draws_a_name_as_it_is(name):
    eigenvalues = {name: np.array([1.0, 0.1]), "b": np.array([2.0, 0.5])}
    figure, axes = figures.draw_kernel_spectra(eigenvalues)
    axes.set_title(name)
    assert figures.png(figure, axes)[1:4] == b"PNG"
    drawn = figures.svg(*figures.draw_kernel_spectra(eigenvalues))
    assert "<script" not in drawn
    if name == "a $\\frac{1}$":
        assert "a $\\frac{1}$" in drawn


def test_what_has_no_picture_is_written_as_its_escape():
    assert printable("a\x1b[1m\u202e\n") == "a\\x1b[1m\\u202e\\n"
    assert printable("zoo/gpt2 漢字 é") == "zoo/gpt2 漢字 é"
    printable("\udcff").encode()  # a lone surrogate, as in a file name that is no text


def test_marks_of_our_own_still_act():
    text = Report("", [Section("", [Text("`a_b` is **best** of <3")])])
    assert "<code>a_b</code> is <strong>best</strong> of &lt;3" in to_html(text)
    assert "`a_b` is **best** of <3" in to_markdown(text)
