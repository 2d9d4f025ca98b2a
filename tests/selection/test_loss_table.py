"""The reader: what it accepts comes back whole, everything else is one clear error."""

import io

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import (
    LossTable,
    parse_loss_table,
    read_loss_table,
    write_loss_table,
)

HEADER = "config name,0,200,400,size,family\n"
names = st.lists(
    st.text(st.characters(codec="utf-8", exclude_categories=("C", "Z")), min_size=1, max_size=9),
    min_size=1,
    max_size=5,
    unique=True,
)
losses = st.one_of(st.floats(1e-6, 1e6), st.just(float("nan")))


@st.composite
def parts(draw):
    """What a table is made of; the type checker's own sampling must stay out of strategies."""
    who = tuple(draw(names))
    sizes = np.array(sorted(draw(st.sets(st.integers(0, 10**9), min_size=1, max_size=6))))
    values = draw(st.lists(losses, min_size=len(who) * len(sizes), max_size=len(who) * len(sizes)))
    params = np.array([float(draw(st.integers(1, 10**12))) for _ in who])
    shaped = np.array(values, np.float64).reshape(len(who), len(sizes))
    return who, sizes, shaped, params


@settings(
    deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(parts())
def test_a_written_table_reads_back_the_same(tmp_path, parts):
    table = LossTable(*parts, ("",) * len(parts[0]), "a")
    write_loss_table(table, tmp_path / "a.csv")
    back = read_loss_table(tmp_path / "a.csv")
    assert (back.names, back.family, back.task) == (table.names, table.family, "a")
    np.testing.assert_array_equal(back.sizes, table.sizes)
    np.testing.assert_array_equal(back.losses, table.losses)
    np.testing.assert_array_equal(back.num_params, table.num_params)


@settings(deadline=None, max_examples=300)
@given(st.one_of(st.text(max_size=200), st.text("0123456789,.-\n\"' enaif").map(HEADER.__add__)))
def test_any_text_is_a_table_or_a_user_error(text):
    try:
        table = parse_loss_table(io.StringIO(text))
    except checks.UserError:
        return
    measured = table.losses[~np.isnan(table.losses)]
    assert np.all((measured > 0) & np.isfinite(measured))
    assert len(set(table.names)) == len(table.names)


@settings(deadline=None, max_examples=100)
@given(st.binary(max_size=100))
def test_any_bytes_are_a_table_or_a_user_error(tmp_path_factory, content):
    path = tmp_path_factory.mktemp("bytes") / "a.csv"
    path.write_bytes(content)
    with pytest.raises(checks.UserError, match=r"a\.csv"):
        read_loss_table(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("a,1.0,-0.5,0.3,9,x\n", "'200' of 'a' must be a positive number or empty, got '-0.5'"),
        ("a,1.0,0,0.3,9,x\n", "got '0'"),
        ("a,1.0,nan,0.3,9,x\n", "got 'nan'"),
        ("a,1.0,inf,0.3,9,x\n", "got 'inf'"),
        ("a,1.0,low,0.3,9,x\n", "got 'low'"),
        ("a,1.0,0.5,0.3,-9,x\n", "'size' of 'a'"),
        ("a,1.0,0.5\n", "row 2 must have 6 cells like the header, got 3"),
        ("a,1,1,1,9,x\na,1,1,1,9,x\n", "must be unique, got 'a' more than once"),
        (",1,1,1,9,x\n", "row 2 must have a name"),
        ("", "one or more candidates"),
    ],
)
def test_bad_rows_are_named(body, message):
    with pytest.raises(checks.UserError, match=message.replace("(", r"\(")):
        parse_loss_table(io.StringIO(HEADER + body))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("model,0,200", "must hold a column 'config name'"),
        ("config name,0,two hundred", "got 'two hundred'"),
        ("config name,200,200", "'200' twice"),
        ("config name,200,0200", "200 twice"),
        ("config name,size", "must hold training-set sizes"),
    ],
)
def test_bad_headers_are_named(header, message):
    row = ",".join(["a"] + ["1"] * header.count(","))
    with pytest.raises(checks.UserError, match=message):
        parse_loss_table(io.StringIO(f"{header}\n{row}\n"))


def test_a_missing_file_is_a_user_error(tmp_path):
    with pytest.raises(checks.UserError, match="no such file"):
        read_loss_table(tmp_path / "none.csv")


def test_columns_may_come_in_any_order_and_rising_losses_are_reported():
    table = parse_loss_table(io.StringIO("400,config name,0\n3.0,a,1.0\n1.0,b,3.0\n"))
    assert table.sizes.tolist() == [0, 400]
    assert table.losses.tolist() == [[1.0, 3.0], [3.0, 1.0]]
    assert table.non_monotone == ("a",)
