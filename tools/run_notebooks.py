"""Runs every notebook from top to bottom, fails at the first cell that raises, and renders it.

python tools/run_notebooks.py [names]

The notebooks themselves stay without outputs; what a run showed goes to docs/notebooks/*.html,
each one self-contained page.
"""

import html
import re
import sys
import time
from pathlib import Path

import nbclient
import nbformat
from markdown_it import MarkdownIt

from lensllm_jax.report.html import code, document

ROOT = Path(__file__).parent.parent
FOLDER, RENDERED = ROOT / "notebooks", ROOT / "docs" / "notebooks"
SECONDS_PER_CELL = 300
MOST_SECONDS = 180  # of a notebook on two cores


def main(names: list[str]) -> None:
    """Executes the named notebooks, or all of them."""
    paths = [FOLDER / name for name in names] or sorted(FOLDER.glob("*.ipynb"))
    for path in paths:
        start = time.monotonic()
        notebook = nbformat.read(path, as_version=4)
        nbclient.NotebookClient(
            notebook, timeout=SECONDS_PER_CELL, resources={"metadata": {"path": str(FOLDER)}}
        ).execute()
        seconds = time.monotonic() - start
        print(f"{path.name}: {seconds:.0f} s", flush=True)
        if seconds > MOST_SECONDS:
            sys.exit(f"error: {path.name} must take at most {MOST_SECONDS} s, got {seconds:.0f}")
        RENDERED.mkdir(exist_ok=True)
        (RENDERED / f"{path.stem}.html").write_text(rendered(notebook))


def rendered(notebook: nbformat.NotebookNode) -> str:
    """A self-contained page of an executed notebook, one section per heading."""
    title: str = ""
    sections: list[tuple[str, str]] = []
    for cell in notebook.cells:
        if cell.cell_type == "code":
            body = code(cell.source) + "".join(shown(output) for output in cell.outputs)
        else:
            heading, _, rest = cell.source.partition("\n")
            level = len(heading) - len(heading.lstrip("#"))
            if level == 0:
                rest = cell.source
            elif level == 1:
                title = heading.strip("# ")
            body = MarkdownIt().render(rest)
            if level > 1:
                sections.append((heading.strip("# "), body))
                continue
        if not sections:
            sections.append(("What this is", ""))
        heading, before = sections[-1]
        sections[-1] = (heading, before + body)
    return document(title, sections)


def shown(output: nbformat.NotebookNode) -> str:
    """One output of a cell, without warnings and addresses, which belong to one machine."""
    if output.output_type == "stream":
        return code(output.text) if output.name == "stdout" else ""
    data = output.get("data", {})
    if "image/png" in data:
        image = data["image/png"].replace("\n", "")
        alt = html.escape(output.metadata["image/png"]["alt"])
        return f'<figure><img alt="{alt}" src="data:image/png;base64,{image}"></figure>\n'
    if "text/html" in data:  # of our own results; a bar has done its work
        return "" if "<progress" in data["text/html"] else data["text/html"]
    return code(re.sub(r" at 0x[0-9a-f]+", "", data.get("text/plain", "")))


if __name__ == "__main__":
    main(sys.argv[1:])
