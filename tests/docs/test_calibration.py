"""The numbers of docs/calibration.md are those of the committed table."""

import csv
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "calibration.md").read_text()
LOWS = ("0.5", "0.6", "0.7", "0.8", "0.9", "0.97")
SHOWN = {"flan": "FLAN", "gigaword": "Gigaword"}


def test_every_row_of_the_page_is_that_of_the_table():
    by_selector = {}
    with (ROOT / "experiments" / "results" / "calibration.csv").open() as file:
        for row in csv.DictReader(file):
            key = SHOWN.get(row["task"], row["task"]), row["selector"]
            by_selector.setdefault(key, {})[row["kind"], row["low"]] = row
    assert len(by_selector) == 20
    for (task, selector), rows in by_selector.items():
        pairs = [rows.get(("pair", low)) for low in LOWS]
        cells = [f"{float(r['happened']):.2f} ({r['count']})" if r else "" for r in pairs]
        cells += [f"{float(rows['interval', low]['happened']):.2f}" for low in ("0.5", "0.9")]
        assert f"| {task} | {selector} | {' | '.join(cells)} |" in PAGE
