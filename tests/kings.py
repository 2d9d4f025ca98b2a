"""A task file of a few short texts."""

from pathlib import Path

KINGS = "kings.txt"


def write_kings(folder: Path, count: int) -> Path:
    """Writes ``count`` texts, one a line, into ``KINGS``."""
    path = folder / KINGS
    path.write_text("\n".join(f"the {i} kings of the land" for i in range(count)))
    return path
