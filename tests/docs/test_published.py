"""What docs/REPRODUCTION.md says of models that people know is that of the committed tables."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.rank import rank
from tests.committed import RESULTS, table
from tests.docs.reproduction import WORDS, row_of_page
from tests.messages.binaries import load

joined = load("pool_orders").module.joined
TASKS = ("pydoc", "sotu")

SIZES_OF_PUBLISHED = ("0", "200", "400", "800", "1600", "3200")
CURVES_OF_PUBLISHED = (
    ("sotu", "SmolLM2", "published/smollm2-135m"),
    ("sotu", "Gemma", "published/gemma-3-270m"),
    ("sotu", "Qwen", "published/qwen2.5-coder-0.5b"),
    ("pydoc", "SmolLM2", "published/smollm2-135m"),
)


def published(task, kind="losses"):
    """Rows of the published models by candidate."""
    rows = defaultdict(list)
    for row in table(f"published_{task}_{kind}"):
        rows[row.get("candidate") or row["config name"]].append(row)
    return rows


def losses_of(name):
    return load_loss_table(str(RESULTS / f"{name}_losses.csv"))


def by_size(ledger, candidate):
    """Rows of a ledger."""
    return {row["size"]: row for row in table(ledger) if row["candidate"] == candidate}


def total(rows, column):
    return sum(float(row[column]) for row in rows)


def test_published_curves_are_those_of_the_tables():
    for task, name, candidate in CURVES_OF_PUBLISHED:
        (losses,) = published(task)[candidate]
        cells = [f"{float(losses[n]):.3f}" if n in losses else "" for n in SIZES_OF_PUBLISHED]
        assert row_of_page(f"{task}, {name}") == cells
    for task in TASKS:
        bundled = table(f"{task}_losses")
        best = [min(float(row[n]) for row in bundled) for n in SIZES_OF_PUBLISHED]
        assert row_of_page(f"{task}, best of thirteen") == [f"{loss:.3f}" for loss in best]
    assert sum(len(published(task)) for task in TASKS) == len(CURVES_OF_PUBLISHED)


def test_another_seed_of_a_published_model_is_that_of_its_table():
    (losses,) = table("published_sotu_seed_1_losses")
    sizes = SIZES_OF_PUBLISHED[1:5]
    shown = " / ".join(f"{float(losses[size]):.3f}" for size in sizes)
    first, second = (
        by_size(f"published_sotu_{name}", losses["config name"])
        for name in ("ledger", "seed_1_ledger")
    )
    gaps = [float(second[n]["test_loss"]) - float(first[n]["test_loss"]) for n in sizes]
    words = [f"{abs(gap):.3f} {'above' if gap > 0 else 'below'}".removeprefix("0") for gap in gaps]
    assert f"SmolLM2 has {shown} on sotu: {', '.join(words)} the first, less than" in WORDS
    for gap, n in zip(gaps, sizes, strict=True):
        assert abs(gap) < min(float(row[n]["loss_se"]) for row in (first, second))
        assert first[n]["num_steps"] == second[n]["num_steps"]
        assert first[n]["data_order_sha256"] != second[n]["data_order_sha256"]
        assert second[n]["learning_rate"] == first[n]["learning_rate"]
    minutes = total(second.values(), "seconds") / 60
    assert f"numbers of steps. {minutes:.0f} min of one core" in WORDS


def test_lora_of_a_published_model_is_that_of_its_table():
    (losses,) = table("published_sotu_lora_losses")
    sizes = SIZES_OF_PUBLISHED[:4]
    shown = " / ".join(f"{float(losses[size]):.3f}" for size in sizes)
    assert f"SmolLM2 has {shown} on sotu" in WORDS
    full, lora = (
        by_size(f"published_sotu_{name}", losses["config name"])
        for name in ("ledger", "lora_ledger")
    )
    gaps = [float(lora[n]["test_loss"]) - float(full[n]["test_loss"]) for n in sizes[1:]]
    behind, *ahead = (f"{abs(gap):.3f}".removeprefix("0") for gap in gaps)
    assert [gap > 0 for gap in gaps] == [True, False, False]
    expected = (
        f"{behind} behind full fine-tuning on 200 examples, {ahead[0]} ahead on 400, {ahead[1]}"
    )
    assert f"{expected} on 800" in WORDS
    assert all(lora[n]["num_steps"] == full[n]["num_steps"] for n in sizes[1:])
    share = float(lora["800"]["flops"]) / float(full["800"]["flops"])
    assert (
        f"{share:.2f} of the FLOPs on 800. Its rate, {float(lora['200']['learning_rate']):.0e}"
        in (WORDS.replace("e-4", "e-04"))
    )
    assert f"{total(lora.values(), 'seconds') / 60:.0f} min of one core" in WORDS


def test_lora_ranks_six_candidates_as_its_tables_say():
    full = {row["config name"]: row for row in table("pydoc_losses")}
    lora = {row["config name"]: row for row in table("pydoc_lora_losses")}
    assert len(lora) == 6

    def gaps(size):
        return [float(row[size]) - float(full[name][size]) for name, row in lora.items()]

    def alike(size):
        return sum(
            (float(lora[a][size]) < float(lora[b][size]))
            == (float(full[a][size]) < float(full[b][size]))
            for a, b in itertools.combinations(lora, 2)
        )

    assert max(map(abs, gaps("0"))) < 1e-6  # the same texts and weights, in float32
    assert [alike(size) for size in ("0", "200", "400", "800")] == [15, 15, 15, 14]
    shares = [float(row["same_order"]) for row in table("pydoc_lora_agreement")]
    assert shares == pytest.approx([1, 1, 1, 14 / 15], abs=1e-4)  # four digits
    for rows in (full, lora):
        assert min(lora, key=lambda name: float(rows[name]["800"])) == "zoo/llama-xs"
    ends = [
        f"{end:.3f}".removeprefix("0")
        for n in ("200", "800")
        for end in (min(gaps(n)), max(gaps(n)))
    ]
    assert "{} to {} higher on 200 examples and {} to {} on 800".format(*ends) in WORDS
    minutes = total(table("pydoc_lora_ledger"), "seconds") / 60
    assert minutes < 13  # which are those of the whole run


def test_no_curves_of_published_models_cross():
    rows = {name: row for name, (row,) in published("sotu").items()}
    order = sorted(rows, key=lambda name: float(rows[name]["0"]))
    assert order == [
        "published/gemma-3-270m",
        "published/smollm2-135m",
        "published/qwen2.5-coder-0.5b",
    ]
    bundled = table("sotu_losses")
    for n in SIZES_OF_PUBLISHED[:-1]:
        losses = [float(rows[name][n]) for name in order]
        assert losses == sorted(losses)
        assert losses[-1] < min(float(row[n]) for row in bundled)


def test_costs_of_published_curves_are_those_of_the_ledgers():
    shares, minutes, errors = [], [], {task: [] for task in TASKS}
    for task, _, candidate in CURVES_OF_PUBLISHED:
        rows = published(task, "ledger")[candidate]
        searched = total(rows, "search_flops")
        shares.append(100 * searched / (searched + total(rows, "flops")))
        minutes.append(total(rows, "seconds") / 60)
        errors[task] += [f"{float(row['loss_se']):.3f}".removeprefix("0") for row in rows]
    expected = (
        "took {:.0f} % of the FLOPs of SmolLM2's curve and itself on sotu, {:.0f} % of Gemma's"
    )
    assert f"{expected}, {{:.0f}} % on pydoc.".format(*shares[:2], shares[-1]) in WORDS
    smollm2, gemma, qwen, pydoc = minutes
    assert f"without AMX {qwen:.0f} Qwen, where it held" in WORDS
    expected = (
        f"{smollm2:.0f} min of fine-tuning SmolLM2 on sotu, {pydoc:.0f} on pydoc, {gemma:.0f} Gemma"
    )
    assert expected in WORDS
    ends = [f"{min(errors[task])} to {max(errors[task])} on {task}" for task in ("sotu", "pydoc")]
    assert f"standard errors {', '.join(ends)};" in WORDS


def test_best_steps_of_qwen_are_those_of_the_ledger():
    (_, *tuned) = published("sotu", "ledger")["published/qwen2.5-coder-0.5b"]
    best, made = ([row[name] for row in tuned] for name in ("best_step", "num_steps"))
    assert f"are the first {listed(best)} of {listed(made)}." in WORDS


def listed(words):
    return f"{', '.join(words[:-1])} and {words[-1]}"


def test_predictions_of_published_curves_are_those_of_their_tables():
    errors = defaultdict(list)
    for task, name, budget in (
        ("sotu", "SmolLM2", 400),
        ("sotu", "Gemma", 400),
        ("sotu", "Qwen", 400),
        ("pydoc", "SmolLM2", 400),
        ("pydoc", "SmolLM2", 800),
    ):
        (candidate,) = (c for t, n, c in CURVES_OF_PUBLISHED if (t, n) == (task, name))
        measured, rankings = predicted_of_published(task, budget, candidate)
        predicted = {key: r.predicted[candidate] for key, r in rankings.items()}
        cells = [f"{predicted[key]:.3f}" for key in ("lensllm", "pooled", "posterior")]
        row = row_of_page(f"{name}, {task}, from {budget} at {4 * budget:,}")
        assert row == [*cells, f"{measured:.3f}"]
        for key in ("lensllm", "pooled", "posterior"):
            errors[key].append(predicted[key] - measured)
        low, high = rankings["posterior"].intervals[candidate]
        assert low < measured < high
        assert np.isnan(predicted["rectified"]) == (budget == 400)
    for key in ("lensllm", "pooled"):
        assert (np.array(errors[key]) < 0).tolist() == [True, True, False, False, False]
    assert min(errors["posterior"]) > 0
    means = {key: f"{np.abs(e).mean():.3f}".removeprefix("0") for key, e in errors.items()}
    expected = "a mean of {posterior} nats per byte, those of `pooled` of {pooled}, of `lensllm` of"
    assert f"{expected} {{lensllm}}.".format(**means) in WORDS
    assert f"two sizes, and {predicted['rectified']:.3f} for SmolLM2 from three" in WORDS


def test_predictions_of_three_alone_are_those_of_their_table():
    both = [losses_of(name) for name in ("published_sotu", "sotu")]
    names = [name for task, _, name in CURVES_OF_PUBLISHED if task == "sotu"]
    measured = both[0].by_name(1600)
    predicted = {
        (selector, n): rank(
            joined(both[:n]), budget_size=400, target_size=1600, selector=selector
        ).predicted
        for selector in ("lensllm", "pooled", "posterior")
        for n in (1, 2)
    }
    for selector in ("lensllm", "pooled"):
        few, many = ([predicted[selector, n][name] for name in names] for n in (1, 2))
        assert few == pytest.approx(many)
    off = {n: np.mean([abs(predicted["posterior", n][name] - measured[name]) for name in names])
           for n in (1, 2)}  # fmt: skip
    said = [f"{predicted['posterior', 1][name]:.3f}" for name in names]
    errors = [f"{off[n]:.3f}".removeprefix("0") for n in (1, 2)]
    expected = f"have {listed(said)} by `posterior`, {errors[0]} off in the mean in place of"
    assert f"{expected} {errors[1]};" in WORDS


def test_races_of_published_and_bundled_models_are_those_of_the_tables():
    leaders = {"sotu": "published/gemma-3-270m", "pydoc": "published/smollm2-135m"}
    shares, flops, minutes = [], [], []
    for task, largest, num_candidates, beaten in (
        ("sotu", 1600, 16, {"published/qwen2.5-coder-0.5b"}),
        ("pydoc", 3200, 14, set()),
    ):
        pool = ("", "published_")
        first, *others = race = table(f"published_{task}_race")
        assert len(race) == num_candidates
        ran_to = {row["candidate"]: int(row["ran_to"]) for row in race}
        assert {*ran_to.values()} == {400}
        assert (first["candidate"], first["dropped"]) == (leaders[task], "False")
        assert float(first["probability_best"]) > 0.99
        dropped = {row["candidate"] for row in others if row["dropped"] == "True"}
        assert dropped == beaten | {*(row["config name"] for row in table(f"{task}_losses"))}
        measured = {row["config name"]: float(row[str(largest)])
                    for name in pool for row in table(f"{name}{task}_losses")}  # fmt: skip
        assert ran_to.keys() == measured.keys()
        assert min(measured, key=measured.__getitem__) == leaders[task]
        ledger = [row for name in pool for row in table(f"{name}{task}_ledger")]
        shares.append(100 * sum(float(row["cost"]) for row in race))
        raced = [r for r in ledger if 0 < int(r["size"]) <= ran_to[r["candidate"]]]
        whole = [r for r in ledger if int(r["size"]) == largest]
        flops.append(100 * total(raced, "flops") / total(whole, "flops"))
        minutes += [total(raced, "seconds") / 60, total(whole, "seconds") / 60]
    assert "costs {:.0f} and {:.0f} % of fine-tuning all".format(*shares) in WORDS
    assert "In FLOPs it is {:.0f} and {:.0f} %,".format(*flops) in WORDS
    expected = "{:.0f} in place of {:.0f} minutes on sotu, {:.0f} in place of {:.0f} on pydoc,"
    assert expected.format(*minutes) in WORDS


def predicted_of_published(task, budget, candidate):
    """Its loss at four budgets, and by selector the ranking beside the others of the task."""
    both = joined([losses_of(f"{name}{task}") for name in ("", "published_")])
    rankings = {
        name: rank(both, budget_size=budget, target_size=4 * budget, selector=name)
        for name in ("lensllm", "rectified", "pooled", "posterior")
    }
    return both.by_name(4 * budget)[candidate], rankings
