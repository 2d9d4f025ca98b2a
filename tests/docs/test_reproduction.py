"""What docs/REPRODUCTION.md says of the kernel is what the committed tables say."""

import csv
from pathlib import Path

import numpy as np

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "REPRODUCTION.md").read_text()
WORDS = " ".join(PAGE.split())


def table(name):
    path = ROOT / "experiments" / "results" / f"{name}.csv"
    return list(csv.DictReader(path.read_text().splitlines()))


def row_of_page(start):
    line = next(line for line in PAGE.splitlines() if line.startswith(f"| {start} |"))
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


def test_mean_errors_with_a_measured_f_are_those_of_the_table():
    found = {
        (row["form"], row["unit"], row["rate"], row["budget_fraction"]): row["mean_rmse"]
        for row in table("pydoc_kernel_laws")
        if (row["readout"], row["num_examples"]) in (("target_logprob", "64"), ("", ""))
    }
    forms = {
        "rectified; Eq 10 with one free t": ("none", "", ""),
        "Eq 9, as it stands, rate / n": ("matrix", "as it stands", "adamw"),
        "Eq 9, as it stands, η fitted": ("matrix", "as it stands", "fitted"),
        "Eq 9, up to a factor, rate / n": ("matrix", "fitted", "adamw"),
        "Eq 9, up to a factor, η fitted": ("matrix", "fitted", "fitted"),
        "kernel's test residual, up to a factor, η fitted": ("test", "fitted", "fitted"),
    }
    for start, key in forms.items():
        errors = [found[(*key, budget)] for budget in ("1.0", "0.5", "0.25", "0.125")]
        if key[0] == "none":  # the power law has no form either; it stands after the rectified
            rows = [row for row in table("pydoc_kernel_laws") if row["law"] == "rectified"]
            errors = [row["mean_rmse"] for row in rows]
        assert row_of_page(start) == [f"{float(error):.4f}" for error in errors], start


def test_counts_of_comparisons_are_those_of_the_tables():
    laws = [
        row for row in table("pydoc_kernel_laws")
        if row["readout"] and float(row["budget_fraction"]) < 1
    ]  # fmt: skip
    difference, p_value, p_family = (
        np.array([float(row[name]) for row in laws])
        for name in ("less_rectified", "p_value", "p_family")
    )
    smaller = difference < 0
    assert f"{len(laws)} held-out comparisons" in WORDS
    assert f"The mean error is smaller in {smaller.sum()} of them, in none" in WORDS
    assert not np.any(p_value[smaller] < 0.05)
    sure, family = (np.sum(p[~smaller] < 0.05) for p in (p_value, p_family))
    assert f"larger with p < 0.05 in {sure}, family-wise in {family}." in WORDS
    value = [row for row in table("pydoc_kernel_value") if row["less_control"]]
    least = min(float(row["p_family"]) for row in value)
    assert (
        f"Of these {len(value)} comparisons the least family-wise p-value is {least:.2f}" in WORDS
    )


def test_every_phase_is_counted():
    for name, task, label in (
        ("phases_pydoc", "pydoc_losses", "pydoc"),
        ("phases_public", "flan", "FLAN"),
        ("phases_public", "gigaword", "Gigaword"),
    ):
        rows = [row for row in table(name) if row["task"] == task]
        counts = [sum(row["phase"] == phase for row in rows)
                  for phase in ("TRANSITION", "FLATTENING", "ONE")]  # fmt: skip
        sizes = [float(row["size"]) for row in rows if row["phase"] == "TRANSITION"]
        cells = row_of_page(label)
        expected = [f"{counts[0]} of {len(rows)}", str(counts[1]), str(counts[2])]
        assert cells[:3] == expected
        assert cells[3].startswith(f"{np.median(sizes):,.0f} ({min(sizes):,.0f} to ")
