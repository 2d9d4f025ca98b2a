"""Numbers as people write them in tables, read only where they can mean one thing.

Example:
    >>> [whole_number(text) for text in ("1,600", "0.2k", "1.3B", "1.5")]
    [1600, 200, 1300000000, None]
    >>> read_cells(["4,05", "3,214", "N/A"])
    [4.05, 3.214, None]
"""

import math
import re
from collections.abc import Sequence
from decimal import Decimal

from lensllm_jax.checks import UserError

# in lower case
_NOT_MEASURED = frozenset(
    {"", "-", "--", "\u2013", "\u2014", "na", "n/a", "n.a.", "#n/a", "<na>", "null", "none"}
)
_SCALES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
_MOST_DIGITS = 15  # what float64 holds exactly
_LARGEST_COUNT = 10**_MOST_DIGITS
_THOUSANDS = r"[0-9]{1,3}(?:,[0-9]{3})+"
_COUNT = re.compile(rf"({_THOUSANDS}|[0-9]+)((?:\.[0-9]+)?) ?([kmbtKMBT]?)")
_DECIMAL = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_DECIMAL_COMMA = re.compile(r"[0-9]+,[0-9]+")
_GROUPED = re.compile(_THOUSANDS)  # also a decimal comma with three digits behind it
_GROUPED_DECIMAL = re.compile(rf"{_THOUSANDS}\.[0-9]+|[0-9]{{1,3}}(?:,[0-9]{{3}}){{2,}}")


def whole_number(text: str) -> int | None:
    """A count such as 1600, "1,600" or "1.6k"; None if the text is none that float64 holds.

    That is 15 characters at most, and 10^15.
    """
    match = _COUNT.fullmatch(text)
    if match is None or len(text) > _MOST_DIGITS:
        return None
    digits, fraction, suffix = match.groups()
    value = Decimal(digits.replace(",", "") + fraction) * _SCALES[suffix.lower()]
    is_count = value == value.to_integral_value() and value <= _LARGEST_COUNT
    return int(value) if is_count else None


def read_cells(cells: Sequence[str]) -> list[float | None]:
    """The numbers of one table, None where not measured, NaN where the cell is no finite number.

    A comma is a decimal comma if it is one for certain in some cell ("4,05"), and then in all.
    "82.1%" is .821, if every number of the table is in percent.

    Raises:
        UserError: if a comma or a missing percent sign can mean two things.
    """
    stripped = [cell.strip() for cell in cells]
    texts = [text for text in stripped if text.lower() not in _NOT_MEASURED]
    percent = sum(text.endswith("%") for text in texts)
    if 0 < percent < len(texts):
        raise UserError(
            f"losses must be all in percent or none, got {percent} of {len(texts)} with a % sign"
        )
    bare = [text.rstrip("% ") for text in texts] if percent else texts
    commas = [text for text in bare if "," in text]
    if decimal_comma := any(_is_decimal_comma(text) for text in commas):
        if dotted := [text for text in bare if "." in text]:
            raise UserError(f"losses must have one decimal sign, got a comma and {dotted[0]!r}")
    elif ambiguous := [text for text in commas if _GROUPED.fullmatch(text)]:
        raise UserError(
            f"losses must have a decimal point, got {ambiguous[0]!r}, whose comma may also group "
            "thousands"
        )
    values = (_number(text, decimal_comma) / (100 if percent else 1) for text in bare)
    return [None if text.lower() in _NOT_MEASURED else next(values) for text in stripped]


def _is_decimal_comma(text: str) -> bool:
    """Whether the comma cannot group thousands."""
    return bool(_DECIMAL_COMMA.fullmatch(text)) and (
        text.startswith("0") or not _GROUPED.fullmatch(text)
    )


def _number(text: str, decimal_comma: bool) -> float:
    if decimal_comma and _DECIMAL_COMMA.fullmatch(text):
        return float(text.replace(",", "."))
    if "," in text and _GROUPED_DECIMAL.fullmatch(text):
        return float(text.replace(",", ""))
    value = float(text) if _DECIMAL.fullmatch(text) else math.nan
    return value if math.isfinite(value) else math.nan
