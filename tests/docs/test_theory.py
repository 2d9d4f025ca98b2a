"""The numbers of docs/theory.md on several candidates are those of the committed table."""

from pathlib import Path

from tests.committed import table

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "theory.md").read_text()
WORDS = " ".join(PAGE.split())
QUANTITIES = ("sum_h", "trace", "gradient_variance", "squared_displacement")


def decays():
    """Candidate -> quantity -> row of the table."""
    rows_of = {}
    for row in table("theory_decays"):
        rows_of.setdefault(row["candidate"], {})[row["quantity"]] = row
    return rows_of


def power(row):
    """As the page writes it: the power of n, positive where the quantity grows."""
    if not row["exponent"]:
        return "no fit"
    # 0.0 is added so that -0.001 reads 0.00
    exponent, low, high = (0.0 - round(float(row[key]), 2) for key in ("exponent", "high", "low"))
    return f"{exponent:.2f} ({low:.2f} to {high:.2f})"


def test_every_power_of_the_page_is_that_of_the_table():
    for name, rows in decays().items():
        cells = [power(rows[quantity]) for quantity in QUANTITIES]
        assert f"| {name} | {' | '.join(cells)} |" in PAGE, (name, cells)


def counted(quantity, condition):
    """Number of candidates whose interval of the exponent satisfies ``condition(low, high)``."""
    rows = [rows[quantity] for rows in decays().values() if rows[quantity]["exponent"]]
    return sum(condition(float(row["low"]), float(row["high"])) for row in rows)


def test_counts_of_the_page_follow_from_the_intervals():
    number = len(decays())
    below = counted("sum_h", lambda low, high: high < 0.5)
    falls = counted("sum_h", lambda low, high: low > 0)
    grows = counted("sum_h", lambda low, high: high < 0)
    assert f"β₂ < ½ for {below} of {number}" in WORDS
    assert f"Eq 6's 0 < β₂ for {falls} of {number}" in WORDS
    assert f"β₂ < 0 for {grows}" in WORDS
    one = counted("trace", lambda low, high: low <= 1 <= high)
    assert f"Lemma 2's 1 lies in the interval of {one}." in WORDS
    falls = counted("gradient_variance", lambda low, high: low > 0)
    assert f"Lemma 3's σ² falls for {falls} and" in WORDS
    moves = counted("squared_displacement", lambda low, high: high < 0)
    assert f"Lemma 4's distance grows for {moves} of {number}" in WORDS
