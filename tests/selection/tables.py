"""The public tables, where they are present: they are never copied in here."""

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "benchmark"
TABLES = {task: FOLDER / f"{task}.csv" for task in ("flan", "gigaword")}
BUDGET_FRACTIONS = (8, 16, 32, 64, 128, 256, 512)

needs_tables = pytest.mark.skipif(
    not all(path.exists() for path in TABLES.values()),
    reason="needs ../shared/benchmark/{flan,gigaword}.csv",
)
