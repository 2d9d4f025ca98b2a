"""What the README shows is what its code prints, and what its tables say was measured."""

import contextlib
import csv
import io
import json
import re
from pathlib import Path

import numpy as np

import lensllm_jax as lens
from lensllm_jax.checkpoints.zoo import FOLDER

README = (Path(__file__).parent.parent / "README.md").read_text()


def numbers(text):
    return np.array([float(x) for x in re.findall(r"-?\d+\.\d+", text)])


def test_example_prints_what_stands_below_it():
    code, shown = re.search(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(code, "README.md", "exec"), {})
    got, expected = numbers(printed.getvalue()), numbers(shown)
    assert len(expected) == 18
    # float32 sums of a quarter million products, in another order on another processor
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4
    theta, dense = got[:9], got[9:]
    assert np.abs(theta - dense).max() / np.abs(dense).max() < 1e-5


def test_every_binary_is_named():
    for path in (Path(__file__).parent.parent / "experiments").glob("*.py"):
        if "cli.run(main)" in path.read_text():
            assert f"`experiments.{path.stem}`" in README


def test_table_of_the_zoo_is_that_of_the_folders():
    for name in lens.list_zoo():
        report = json.loads((FOLDER / name.removeprefix("zoo/") / "pretraining.json").read_text())
        candidate = lens.load_candidate(name)
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}` "))
        assert f"{candidate.num_params:,}" in row
        assert f"{report['held_out_loss_nats_per_token']:.2f}" in row
        assert f"{report['tokens_seen'] / 1e6:.1f} M" in row
        assert ", ".join(report["corpora"]) in row


def test_tables_of_results_are_those_of_the_committed_measurements():
    results = Path(__file__).parent.parent / "experiments" / "results"
    truth = lens.read_loss_table(results / "pydoc_losses.csv")
    measured = dict(zip(truth.names, truth.column(6400), strict=True))
    ranking = list(csv.DictReader((results / "demo_ranking.csv").read_text().splitlines()))
    at_target = np.array([measured[row["candidate"]] for row in ranking])
    for row, loss in zip(ranking, at_target, strict=True):
        line = next(x for x in README.splitlines() if x.startswith(f"| {row['candidate']} |"))
        assert f"| {loss:.3f} |" in line
    for column, title in (
        ("predicted_loss", "LensLLM"),
        ("rectified_loss", "rectified law"),
        ("budget_loss", "loss at 800"),
        ("zero_shot_loss", "loss before"),
    ):
        scores = np.array([float(row[column]) for row in ranking])
        correlation = lens.pearson_correlation(scores, at_target)
        accuracy = lens.relative_accuracy(at_target[np.argmin(scores)], at_target)
        line = next(line for line in README.splitlines() if line.startswith(f"| {title}"))
        assert line.endswith(f"| {correlation:.1f} | {accuracy:.1f} |")


def kernel_benchmark():
    results = Path(__file__).parent.parent / "experiments" / "results"
    return list(csv.DictReader((results / "ntk_benchmark.csv").read_text().splitlines()))


def test_page_of_the_kernel_says_how_far_off_the_foretold_was():
    page = (Path(__file__).parent.parent / "docs" / "kernel.md").read_text().replace("\n", " ")

    def ratios(method, unit, seen):
        return [
            float(row[f"said_{unit}"]) / float(row[seen])
            for row in kernel_benchmark()
            if row["method"] == method
        ]

    seconds = ratios("structured", "seconds", "seconds")
    held = ratios("structured", "gb", "peak_gb")
    assert (
        f"{len(seconds)} kernels of 0.3 to 59 s: seconds {min(seconds):.2f} to {max(seconds):.2f}, "
        f"bytes {min(held):.2f} to {max(held):.2f}"
    ) in page
    assert 0.75 <= min(seconds + held) <= max(seconds + held) <= 1.25
    contraction = ratios("jacobian_contraction", "seconds", "seconds")
    close = sum(0.75 <= ratio <= 1.25 for ratio in contraction)
    assert f"Of {len(contraction)} contractions of neural-tangents {close} took" in page


def test_row_of_the_kernel_is_that_of_the_committed_benchmark():
    rows = kernel_benchmark()
    ours, theirs = (
        f"{float(row['seconds']):.1f} s and {float(row['peak_gb']):.2f} GB"
        for row in rows
        if row["n"] == "128"
    )
    line = next(line for line in README.splitlines() if line.startswith("| structured kernel"))
    assert f"| {ours} against {theirs} " in line
