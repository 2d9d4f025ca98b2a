"""The tables of a report are tables whatever their cells hold."""

from lensllm_jax.report.selection import markdown_table


def cells(line):
    return line.replace(r"\|", "").count("|") - 1


def test_a_pipe_in_a_cell_does_not_open_a_column():
    table = markdown_table([{"name": "a", "note": "D_l <= |f0 - y|^2"}]).splitlines()
    assert [cells(line) for line in table] == [2, 2, 2]
    assert r"\|f0 - y\|^2" in table[2]
    assert cells("| a | D_l <= |f0 - y|^2 |") == 4  # what it would be without care


def test_floats_have_four_decimals_and_whole_numbers_none():
    assert markdown_table([{"loss": 1.0, "rank": 1}]).splitlines()[2] == "| 1.0000 | 1 |"
