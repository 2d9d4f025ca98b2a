"""The reader: what it accepts comes back whole, everything else is one clear error."""

import io
import re
import time

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
    back = read_loss_table(tmp_path / "a.csv", higher_is_better=False)  # values are random
    assert (back.names, back.family, back.task) == (table.names, table.family, "a")
    np.testing.assert_array_equal(back.sizes, table.sizes)
    np.testing.assert_array_equal(back.losses, table.losses)
    np.testing.assert_array_equal(back.num_params, table.num_params)


@settings(deadline=None, max_examples=300)
@given(
    st.one_of(
        st.text(max_size=200), st.text("0123456789,.-\n\"' enaif%kMB;\t").map(HEADER.__add__)
    ),
    st.sampled_from([None, True, False]),
)
def test_any_text_is_a_table_or_a_user_error(text, kind):
    try:
        table = parse_loss_table(io.StringIO(text), higher_is_better=kind)
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
        ("a,1.0,1_0,0.3,9,x\n", "got '1_0'"),
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


PLAIN = "config name,0,200,1600,size\na,5.05,4.5,4.05,1300000000\nb,6,5,,124000000\n"
SAME = [
    "config name;0;200;1600;size\na;5.05;4.5;4.05;1.3B\nb;6;5;;124M\n",
    "config name;0;200;1600;size\na;5,05;4,5;4,05;1.3B\nb;6;5;;124M\n",
    "config name\t0\t200\t1600\tsize\na\t5.05\t4.5\t4.05\t1.3B\nb\t6\t5\tN/A\t124M\n",
    'config name,0,"0.2k","1,600",size\na,5.05,4.5,4.05,"1,300,000,000"\nb,6,5,n/a,124m\n',
    "\ufeffConfig Name,0,200,1.6K, Size\na,5.05,4.5,4.05,1.3B\nb,6,5,-,124M\n",
    ",config name,0,200,1600,size\n0,a,5.05,4.5,4.05,1.3B\n1,b,6,5,,124M\n",  # pandas' index
    ",0,200,1600,size\na,5.05,4.5,4.05,1.3B\nb,6,5,,124M\n",
    ",config name,0,200,1600,size\n7,a,5.05,4.5,4.05,1.3B\n3,b,6,5,,124M\n",  # a part of it
    "sep=;\nconfig name;0;200;1600;size\na;5,05;4,5;4,05;1.3B\nb;6;5;;124M\n",  # Excel's
    "config name,0,200,1600,size\na,5.05,4.5,4.05,1.3B\nb,6,5,#N/A,124M\n",
    "config name,0,200,1600,size\na,5.05,4.5,4.05,1.3B\nb,6,5,\u2014,124M\n",
    "config name,0,200,1600,size,,\na,505%,450%,405%,1.3B,,\nb,600%,500%,,124M,,\n",
]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_the_encodings_of_spreadsheets(tmp_path, encoding):
    path = tmp_path / "a.csv"
    path.write_bytes(PLAIN.replace("a,5", "\u00e4,5").encode(encoding))
    assert read_loss_table(path).names == ("\u00e4", "b")


@pytest.mark.parametrize("text", SAME)
def test_tables_as_people_write_them(text):
    table, plain = (parse_loss_table(io.StringIO(t)) for t in (text, PLAIN))
    assert (table.names, table.sizes.tolist()) == (plain.names, plain.sizes.tolist())
    np.testing.assert_allclose(table.losses, plain.losses, rtol=1e-15)
    np.testing.assert_array_equal(table.num_params, plain.num_params)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("config name;0;200\na;5,051;4,5\n", None),  # 4,5 settles it
        ("config name;0;200\na;5,051;4,500\n", "'5,051', whose comma may also group thousands"),
        ("config name;0;200\na;5,0;4.5\n", "one decimal sign, got a comma and '4.5'"),
        ('config name,0,200\na,"1,600.5","1,500.5"\n', None),
        ("config name,0,200\na,82.1%,17\n", "all in percent or none, got 1 of 2"),
        ("config name,0,1.5k5\na,2,1\n", "got '1.5k5'"),
        ("config name,0,0.0001k\na,2,1\n", "got '0.0001k'"),
        (",0,200\n0,2,1\n1,3,2\n", "must hold a column 'config name'"),
        ("x,config name,0\nq,a,2\n", "got 'x'"),
    ],
)
def test_what_can_mean_two_things_is_refused_with_the_reason(text, message):
    if message is None:
        assert parse_loss_table(io.StringIO(text)).names == ("a",)
    else:
        with pytest.raises(checks.UserError, match=re.escape(message)):
            parse_loss_table(io.StringIO(text))


ACCURACIES = "config name,0,200,400\na,20.1,55,61.2\nb,18,50.1,63\nc,40,42,39\n"


def test_a_table_that_mostly_rises_is_refused_unless_it_is_said_which_is_better():
    with pytest.raises(checks.UserError, match="got 2 of 3 rows that end above"):
        parse_loss_table(io.StringIO(ACCURACIES))
    losses = parse_loss_table(io.StringIO(ACCURACIES), higher_is_better=False).losses
    errors = parse_loss_table(io.StringIO(ACCURACIES), higher_is_better=True).losses
    np.testing.assert_allclose(errors, 1 - losses / 100)
    falling = ACCURACIES.replace("b,18,", "b,70,")  # one of three rises: noise
    assert parse_loss_table(io.StringIO(falling)).non_monotone == ("a", "b", "c")


@pytest.mark.parametrize(
    ("row", "is_diverged"),
    [
        ([9.0, 3.0, 2.5, 2.0], False),
        ([1.0, 3.0, 2.5, 2.0], False),  # zero-shot is no fine-tune
        ([9.0, 3.0, 2.0, 2.15], False),
        ([9.0, 3.0, 2.0, 2.5], True),
        ([9.0, 2.0, 3.0, 2.0], False),  # it came back
        ([9.0, 2.0, np.nan, 3.0], True),
        ([9.0, 2.0, 3.0, np.nan], True),
        ([9.0, 0.05, 0.018, 0.021], False),  # errors: noise
        ([9.0, np.nan, np.nan, np.nan], False),
    ],
)
def test_a_last_loss_far_above_the_lowest_is_that_of_a_fine_tune_that_diverged(row, is_diverged):
    table = LossTable(("a",), np.array([0, 200, 400, 800]), np.array([row]), np.ones(1), ("",))
    assert table.is_diverged.tolist() == [is_diverged]


def test_losses_are_not_taken_for_accuracies():
    losses = "config name,0,200,400\na,.9,.55,.4\nb,.8,.5,.3\nc,.4,.42,.5\n"
    with pytest.raises(checks.UserError, match="must rise with data, got 2 of 3 rows"):
        parse_loss_table(io.StringIO(losses), higher_is_better=True)
    rising = losses.replace("b,.8,", "b,.2,")  # one of three falls: noise
    assert parse_loss_table(io.StringIO(rising), higher_is_better=True).losses[1, 0] == 0.8


@pytest.mark.parametrize(
    ("cells", "errors"),
    [
        ("0,.5,.75", [1.0, 0.5, 0.25]),
        ("0%,50%,75%", [1.0, 0.5, 0.25]),
        ("0,50,75", [1.0, 0.5, 0.25]),
        ("0,50,101", None),
        (".5,.75,1", None),  # no law has a loss of zero
        ("50%,75%,100%", None),
    ],
)
def test_accuracies_become_errors(cells, errors):
    text = f"config name,0,200,400\na,{cells}\n"
    if errors is None:
        with pytest.raises(checks.UserError, match="shares below 1 or percent below 100"):
            parse_loss_table(io.StringIO(text), higher_is_better=True)
    else:
        table = parse_loss_table(io.StringIO(text), higher_is_better=True)
        np.testing.assert_allclose(table.losses, [errors])


def test_perplexities_are_read_as_their_logarithms_if_that_is_said():
    text = "config name,0,200\na,20,10\n"
    table = parse_loss_table(io.StringIO(text), perplexity=True)
    np.testing.assert_allclose(table.losses, np.log([[20, 10]]))
    assert parse_loss_table(io.StringIO(text)).losses.tolist() == [[20, 10]]
    with pytest.raises(checks.UserError, match="rows that end above"):
        parse_loss_table(io.StringIO("config name,0,200\na,10,20\n"), perplexity=True)


def test_reading_takes_linear_time():
    def seconds(num_rows):
        lines = [f"m{i},3.0,2.0\n" for i in range(num_rows)]
        start = time.process_time()
        table = parse_loss_table(["config name,0,200\n", *lines])
        table.select(table.names[::-1])
        return time.process_time() - start

    seconds(1_000)
    assert seconds(40_000) < 40 * seconds(4_000)  # ten times in linear time, a hundred in quadratic


def test_names_that_a_spreadsheet_would_run_are_neutral_and_read_back(tmp_path):
    names = ("=cmd|x", "@a", "-b", "'=c", "+d", "plain")
    table = LossTable(names, np.array([0, 200]), np.full((6, 2), 2.0), np.ones(6), names)
    write_loss_table(table, tmp_path / "a.csv")
    rows = (tmp_path / "a.csv").read_text().splitlines()[1:]
    assert [row[:2] for row in rows] == ["'=", "'@", "'-", "''", "'+", "pl"]
    read = read_loss_table(tmp_path / "a.csv")
    assert (read.names, read.family) == (names, names)


def test_a_table_is_shown_in_a_line():
    table = parse_loss_table(io.StringIO(HEADER + "a,3,2,1000,1e6,x\nb,3,2,1,1e6,x\n"), task="t")
    assert repr(table) == "<LossTable 't': 2 candidates at 0, 200, 400 examples>"
