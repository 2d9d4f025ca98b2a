"""The numbers of docs/REPRODUCTION.md are those of the committed tables."""

import itertools
from collections import defaultdict

import numpy as np
import pytest

from experiments.pool_orders import joined
from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.rank import rank
from tests.committed import RESULTS, table
from tests.docs.reproduction import WORDS, row_of_page, selector_rows

TASKS = ("pydoc", "sotu")  # own curves


def test_mean_errors_with_a_measured_f_are_those_of_the_tables():
    forms = {
        "rectified; Eq 10 with one free t": ("none", "", ""),
        "Eq 9, as it stands, rate / n": ("matrix", "as it stands", "adamw"),
        "Eq 9, as it stands, η fitted": ("matrix", "as it stands", "fitted"),
        "Eq 9, up to a factor, rate / n": ("matrix", "fitted", "adamw"),
        "Eq 9, up to a factor, η fitted": ("matrix", "fitted", "fitted"),
        "kernel's test residual, up to a factor, η fitted": ("test", "fitted", "fitted"),
    }
    cells = {start: [] for start in forms}
    for task in TASKS:
        by_key = {
            (row["form"], row["unit"], row["rate"], row["budget_fraction"]): row["mean_rmse"]
            for row in table(f"{task}_kernel_laws")
            if (row["readout"], row["num_examples"]) in (("target_logprob", "64"), ("", ""))
            and row["law"] != "power"  # it has no form either
        }
        for start, key in forms.items():
            errors = [by_key[(*key, budget)] for budget in ("1.0", "0.5", "0.25", "0.125")]
            cells[start] += [f"{float(error):.4f}" for error in errors]
    for start, expected in cells.items():
        assert row_of_page(start) == expected, start


def held_out(rows):
    return [row for row in rows if row["readout"] and float(row["budget_fraction"]) < 1]


def counts(rows, difference):
    """Comparisons; in how many the mean is smaller; surely smaller, larger; so family-wise."""
    mean, p_value, p_family = (
        np.array([float(row[name]) for row in rows]) for name in (difference, "p_value", "p_family")
    )
    sure = [np.sum((sign * mean > 0) & (p_value < 0.05)) for sign in (-1, 1)]
    family = [np.sum((sign * mean > 0) & (p_family < 0.05)) for sign in (-1, 1)]
    return [str(n) for n in (len(rows), np.sum(mean < 0), *sure, *family)]


def test_counts_of_comparisons_are_those_of_the_tables():
    pooled = table("kernel_pooled")
    for kind, start, tables, difference in (
        ("law", "F in Eq 10", "kernel_laws", "less_rectified"),
        ("value", "other ways", "kernel_value", "less_control"),
    ):
        for task in TASKS:
            rows = [row for row in table(f"{task}_{tables}") if row[difference]]
            rows = held_out(rows) if kind == "law" else rows
            assert row_of_page(f"{start}, {task}") == counts(rows, difference)
        rows = [row for row in pooled if row["kind"] == kind]
        assert row_of_page(f"{start}, both") == counts(rows, "difference")


def test_the_kernels_learning_curve_is_that_of_the_table():
    rows = table("kernel_curve_value")
    assert row_of_page("its learning curve, both") == counts(rows, "difference")
    primary = {row["question"]: f"{float(row['p_family']):.3f}" for row in rows
               if row["primary"] == "1"}  # fmt: skip
    assert f"with a family-wise p-value of {primary['level']}, and the slope" in WORDS
    assert f"the slope changes nothing ({primary['slope']})" in WORDS
    logme = {row["control_error"] for row in rows if row["control"] == "logme"}
    assert f"LogME puts {float(*logme):.3f} of the pairs on the wrong side" in WORDS
    for question, control, budget in (("level", "zero_shot", ""), ("slope", "kappa = 0", "0.125")):
        for readout in ("target_logprob", "label_logits"):
            found = [row for row in rows if row["question"] == question
                     and row["readout"] == readout and row["control"] == control
                     and row["budget_fraction"] == budget]  # fmt: skip
            assert [row["estimate"] for row in found] == ["gcv", "replica", "holdout"]
            errors = [row["mean_error"] for row in found] + [found[0]["control_error"]]
            expected = [f"{float(error):.3f}" for error in errors]
            assert row_of_page(f"{question}, {readout.replace('_', ' ')}") == expected


def linear_training():
    """Rows of every candidate and step size, in their order."""
    groups = defaultdict(list)
    for row in table("pydoc_linear_training"):
        groups[f"{row['candidate']}, {row['share']}"].append(row)
    return groups


def departure(rows):
    """The first row where the model is off the linear one by more than a tenth."""
    return next(row for row in rows
                if abs(float(row["measured"]) / float(row["linear"]) - 1) > 0.1)  # fmt: skip


def parts_left(row, rows):
    """Of the first residual, in per cent: the model's, the linear one, F."""
    start = float(rows[0]["measured"])
    return [f"{100 * float(row[key]) / start:.1f} %" for key in ("measured", "linear", "flow")]


def test_linear_training_is_that_of_the_table():
    groups = linear_training()
    expected = []
    for first, rows in groups.items():
        at = departure(rows)
        cells = [at["step"], *parts_left(at, rows), *parts_left(rows[-1], rows)]
        expected.append((first, cells))
    assert list(selector_rows("| candidate, share | departs at step |")) == expected
    rows = groups["published/smollm2-135m, 1"]
    worst = max(float(row["measured"]) for row in rows) / float(rows[0]["measured"])
    assert f"SmolLM2's residual grows to {worst:.0f} times its start" in WORDS


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
    sizes = SIZES_OF_PUBLISHED[1:4]
    shown = " / ".join(f"{float(losses[size]):.3f}" for size in sizes)
    first, second = (
        {row["size"]: row for row in table(f"published_sotu_{name}")
         if row["candidate"] == losses["config name"]}
        for name in ("ledger", "seed_1_ledger")
    )  # fmt: skip
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
        {row["size"]: row for row in rows if row["candidate"] == losses["config name"]}
        for rows in (table("published_sotu_ledger"), table("published_sotu_lora_ledger"))
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


def test_predictions_of_published_curves_are_those_of_their_tables(tmp_path):
    errors = defaultdict(list)
    for task, name, budget in (
        ("sotu", "SmolLM2", 400),
        ("sotu", "Gemma", 400),
        ("sotu", "Qwen", 400),
        ("pydoc", "SmolLM2", 400),
        ("pydoc", "SmolLM2", 800),
    ):
        (candidate,) = (c for t, n, c in CURVES_OF_PUBLISHED if (t, n) == (task, name))
        measured, rankings = predicted_of_published(task, budget, candidate, tmp_path)
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
    both = [load_loss_table(str(RESULTS / f"{name}.csv"))
            for name in ("published_sotu_losses", "sotu_losses")]  # fmt: skip
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


def predicted_of_published(task, budget, candidate, folder):
    """Its loss at four budgets, and by selector the ranking beside the others of the task."""
    sizes = [size for size in SIZES_OF_PUBLISHED if int(size) <= 4 * budget]
    columns = ("config name", *sizes, "size", "family")
    rows = [row for name in ("", "published_") for row in table(f"{name}{task}_losses")]
    lines = [",".join(columns), *(",".join(row[name] for name in columns) for row in rows)]
    file = folder / f"{task}.csv"
    file.write_text("\n".join(lines))
    both = load_loss_table(str(file))
    rankings = {
        name: rank(both, budget_size=budget, target_size=4 * budget, selector=name)
        for name in ("lensllm", "rectified", "pooled", "posterior")
    }
    return both.by_name(4 * budget)[candidate], rankings


def test_other_ways_are_the_means_of_the_tables():
    pairs = [  # the method, and what it reads without the kernel and with it
        ("prior", "", "log F"),
        ("covariates of rectified", "", "kernel"),
        ("covariates of rectified", "curve", "curve and kernel"),
        ("covariates of pooled", "", "kernel"),
        ("covariates of pooled", "curve", "curve and kernel"),
    ]
    expected = [[] for _ in pairs]
    for task in TASKS:
        by_method = defaultdict(list)
        for row in table(f"{task}_kernel_value"):
            by_method[row["method"], row["uses"].split(",")[0]].append(row)
        for cells, (method, without, using) in zip(expected, pairs, strict=True):
            errors = [
                np.mean([float(row["mean_error"]) for row in by_method[method, uses]])
                for uses in (without, using)
            ]
            smaller = [float(row["less_control"]) < 0 for row in by_method[method, using]]
            cells += [f"{e:.3f}" for e in errors] + [f"{sum(smaller)} of {len(smaller)}"]
    assert [cells for _, cells in selector_rows("| method | pydoc: without |")] == expected


def test_every_phase_is_counted():
    for name, task, label in (
        ("phases_pydoc", "pydoc_losses", "pydoc"),
        ("phases_sotu", "sotu_losses", "sotu"),
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


def mean_of(rows, name):
    """As the page prints it; None where a budget has none."""
    values = [row[name] for row in rows]
    return f"{np.mean([float(value) for value in values]):.1f}" if all(values) else None


def both_metrics(rows):
    cells = [mean_of(rows, name) for name in ("pearson", "relative_accuracy")]
    return " / ".join(cells) if None not in cells else "-"


def test_table_3_is_the_means_of_the_selection_tables():
    tables = ("selection_public", "selection_public", "selection_pydoc", "selection_sotu")
    tasks = ("flan", "gigaword", "pydoc_losses", "sotu_losses")
    seen = 0
    for first, cells in selector_rows("| selector | FLAN | Gigaword |"):
        selector = first.split(" ")[0]
        for name, task, cell in zip(tables, tasks, cells, strict=True):
            if not cell:  # a public table has no weights and no features
                assert selector in ("nlp_metrics", "logme")
                continue
            suffix = "_features" if selector in ("nlp_metrics", "logme") else ""
            rows = [
                row for row in table(name + suffix)
                if (row["task"], row["selector"]) == (task, selector)
            ]  # fmt: skip
            assert cell == both_metrics(rows), (selector, task)
            seen += 1
    assert seen == 10 * 4 + 2 * 2


def test_table_4_is_that_of_the_levels():
    saved = {
        (row["task"], row["selector"], row["pearson_reached"]): row["saving_percent"]
        for row in table("saving_levels")
    }
    seen = 0
    for selector, cells in selector_rows("| selector | FLAN, 78.4 / 85.8 / 95 |"):
        tasks = ("flan", "gigaword", "pydoc_losses", "sotu_losses")
        for task, cell in zip(tasks, cells, strict=True):
            percents = [saved.get((task, selector, level), "") for level in ("78.4", "85.8", "95")]
            expected = [f"{float(p):.1f}" if p else "-" for p in percents]
            assert cell.split(" / ") == expected, (selector, task)
            seen += 1
    assert seen == 9 * 4


def test_tables_5_to_7_are_the_ablation():
    rows = table("ablation_public")
    for gamma in ("3", "4", "5"):
        for task, cell in zip(("flan", "gigaword"), row_of_page(gamma), strict=True):
            means = []
            for tau in "12345":
                of_setting = [
                    row for row in rows
                    if (row["task"], row["selector"]) == (task, "lensllm")
                    and (float(row["gamma"]), float(row["tau"])) == (float(gamma), float(tau))
                ]  # fmt: skip
                means.append(mean_of(of_setting, "pearson"))
            assert cell.split(" ") == means


@pytest.mark.parametrize(
    ("name", "header"),
    [("settings_pydoc", "| rate, batch | lensllm |"), ("settings_sotu_lengths", "| tokens |")],
)
def test_tables_8_to_11_are_the_settings(name, header):
    rows = [row for row in table(name) if row["budget_size"] == "800"]
    selectors = ("lensllm", "rectified", "pooled", "ats", "subtuning")
    on_page = list(selector_rows(header))
    assert len(on_page) == len({row["setting"] for row in rows})
    for setting, cells in on_page:
        label = setting.replace(", ", "/")
        by_selector = {row["selector"]: row for row in rows if row["setting"] == label}
        assert cells[:-1] == [both_metrics([by_selector[name]]) for name in selectors]
        assert cells[-1] == f"{float(by_selector['pooled']['mean_budget_loss']):.3f}"


def noise_cells(row):
    low, high = (f"{float(row[name]):.4f}" for name in ("sd_low", "sd_high"))
    return [f"{float(row['sd']):.4f}", f"{low} to {high}", f"{float(row['pearson']):.1f}"]


def test_noise_is_that_of_the_two_seeds():
    noise = {
        task: {row["size"]: noise_cells(row) for row in table(f"{task}_noise")} for task in TASKS
    }
    sizes = {size for rows in noise.values() for size in rows} - {"0"}
    on_page = dict(selector_rows("| examples | pydoc: sd |"))
    assert set(on_page) == sizes
    for size, cells in on_page.items():
        expected = [noise[task].get(size, ["-", "-", "-"]) for task in TASKS]
        assert cells == expected[0] + expected[1], size


def sure_of_both_tasks(kind):
    """Comparisons over both tasks, and how many are surely larger and surely smaller."""
    return sure([row for row in table("kernel_pooled") if row["kind"] == kind])


def sure(rows):
    """Comparisons, and how many are surely larger and surely smaller."""
    number, *_, smaller, larger = map(int, counts(rows, "difference"))
    return number, larger, smaller


def mean_pearson(task, selector):
    rows = [row for row in table("selection_public")
            if (row["task"], row["selector"]) == (task, selector)]  # fmt: skip
    return mean_of(rows, "pearson")


def settings_range(name):
    """Smallest and largest PearCorr of lensllm from 800 examples."""
    found = [float(row["pearson"]) for row in table(name)
             if (row["selector"], row["budget_size"]) == ("lensllm", "800")]  # fmt: skip
    return f"{min(found):.1f}", f"{max(found):.1f}"


def seed_pearson(name):
    """The least PearCorr of two seeds' losses at one size."""
    return f"{min(float(row['pearson']) for row in table(name)):.1f}"


def ablation_range(task):
    by_setting = defaultdict(list)
    for row in table("ablation_public"):
        if (row["task"], row["selector"]) == (task, "lensllm"):
            by_setting[row["gamma"], row["tau"]].append(float(row["pearson"]))
    means = [np.mean(values) for values in by_setting.values()]
    return f"{max(means) - min(means):.1f}"


def test_the_first_table_is_what_the_others_say():
    measured = {first: cells[1] for first, cells in selector_rows("| claim | verdict |")}
    phases = [row["phase"] for name in ("pydoc", "sotu", "public")
              for row in table(f"phases_{name}")]  # fmt: skip
    rmse = {(row["task"], row["law"]): f"{float(row['mean_rmse']):.4f}"
            for row in table("laws_public") if row["budget_fraction"] == "1.0"}  # fmt: skip
    for task in ("flan", "gigaword"):
        assert rmse[task, "lensllm"] == rmse[task, "rectified"]
    saved = {(row["task"], row["pearson_reached"]): f"{float(row['saving_percent']):.1f}"
             for row in table("saving_levels")
             if row["selector"] == "lensllm" and row["saving_percent"]}  # fmt: skip
    law, value = sure_of_both_tasks("law"), sure_of_both_tasks("value")
    curve = sure(table("kernel_curve_value"))
    flan, gigaword = (
        [mean_pearson(task, selector) for selector in ("lensllm", "ats", "posterior")]
        for task in ("flan", "gigaword")
    )
    least = min(
        float(parts_left(departure(rows), rows)[0].rstrip(" %"))
        for rows in linear_training().values()
    )
    assert list(measured.values()) == [
        (
            f"on {phases.count('TRANSITION')} of {len(phases)} curves; "
            f"{phases.count('FLATTENING')} flatten instead"
        ),
        (
            "with one optimiser both have the same RMSE: "
            f"{rmse['flan', 'lensllm']} on FLAN, {rmse['gigaword', 'lensllm']} on Gigaword"
        ),
        f"of {law[0]} paired comparisons {law[1]} are surely worse, {law[2]} surely better",
        (
            f"of {value[0] + curve[0]} paired comparisons {value[1] + curve[1]} are surely worse, "
            f"{value[2] + curve[2]} surely better"
        ),
        (
            "gradient descent is a tenth off the kernel's linear model while "
            f"{least:.0f} % or more of the residual are left"
        ),
        (
            f"PearCorr on FLAN {flan[0]}, `ats` {flan[1]}, `posterior` {flan[2]}; "
            f"on Gigaword {', '.join(gigaword)}"
        ),
        (
            f"`lensllm` saves {saved['gigaword', '85.8']} % at a PearCorr of 85.8 on Gigaword, "
            f"{saved['flan', '85.8']} % on FLAN"
        ),
        f"{ablation_range('flan')} points on FLAN, {ablation_range('gigaword')} on Gigaword",
        "PearCorr of `lensllm` between {} and {} over nine settings, "
        "between {} and {} over three lengths".format(
            *settings_range("settings_pydoc"), *settings_range("settings_sotu_lengths")
        ),
        (
            "a second seed's PearCorr is {} or more on pydoc, {} or more on sotu".format(
                seed_pearson("pydoc_noise"), seed_pearson("sotu_noise")
            )
        ),
    ]
