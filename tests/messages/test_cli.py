"""Lists in flags: a superfluous comma is refused, not read as a shorter list."""

import pytest

from experiments.common import cli
from lensllm_jax.checks import UserError


@pytest.mark.parametrize("given", ["8, 16", ["8", " 16"]])
def test_numbers_keep_their_order_however_absl_hands_them_over(given):
    assert cli.whole_numbers("sizes", given) == (8, 16)
    assert cli.numbers("rates", given) == (8.0, 16.0)


@pytest.mark.parametrize("given", ["", " ", []])
def test_nothing_given_is_no_number(given):
    assert cli.whole_numbers("sizes", given) == ()
    assert cli.numbers("rates", given) == ()


@pytest.mark.parametrize("given", ["8,,16", "8,16,", ",", ["8", "", "16"], "8;16", "8,many"])
def test_an_entry_that_is_empty_or_no_number_is_refused(given):
    for read in (cli.whole_numbers, cli.numbers):
        with pytest.raises(UserError, match=r"`sizes` must be .*numbers, comma-separated, got '"):
            read("sizes", given)


@pytest.mark.parametrize("given", ["-8", "8.0", "8\u00b2", "\u0668"])
def test_what_is_not_whole_is_refused(given):
    with pytest.raises(UserError, match="must be whole numbers, comma-separated"):
        cli.whole_numbers("sizes", given)


@pytest.mark.parametrize("given", ["1", "", "x", "2.0", "8\u00b2"])
def test_a_divisor_is_whole_and_from_2_up(given):
    assert cli.divisor("budgets", " 8") == 8
    with pytest.raises(UserError, match="must be whole numbers from 2 up"):
        cli.divisor("budgets", given)


HELP = """First line of a paragraph, which is long.

    python -m experiments.none --one --two \\
        --three=a,long,list,that,is,not,folded

* an entry, the first one of
  two lines
* another
the end
"""


def test_help_is_folded_at_the_width_of_the_terminal_and_its_commands_are_not():
    assert cli._folded(HELP, 24).splitlines() == [
        "First line of a", "paragraph, which is", "long.", "",
        *HELP.splitlines()[2:4], "",
        "* an entry, the first", "  one of two lines", "* another the end",
    ]  # fmt: skip
