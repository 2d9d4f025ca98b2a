"""README's examples print what is shown; its tables, and those it links, are the measurements."""

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
COMMANDS, ZOO, REPRODUCTION = (
    (ROOT / "docs" / f"{page}.md").read_text() for page in ("commands", "zoo", "REPRODUCTION")
)


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
    assert len(ranking) == 12
    assert np.array_equal(ranked, ranking)
    assert len(expected) == 18
    # float32 sums of a quarter million products, in another order on another processor
    assert np.abs(got - expected).max() / np.abs(expected).max() < 1e-4
    theta, dense = got[:9], got[9:]
    assert np.abs(theta - dense).max() / np.abs(dense).max() < 1e-5


def test_losses_below_the_ranking_are_those_measured():
    truth = lens.load_loss_table("lin2024/gigaword")
    measured = dict(zip(truth.names, truth.column(1638400), strict=True))
    names = re.findall(r"^(google/[\w-]+): ", README, re.MULTILINE)
    first, second, third = (f"{measured[name]:.2f}" for name in names)
    assert f"at 1,638,400 are {first}, {second} and {third}. The first is\nthe best" in README
    assert measured[names[0]] == min(measured.values())


def test_every_binary_is_named():
    for path in (ROOT / "experiments").glob("*.py"):
        if "cli.run(main)" in path.read_text():
            assert f"`experiments.{path.stem}`" in COMMANDS


def test_table_of_the_zoo_is_that_of_the_folders():
    for name in lens.list_zoo():
        report = json.loads((FOLDER / name.removeprefix("zoo/") / "pretraining.json").read_text())
        candidate = lens.load_candidate(name)
        row = next(line for line in ZOO.splitlines() if line.startswith(f"| `{name}` "))
        assert f"{candidate.num_params:,}" in row
        assert f"{report['held_out_loss_nats_per_token']:.2f}" in row
        assert f"{report['tokens_seen'] / 1e6:.1f} M" in row
        assert ", ".join(report["corpora"]) in row


def test_tables_of_the_demo_are_those_of_the_committed_measurements():
    truth = lens.read_loss_table(RESULTS / "pydoc_losses.csv")
    measured = dict(zip(truth.names, truth.column(6400), strict=True))
    ranking = table("demo_ranking")
    at_target = np.array([measured[row["candidate"]] for row in ranking])
    for row, loss in zip(ranking, at_target, strict=True):
        line = next(x for x in REPRODUCTION.splitlines() if x.startswith(f"| {row['candidate']} |"))
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
        line = next(x for x in REPRODUCTION.splitlines() if x.startswith(f"| {title}"))
        assert line.endswith(f"| {correlation:.1f} | {accuracy:.1f} |")


def test_row_of_the_kernel_is_that_of_the_committed_benchmark():
    ours, theirs = (
        f"{float(row['seconds']):.1f} s and {float(row['peak_gb']):.2f} GB"
        for row in table("ntk_benchmark")
        if row["n"] == "128"
    )
    line = next(line for line in README.splitlines() if line.startswith("| What does an exact"))
    assert f"| structured {ours} against {theirs} |" in line


def test_row_of_selectors_is_that_of_table_3():
    start = REPRODUCTION.index("## Table 3")
    rows = [line.split(" |") for line in REPRODUCTION[start : start + 2500].splitlines()]
    selectors = ("| lensllm (F", "| posterior (", "| ats")
    pearson = {row[0].split()[1]: [cell.split("/")[0].strip() for cell in row[1:3]]
               for row in rows if row[0].startswith(selectors)}  # fmt: skip
    flan, gigaword = zip(*(pearson[name] for name in ("lensllm", "ats", "posterior")), strict=True)
    assert "FLAN: LensLLM {}, `ats` {}, `posterior` {};".format(*flan) in README
    assert f"Gigaword: {', '.join(gigaword)} |" in README


def test_rows_of_a_published_model_are_those_of_its_tables():
    losses = next(row for row in table("published_sotu_losses") if "smollm2" in row["config name"])
    before, small, large = (f"{float(losses[size]):.3f}" for size in ("0", "200", "1600"))
    assert f"before {before}, after 200 examples {small}, after 1,600 {large};" in README
    said = re.search(
        r"\| SmolLM2, sotu, from 400 at 1,600 \| (\S+) \| (\S+) \| (\S+) \|", REPRODUCTION
    )
    assert "said {}, {} and {} after 400".format(*said.groups()) in README
    line = next(
        x for x in REPRODUCTION.splitlines() if x.startswith("| published/smollm2-135m, 0.1")
    )
    assert line.split(" | ")[1] == "4"
    assert f"until the fourth step, {float(line.split(' | ')[2].split()[0]):.0f} % of the" in README


def test_row_of_races_is_the_table_of_them():
    regret, errors = {}, []  # selector, cost -> mean over both tables; shares of races' regrets
    for row in table("race_public"):
        if row["pool"] == "6":
            assert f"({row['draws']} pools of 6 of each table;" in README
            if row["selector"] == "race":
                errors.append(float(row["standard_error"]) / float(row["regret_percent"]))
            key = row["selector"], float(row["cost"])
            regret[key] = regret.get(key, 0.0) + float(row["regret_percent"]) / 2
    costs = (0.02, 0.05, 0.1)
    race = [f"{regret['race', cost]:.2f}" for cost in costs]
    fixed = [f"{min(regret[s, cost] for s in ('ats', 'pooled', 'posterior')):.2f}"
             for cost in costs]  # fmt: skip
    assert f"{', '.join(race)} % against {', '.join(fixed)} %" in README
    low, high = (f"{100 * end(errors):.0f}" for end in (min, max))
    assert f"the race's figures have standard errors of {low} to {high} % on each table" in README


def test_row_of_the_kernels_use_is_that_of_the_claims():
    counts = [int(n) for line in REPRODUCTION.splitlines() if "paired comparisons" in line
              for n in re.findall(r"(\d+) (?:paired|are surely|surely)", line)]  # fmt: skip
    laws, worse, better, others, worse_too, better_too = counts
    assert (
        f"of {laws + others} paired comparisons {worse + worse_too} are surely worse with it, "
        f"{better + better_too} surely better"
    ) in README
    assert better == better_too == 0
