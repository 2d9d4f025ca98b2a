"""CSV is read strictly, whatever its delimiter; any text is cells or a user error."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.delimited import as_written, neutral, plain, read_delimited

cells = st.text(
    st.characters(exclude_categories=("C",), include_characters="\n\"',;\t"), max_size=9
)


@given(
    st.lists(st.tuples(st.just("x"), cells), max_size=9),
    st.sampled_from(",;\t"),
    st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_what_was_written_is_read(rows, delimiter, quoting):
    text = io.StringIO(newline="")
    writer = csv.writer(text, delimiter=delimiter, quoting=quoting)
    writer.writerows([("name", "target"), *rows])
    text.seek(0)
    header, body = read_delimited(text, headings=("target",))
    assert (header, body) == (["name", "target"], [list(row) for row in rows])


@given(st.text(st.sampled_from(list('target,;\t"\n\r\ufeff \x00x')), max_size=60))
def test_any_text_is_rows_of_one_width_or_a_user_error(text):
    try:
        header, body = read_delimited(io.StringIO(text, newline=""), headings=("target",))
    except UserError:
        return
    assert {len(row) for row in body} <= {len(header)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('target\na\n"b\nc\nd\n', "begins on line 3: unexpected end"),
        ('target\n"a"b\n', "begins on line 2: ',' expected"),
        ("target,x\na,b\n\nc\n", "row 3 must have 2 cells like the header, got 1"),
        ("\n\n", "must hold a header"),
        ('sep=;\ntarget\na\n"b\nc\n', "begins on line 4: unexpected end"),
        ("sep=;\n", "must hold a header"),
    ],
)
def test_a_broken_row_is_refused_with_its_place(text, message):
    with pytest.raises(UserError, match=message):
        read_delimited(io.StringIO(text, newline=""), headings=("target",))


def test_headings_are_alike_without_space_mark_and_case():
    assert plain("\ufeff Target ") == plain("target") != plain("targets")


@pytest.mark.parametrize("text", ["=1+1", "+a", "-a", "@x", "'=1", "''@", "\tx", "-", "--x", "-1e"])
def test_a_formula_is_neutral_and_read_back(text):
    assert neutral(text) == f"'{text}"
    assert as_written(neutral(text)) == text


@pytest.mark.parametrize("text", ["a", "", "-0.5", "+1e-3", "'", "'a", "a=1", "zoo/m", "-inf"])
def test_what_is_no_formula_stays(text):
    assert neutral(text) == as_written(text) == text
