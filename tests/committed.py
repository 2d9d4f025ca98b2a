"""The tables that are committed with the experiments."""

import csv
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "experiments" / "results"


def table(name):
    """The rows of a committed table, by column."""
    return list(csv.DictReader((RESULTS / f"{name}.csv").read_text().splitlines()))
