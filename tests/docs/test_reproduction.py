"""The numbers of docs/REPRODUCTION.md are those of the committed tables."""

from collections import defaultdict

import numpy as np
import pytest

from tests.committed import table
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
