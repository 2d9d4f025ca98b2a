"""The README's examples print what is shown, and its tables are the measurements."""

import contextlib
import io
import json
import re
from pathlib import Path

import numpy as np

import lensllm_jax as lens
from lensllm_jax.checkpoints.zoo import FOLDER
from tests.committed import RESULTS, table

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def numbers(text):
    return np.array([float(x) for x in re.findall(r"-?\d+\.\d+", text)])


def examples():
    """The code of each example, and the numbers it prints, those shown below it."""
    for code, shown in re.findall(r"```python\n(.*?)```\n\n```\n(.*?)```", README, re.DOTALL):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, "README.md", "exec"), {})
        yield numbers(printed.getvalue()), numbers(shown)


def test_examples_print_what_is_shown_below_them(monkeypatch):
    monkeypatch.chdir(ROOT)
    (ranked, ranking), (got, expected) = examples()
    assert len(ranking) == 9
    assert np.array_equal(ranked, ranking)
    assert len(expected) == 18
    # float32 sums of a quarter million products, in another order on another processor
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4
    theta, dense = got[:9], got[9:]
    assert np.abs(theta - dense).max() / np.abs(dense).max() < 1e-5


def test_losses_below_the_ranking_are_those_measured():
    truth = lens.read_loss_table(RESULTS / "pydoc_losses.csv")
    measured = dict(zip(truth.names, truth.column(6400), strict=True))
    names = re.findall(r"^(zoo/[\w-]+): ", README, re.MULTILINE)
    first, second, third = (f"{measured[name]:.2f}" for name in names)
    assert f"at 6,400 are {first}, {second} and\n{third} nats per byte" in README


def test_every_binary_is_named():
    for path in (ROOT / "experiments").glob("*.py"):
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
    truth = lens.read_loss_table(RESULTS / "pydoc_losses.csv")
    measured = dict(zip(truth.names, truth.column(6400), strict=True))
    ranking = table("demo_ranking")
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


def test_row_of_the_kernel_is_that_of_the_committed_benchmark():
    ours, theirs = (
        f"{float(row['seconds']):.1f} s and {float(row['peak_gb']):.2f} GB"
        for row in table("ntk_benchmark")
        if row["n"] == "128"
    )
    line = next(line for line in README.splitlines() if line.startswith("| structured kernel"))
    assert f"| {ours} against {theirs} |" in line
