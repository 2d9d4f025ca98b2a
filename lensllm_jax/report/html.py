r"""Reports as one self-contained HTML page: sortable tables, inline figures, no network access.

Readable on a phone (tables scroll within themselves) and in dark mode (figures are drawn in the
colour of the text).  Whatever comes from a user is escaped.

Example:
    >>> losses = Table([{"candidate": "a<b", "loss": 1.25}], "measured")
    >>> text = to_html(Report("A run", [Section("Losses", [losses])]))
    >>> "a&lt;b" in text and "1.2500" in text and "http" not in text
    True
"""

import html
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lensllm_jax.printable import printable
from lensllm_jax.report.sections import (
    Block,
    Command,
    Definitions,
    Drawing,
    Report,
    Section,
    Table,
    Text,
    marked,
)
from lensllm_jax.selection.uncertainty import Probability

_STYLE = """
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
.card { border: 2px solid var(--link); border-radius: 6px; background: var(--wash);
  padding: .8rem 1rem; font-size: 1.1rem; overflow-wrap: anywhere; }
pre { background: var(--wash); padding: .7rem; border-radius: 4px; white-space: pre-wrap;
  overflow-wrap: anywhere; }
pre.command { overflow-x: auto; } pre.command span { white-space: nowrap; }
summary { cursor: pointer; color: var(--link); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .2rem 1rem; }
dd { margin: 0; overflow-wrap: anywhere; }
@media print { body { max-width: none; padding: 0; font-size: 9pt; }
  .scroll { overflow: visible; border: 0; } table { font-size: 6pt; }
  th, td { padding: .12rem .2rem; } th.number { min-width: 0; } td.long { min-width: 0; }
  th button { padding: 0; } th button::after { content: none !important; }
  figure.drawing, tr, .card { break-inside: avoid; } h2 { break-after: avoid; }
  figure svg { min-width: 0; } }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dt { font-weight: 600; } }
"""

# A cell without a number sorts last in either direction.
_SCRIPT = """
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

_LONG = 48  # characters from which a cell may be folded


def to_html(report: Report) -> str:
    """The page, which requests nothing else."""
    return document(
        report.title,
        [(section.heading, _body(section)) for section in report.sections],
        lead=report.lead,
        card=report.card,
    )


def _body(section: Section) -> str:
    folded = "".join(map(_rendered, section.details))
    if folded:
        folded = f"<details><summary>Details</summary>\n{folded}</details>\n"
    return "".join(map(_rendered, section.blocks)) + folded


def _rendered(block: Block) -> str:
    match block:
        case Text(text):
            return _paragraph(text)
        case Command(text):
            return _command(text)
        case Definitions(entries):
            return _definitions(entries)
        case Table():
            return table(block)
        case Drawing():
            return _figure(block)


def document(
    title: str, sections: Iterable[tuple[str, str]], *, lead: str = "", card: str = ""
) -> str:
    """A page of headings and their HTML, in the style of all.

    Args:
        title: plain text.
        sections: heading, as plain text, and HTML.
        lead: text under the title: what the page says, in a sentence.
        card: plain text in a frame under the title.

    Returns:
        HTML that requests nothing else.
    """
    body = "\n".join(
        f"<section><h2>{escaped(heading)}</h2>\n{content}</section>"
        for heading, content in sections
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<link rel="icon" href="data:,">
<title>{escaped(title)}</title>
<style>{_STYLE}</style>
</head>
<body>
<main>
<h1>{escaped(title)}</h1>
{f'<p class="card">{escaped(card)}</p>' if card else ""}
{_paragraph(lead) if lead else ""}
{body}
</main>
<script>{_SCRIPT}</script>
</body>
</html>
"""


def notebook(blocks: Iterable[Block], *, card: str = "") -> str:
    """Blocks as the output of a notebook's cell, whose page sorts no table.

    Args:
        blocks: in order.
        card: plain text above them.
    """
    shown = (table(b, sortable=False) if isinstance(b, Table) else _rendered(b) for b in blocks)
    return (
        f"<div>{f'<p><strong>{escaped(card)}</strong></p>' if card else ''}{''.join(shown)}</div>"
    )


def escaped(text: str) -> str:
    """Plain text as HTML, without control characters."""
    return html.escape(printable(text))


def _paragraph(text: str) -> str:
    tags = {"code": "<code>{}</code>", "bold": "<strong>{}</strong>", "": "{}"}
    parts = (tags[how].format(escaped(part)) for how, part in marked(text))
    return f"<p>{''.join(parts)}</p>\n"


def code(text: str) -> str:
    """Plain text as a block of code."""
    return f"<pre><code>{html.escape(text)}</code></pre>\n"


def _command(text: str) -> str:
    """Code that breaks between its words alone, and is copied as it is."""
    words = " ".join(f"<span>{escaped(word)}</span>" for word in text.split(" "))
    return f'<pre class="command" tabindex="0"><code>{words}</code></pre>\n'


def _definitions(entries: Mapping[str, Any]) -> str:
    pairs = (
        f"<dt>{escaped(str(name))}</dt><dd>{escaped(str(value))}</dd>"
        for name, value in entries.items()
    )
    return f"<dl>{''.join(pairs)}</dl>\n"


def table(block: Table, *, sortable: bool = True) -> str:
    """HTML of a table that a click on a heading sorts; an empty table is a sentence.

    Floats have four decimals, or four digits in a column that holds small or large ones.
    """
    rows, caption = block.rows, escaped(block.caption)
    if not rows:
        return _paragraph(f"{block.caption}: nothing was measured.")
    numeric = {
        name: all(row[name] is None or isinstance(row[name], int | float) for row in rows)
        for name in rows[0]
    }
    forms = {name: _form([row[name] for row in rows]) for name in rows[0]} | {**block.forms}
    button = '<button type="button">{}</button>' if sortable else "{}"
    heads = "".join(
        f'<th scope="col"{_class(numeric[name])}>'
        f"{button.format(escaped(name.replace('_', ' ')))}</th>"
        for name in rows[0]
    )
    cells = (
        "".join(_cell(value, numeric[name], forms[name]) for name, value in row.items())
        for row in rows
    )
    lines = "".join(f"<tr>{row}</tr>\n" for row in cells)
    return (
        # a caption inside the table would scroll away with it
        f"<figure><figcaption>{caption}</figcaption>"
        f'<div class="scroll" tabindex="0" role="region" aria-label="{caption}">'
        f"<table>\n<thead><tr>{heads}</tr></thead>\n"
        f"<tbody>{lines}</tbody></table></div></figure>\n"
    )


def _figure(drawing: Drawing) -> str:
    label = escaped(drawing.alternative)
    svg = drawing.svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    return (
        '<figure class="drawing"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="figure">{svg}</div>'
        f"<figcaption>{escaped(drawing.caption)}</figcaption></figure>\n"
    )


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
    kind = ' class="long"' if len(text) > _LONG else _class(numeric)
    key = _key(value) if numeric else text
    return f'<td data-value="{escaped(key)}"{kind}>{escaped(text)}</td>'


def _key(number: float | int) -> str:
    """What JavaScript reads as the number that a cell shows."""
    if isinstance(number, float) and math.isinf(number):
        return "Infinity" if number > 0 else "-Infinity"
    return repr(float(number) if isinstance(number, float) else number)


def _shown(value: Any, form: str) -> str:
    if isinstance(value, float) and not isinstance(value, Probability):
        return format(value, form)
    return f"{value:,}" if isinstance(value, int) else str(value)
