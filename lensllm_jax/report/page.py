r"""One self-contained HTML page: sortable tables, inline figures, no file and no network beside it.

Readable on a phone (tables scroll within themselves) and in dark mode (figures are drawn in the
colour of the text).  Whatever comes from a user is escaped.

Example:
    >>> section = Section("Losses", table([{"candidate": "a<b", "loss": 1.25}], "measured"))
    >>> text = page("A run", [section])
    >>> "a&lt;b" in text and "1.2500" in text and "http" not in text
    True
"""

import dataclasses
import html
import math
from collections.abc import Mapping, Sequence
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1a1a1a; --paper: #ffffff; --faint: #595959;
  --line: #d0d0d0; --wash: #f3f5f7; --link: #005a9c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --paper: #15181b; --faint: #a8a8a8;
  --line: #3c4147; --wash: #20252a; --link: #7cc4ff; } }
* { box-sizing: border-box; }
body { color: var(--ink); background: var(--paper); font: 16px/1.5 system-ui, sans-serif;
  margin: 0 auto; max-width: 70rem; padding: 1rem; }
h1 { font-size: 1.6rem; line-height: 1.25; } h2 { font-size: 1.2rem; margin-top: 2.2rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px; }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; }
figcaption { color: var(--faint); padding: .4rem 0; }
th, td { padding: .35rem .6rem; text-align: left; white-space: nowrap;
  border-top: 1px solid var(--line); }
td.long { white-space: normal; min-width: 18rem; }
td.number, th.number { text-align: right; } th.number { min-width: 4.6rem; }
thead th { background: var(--wash); white-space: normal; vertical-align: bottom; border-top: 0; }
th button { font: inherit; font-weight: 600; color: inherit; background: none; border: 0;
  padding: .3rem 0; cursor: pointer; text-align: inherit; }
th button::after { content: "\\00a0\\2195"; color: var(--faint); }
th[aria-sort=ascending] button::after { content: "\\00a0\\2191"; }
th[aria-sort=descending] button::after { content: "\\00a0\\2193"; }
figure { margin: 1rem 0; } figure.drawing .scroll { border: 0; }
img { max-width: 100%; background: #ffffff; }
figure svg { display: block; width: 100%; min-width: 36rem; height: auto; }
@media (prefers-color-scheme: dark) { figure svg { filter: brightness(1.35); } }
pre { background: var(--wash); padding: .7rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre.command { overflow-x: auto; } pre.command span { white-space: nowrap; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dt { font-weight: 600; } }
"""

# A cell without a number sorts last in either direction.
SCRIPT = """
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const head = button.parentElement, row = head.parentElement;
    const body = head.closest("table").tBodies[0];
    const up = head.getAttribute("aria-sort") !== "ascending";
    for (const other of row.children) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", up ? "ascending" : "descending");
    const key = (tr) => tr.children[head.cellIndex].dataset.value;
    const numeric = head.classList.contains("number");
    const compare = (a, b) => {
      const x = key(a), y = key(b);
      if (x === "" || y === "") return (x === "") - (y === "");
      const order = numeric ? x - y : x.localeCompare(y);
      return up ? order : -order;
    };
    body.append(...[...body.rows].sort(compare));
  });
}
"""

LONG = 48  # characters from which a cell may be folded


class Probability(float):
    """A probability, shown only as far as the evidence behind it can tell.

    Args:
        value: in [0, 1], or NaN.
        limit: beyond it, and below one less it, the text says no more than that.

    Example:
        >>> print(Probability(0.625), Probability(0.999999), Probability(0.0), sep=", ")
        0.62, > 0.99, < 0.01
        >>> print(Probability(1.0, limit=Probability.limit_of(6)))
        > 0.87
    """

    def __new__(cls, value: float, *, limit: float = 0.99) -> "Probability":
        """A float that knows its limit."""
        made = super().__new__(cls, value)
        made._limit = limit
        return made

    _limit: float

    @staticmethod
    def limit_of(count: int) -> float:
        """What ``count`` outcomes, all alike, make of the next (Laplace's rule of succession)."""
        return 1.0 - 1.0 / (count + 2)

    def __str__(self) -> str:
        if self > self._limit:
            return f"> {math.floor(100 * self._limit + 1e-9) / 100:.2f}"
        if self < 1.0 - self._limit:
            return f"< {math.ceil(100 * (1.0 - self._limit) - 1e-9) / 100:.2f}"
        return f"{float(self):.2f}"


@dataclasses.dataclass(frozen=True)
class Section:
    """A heading and what stands below it.

    Attributes:
        title: plain text.
        body: HTML, made by the functions of this module.
    """

    title: str
    body: str


def page(title: str, sections: Sequence[Section], *, lead: str = "") -> str:
    """The whole page.

    Args:
        title: plain text.
        sections: in order.
        lead: plain text under the title: what the page says, in a sentence.

    Returns:
        An HTML document that asks for nothing else.
    """
    body = "\n".join(
        f"<section><h2>{html.escape(section.title)}</h2>\n{section.body}</section>"
        for section in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{html.escape(title)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<h1>{html.escape(title)}</h1>
{paragraph(lead) if lead else ""}
{body}
</main>
<script>{SCRIPT}</script>
</body>
</html>
"""


def paragraph(text: str) -> str:
    """Plain text as a paragraph."""
    return f"<p>{html.escape(text)}</p>\n"


def code(text: str) -> str:
    """Plain text as a block of code."""
    return f"<pre><code>{html.escape(text)}</code></pre>\n"


def command(text: str) -> str:
    """A command, as code that breaks between its words alone and is copied as it is."""
    words = " ".join(f"<span>{html.escape(word)}</span>" for word in text.split(" "))
    return f'<pre class="command" tabindex="0"><code>{words}</code></pre>\n'


def definitions(entries: Mapping[str, Any]) -> str:
    """Names and values, such as settings."""
    pairs = (
        f"<dt>{html.escape(str(name))}</dt><dd>{html.escape(str(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(pairs)}</dl>\n"


def table(rows: Sequence[Mapping[str, Any]], caption: str) -> str:
    """Rows as a table that a click on a heading sorts.

    Floats have four decimals, or four digits in a column that holds small or large ones.

    Args:
        rows: dictionaries of the same keys; NaN and None are shown as a dash.
        caption: plain text: what the table holds, with units.

    Returns:
        HTML; an empty table is a sentence.
    """
    if not rows:
        return paragraph(f"{caption}: nothing was measured.")
    numeric = {
        name: all(row[name] is None or isinstance(row[name], int | float) for row in rows)
        for name in rows[0]
    }
    forms = {name: _form([row[name] for row in rows]) for name in rows[0]}
    heads = "".join(
        f'<th scope="col"{_class(numeric[name])}><button type="button">'
        f"{html.escape(name.replace('_', ' '))}</button></th>"
        for name in rows[0]
    )
    cells = (
        "".join(_cell(value, numeric[name], forms[name]) for name, value in row.items())
        for row in rows
    )
    lines = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return (
        # a caption of the table's own would scroll away with it
        f"<figure><figcaption>{html.escape(caption)}</figcaption>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{html.escape(caption)}">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div></figure>\n"
    )


def figure(svg: str, caption: str, alternative: str) -> str:
    """A drawing with its caption and its text alternative.

    Args:
        svg: of :func:`lensllm_jax.report.figures.svg`.
        caption: plain text under the figure.
        alternative: what the figure shows, for who cannot see it.

    Returns:
        HTML.
    """
    described = svg.replace("<svg ", f'<svg role="img" aria-label="{html.escape(alternative)}" ', 1)
    drawing = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="figure">{described}</div>'
    )
    said = f"<figcaption>{html.escape(caption)}</figcaption>"
    return f'<figure class="drawing">{drawing}{said}</figure>\n'


def _class(numeric: bool) -> str:
    return ' class="number"' if numeric else ""


def _form(column: Sequence[Any]) -> str:
    """How the floats of a column are written."""
    sizes = [abs(x) for x in column if isinstance(x, float) and math.isfinite(x) and x != 0]
    return ".4f" if all(1e-3 <= size < 1e6 for size in sizes) else ".4g"


def _cell(value: Any, numeric: bool, form: str) -> str:
    unknown = value is None or (isinstance(value, float) and math.isnan(value))
    if unknown:
        return f'<td data-value=""{_class(numeric)}>-</td>'
    text = _shown(value, form)
    kind = ' class="long"' if len(text) > LONG else _class(numeric)
    key = _key(value) if numeric else text
    return f'<td data-value="{html.escape(key)}"{kind}>{html.escape(text)}</td>'


def _key(number: float | int) -> str:
    """What JavaScript reads as the number that a cell shows."""
    if isinstance(number, float) and math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return repr(float(number) if isinstance(number, float) else number)


def _shown(value: Any, form: str) -> str:
    if isinstance(value, float) and not isinstance(value, Probability):
        return format(value, form)
    return f"{value:,}" if isinstance(value, int) else str(value)
