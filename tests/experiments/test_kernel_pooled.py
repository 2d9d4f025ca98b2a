"""Comparisons of several tasks, pooled candidate by candidate."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.paired import paired
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.experiments.pools import write
from tests.messages.binaries import load
from tests.tolerances import assert_close

MODULE = load("kernel_pooled").module
NAMES = tuple(f"m{i}" for i in range(6))
TRUTH = np.linspace(2.0, 3.0, 6)


def write_task(folder, task, gains):
    """Tables of a task: with the kernel, errors are smaller than without by ``gains``."""
    table = LossTable(NAMES, np.array([0, 100, 200]), np.stack([TRUTH + 2, TRUTH + 1, TRUTH], 1),
                      np.ones(6), ("",) * 6)  # fmt: skip
    write_loss_table(table, folder / f"{task}_losses.csv")
    empty = {"readout": "", "num_examples": "", "rate": "", "unit": ""}
    kernel = {"readout": "loss", "num_examples": "4", "rate": "adamw", "unit": "fitted"}

    def errors(law, form, columns, fraction, values):
        return {"law": law, "form": form, **columns, "budget_fraction": fraction,
                **dict(zip(NAMES, values, strict=True))}  # fmt: skip

    write(folder / f"{task}_kernel_errors.csv", [
        errors("rectified", "none", empty, 1.0, np.full(6, 9.0)),
        errors("rectified", "none", empty, 0.5, np.full(6, 1.0)),
        errors("lensllm", "matrix", kernel, 1.0, np.zeros(6)),
        errors("lensllm", "matrix", kernel, 0.5, 1.0 - gains),
        errors("lensllm", "elementwise", kernel, 0.5, [""] * 6),
    ])  # fmt: skip
    write(folder / f"{task}_kernel_predictions.csv", [
        {"method": "prior", "uses": uses, "readout": readout, "num_examples": count,
         "budget_fraction": 0.5, "control": "", "candidate": name, "predicted_loss": value}
        for uses, readout, count, off in (("", "", "", np.ones(6)), ("log F", "loss", 4, gains - 1))
        for name, value in zip(NAMES, TRUTH + off, strict=True)
    ])  # fmt: skip


GAINS = np.array([0.1, 0.2, 0.3, 0.1, 0.2, 0.3])


def test_a_difference_is_that_from_the_control_of_its_own_budget(tmp_path):
    write_task(tmp_path, "one", GAINS)
    law = MODULE.law_differences(tmp_path, "one")
    # in-sample rows and rows without an error are no comparison
    assert list(law) == [("matrix", "", "", "loss", "4", "adamw", "fitted", "0.5")]
    assert_close(np.array([*law.popitem()[1].values()]), -GAINS)
    value = MODULE.value_differences(tmp_path, "one")
    assert list(value) == [("", "prior", "log F", "loss", "4", "", "", "0.5")]
    assert_close(np.array([*value.popitem()[1].values()]), -GAINS)  # errors of either sign count


def test_tasks_of_one_candidate_are_one_observation(tmp_path):
    for task in ("one", "two"):
        write_task(tmp_path, task, GAINS)
    differences = {task: MODULE.law_differences(tmp_path, task) for task in ("one", "two")}
    (row,) = MODULE.pooled_rows("law", differences)
    alone = paired(-GAINS[None])
    assert float(row["p_value"]) == alone.p_value[0] == 2 / 2**6
    assert row["difference"] == row["difference_one"] == row["difference_two"] == "-0.2"
    # counted as twelve candidates the same numbers would look far surer
    assert paired(-np.concatenate([GAINS, GAINS])[None]).p_value[0] == 2 / 2**12


def test_tasks_that_disagree_cancel(tmp_path):
    write_task(tmp_path, "one", GAINS)
    write_task(tmp_path, "two", -GAINS[::-1])
    differences = {task: MODULE.value_differences(tmp_path, task) for task in ("one", "two")}
    (row,) = MODULE.pooled_rows("value", differences)
    assert abs(float(row["difference"])) < 1e-12
    assert float(row["p_value"]) > 0.5


def test_what_cannot_be_pooled_is_named(tmp_path):
    write_task(tmp_path, "one", GAINS)
    differences = MODULE.law_differences(tmp_path, "one")
    other = {key: {"m0": row["m0"], "other": 1.0} for key, row in differences.items()}
    with pytest.raises(checks.UserError, match="`tasks` must have two or more candidates in comm"):
        MODULE.pooled_rows("law", {"one": differences, "two": other})
    fewer = {key: {"m5": row["m5"], "m0": row["m0"]} for key, row in differences.items()}
    (row,) = MODULE.pooled_rows("law", {"one": differences, "two": fewer})
    assert row["candidates"] == 2
    assert row["difference"] == f"{-(GAINS[0] + GAINS[5]) / 2:.4g}"  # name by name, in any order
    with pytest.raises(checks.UserError, match="`tasks` must have a "):
        MODULE.pooled_rows("law", {"one": differences, "two": {}})
    MODULE.TABLES_FOLDER.value, MODULE.OUTPUT_DIR.value = str(tmp_path), str(tmp_path / "out")
    for tasks, message in (
        (["one"], "`tasks` must be two or more"),
        (["one", "two"], "`tables` must hold "),
    ):
        MODULE.TASKS.value = tasks
        with pytest.raises(checks.UserError, match=message):
            MODULE.main([])
    assert not (tmp_path / "out").exists()
