"""docs/REPRODUCTION.md, its words, and the rows of its tables."""

from pathlib import Path

PAGE = (Path(__file__).parents[2] / "docs" / "REPRODUCTION.md").read_text()
WORDS = " ".join(PAGE.split())


def cells_of(line):
    return [cell.strip() for cell in line.strip("|").split("|")]


def row_of_page(start):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {start} |"))
    return cells_of(line)[1:]


def selector_rows(header):
    """First cell and the others of every row under a header of the page."""
    lines = PAGE.splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith(header)) + 2
    end = next(i for i in range(start, len(lines)) if not lines[i].startswith("|"))
    for line in lines[start:end]:
        first, *cells = cells_of(line)
        yield first, cells
