"""Converts a table of losses in nats per token to nats per byte of target text.

    python tools/nats_per_byte.py losses.csv --task=pydoc > converted.csv

Tables measured before losses were nats per byte are exact but for one factor per candidate and
task: target tokens over bytes of the same text, in experiments/results/target_tokens.csv.  The end
token, which counted as a target then, stays in them.  Converted are the columns of a loss table
(headed by a size); of a ledger, test_loss and validation_loss; of a ranking, every loss: Eq 10 and
the rectified law are fitted to log losses, so that one factor of a candidate's losses is one of its
predictions.
"""

import argparse
import csv
import sys
from pathlib import Path

COUNTS = Path(__file__).parents[1] / "experiments" / "results" / "target_tokens.csv"


def factors(task: str) -> dict[tuple[str, str], float]:
    """(candidate, split) -> tokens per byte."""
    with COUNTS.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["task"] == task]
    return {
        (row["candidate"], row["split"]): int(row["target_tokens"]) / int(row["target_bytes"])
        for row in rows
    }


def split_of(column: str) -> str | None:
    """The split whose loss a column holds; None if it holds no loss."""
    if column == "validation_loss":
        return "validation"
    is_loss = column.endswith("_loss") or column in ("low_90", "high_90") or column.isdigit()
    return "test" if is_loss else None


def convert(row: dict[str, str], by_split: dict[tuple[str, str], float]) -> dict[str, str]:
    """The row of one candidate with its losses in nats per byte."""
    name = row.get("config name") or row["candidate"]
    return {
        column: str(float(value) * by_split[name, split])
        if value and (split := split_of(column))
        else value
        for column, value in row.items()
    }


def main() -> None:
    """Reads a table and prints it converted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("table", type=Path)
    parser.add_argument("--task", required=True)
    arguments = parser.parse_args()
    by_split = factors(arguments.task)
    with arguments.table.open(newline="") as file:
        rows = [convert(row, by_split) for row in csv.DictReader(file)]
    writer = csv.DictWriter(sys.stdout, rows[0].keys(), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)


if __name__ == "__main__":
    main()
