"""Reports as Markdown, their figures in files beside them.

Example:
    >>> print(markdown_table([{"candidate": "a", "loss": 1.25}]))
    | candidate | loss |
    |---|---|
    | a | 1.2500 |
"""

import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lensllm_jax.printable import printable
from lensllm_jax.report.sections import (
    Block,
    Command,
    Definitions,
    Drawing,
    Report,
    Table,
    Text,
    marked,
)
from lensllm_jax.selection.uncertainty import Probability

_WIDTH = 100  # characters of a line of text
# in a table a bare | would open a column; an underscore within a word is one
_MARKS = re.compile(r"[\\`*\[|$]|~(?=~)|<(?=[A-Za-z/!?])|&(?=#?\w+;)|(?<!\w)_|_(?!\w)")


def to_markdown(report: Report) -> str:
    """The document; details are left out."""
    parts = [f"# {_literal(report.title)}"]
    if report.card:
        parts.append(textwrap.indent(_filled(_literal(report.card)), "> "))
    if report.lead:
        parts.append(_wrapped(report.lead))
    for section in report.sections:
        parts += [f"## {_literal(section.heading)}", *map(_rendered, section.blocks)]
    return "\n\n".join(parts) + "\n"


def _rendered(block: Block) -> str:
    match block:
        case Text(text):
            return _wrapped(text)
        case Command(text):
            longest = max((len(ticks) for ticks in re.findall("`+", text)), default=0)
            fence = "`" * max(3, longest + 1)
            return f"{fence}\n{text}\n{fence}"
        case Definitions(entries):
            pairs = ((_literal(str(name)), _literal(str(value))) for name, value in entries.items())
            return "\n".join(f"* {name}: {value}" for name, value in pairs)
        case Table(rows, caption, forms, page_only):
            if not rows:
                return f"{caption}: nothing was measured."
            return markdown_table(
                [{k: v for k, v in row.items() if k not in page_only} for row in rows], forms
            )
        case Drawing(title, file):
            return f"![{_literal(title)}]({file})"


def _literal(text: str) -> str:
    r"""Plain text as Markdown: no part of it is a mark, a link, mathematics or HTML.

    Example:
        >>> print(_literal("my_model *a* <b> $x$ |y|"))
        my_model \*a\* \<b> \$x\$ \|y\|
    """
    return _MARKS.sub(r"\\\g<0>", printable(text))


def _wrapped(text: str) -> str:
    kinds = {"code": "`{}`", "bold": "**{}**", "": "{}"}
    parts = ((how, part if how == "code" else _literal(part)) for how, part in marked(text))
    text = "".join(kinds[how].format(part) for how, part in parts)
    return _filled(text)


def _filled(text: str) -> str:
    return textwrap.fill(text, _WIDTH, break_long_words=False, break_on_hyphens=False)


def markdown_table(rows: Sequence[Mapping[str, Any]], forms: Mapping[str, str] = {}) -> str:
    """Rows of the same keys as a Markdown table, without a newline at its end.

    ``forms`` holds the format of a column's floats where it is not that of :func:`format_cell`.
    """

    def line(cells: Iterable[str]) -> str:
        return f"| {' | '.join(cells)} |"

    header = rows[0].keys()
    body = (line(_literal(format_cell(v, forms.get(k))) for k, v in row.items()) for row in rows)
    return "\n".join([line(map(_literal, header)), "|" + "---|" * len(header), *body])


def format_cell(cell: Any, form: str | None = None) -> str:
    """A cell of a table: floats with four decimals, small ones with four digits.

    A probability is shown as far as the evidence can tell; None and NaN as a dash.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "-"
    if isinstance(cell, Probability) or not isinstance(cell, float):
        return str(cell)
    return format(cell, form or (".4g" if 0 < abs(cell) < 1e-3 else ".4f"))
