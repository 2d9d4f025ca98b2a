"""The binaries as functions: the same defaults, two in a process, results that show themselves."""

import json

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.checks import UserError
from lensllm_jax.finetune.fine_tune import FineTuned, FineTuneResult
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.ntk import store
from lensllm_jax.ntk.candidate import CandidateNtk
from lensllm_jax.ntk.gram import OutputReduction
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.runs import progress
from lensllm_jax.runs.compute_ntk import KernelSettings
from lensllm_jax.runs.finetune_grid import GridSettings
from lensllm_jax.runs.select_model import SelectionSettings
from lensllm_jax.runs.settings import RunSettings, read_settings
from tests.finetune import tiny
from tests.kings import write_kings
from tests.messages.binaries import load

POOL = ["zoo/gpt2-xs", "zoo/opt-xs"]
KINDS = {
    "select_model": SelectionSettings,
    "finetune_grid": GridSettings,
    "compute_ntk": KernelSettings,
}


KERNEL = CandidateNtk(
    np.diag([4.0, 1.0, 0.1]), np.ones((3, 1)), np.zeros((3, 1)), Readout.LOSS, (), None,
    NtkMethod.STRUCTURED, OutputReduction.SUM, 3, 3, 0.0, 0,
)  # fmt: skip


class CalledError(Exception):
    """The function of a binary was called."""


@pytest.fixture
def task(tmp_path):
    return lens.load_task(write_kings(tmp_path, 60))


@pytest.fixture
def by_formula(monkeypatch):
    """Fine-tunes are a formula, noted."""
    measured = []

    def fine_tune(measurement, size, **_):
        measured.append((measurement.candidate.name, size))
        loss = (9.0 if measurement.candidate.name == POOL[0] else 12.0) / size
        return FineTuned(
            FineTuneResult(loss, loss, 1, 1, 10 * size, True, ""), None, tiny.evaluation(loss)
        )

    monkeypatch.setattr(Measurement, "fine_tune", fine_tune)
    monkeypatch.setattr(Measurement, "zero_shot", lambda _, **__: tiny.evaluation(9.0))
    return measured


@pytest.mark.parametrize("name", KINDS)
def test_flags_and_settings_have_the_same_defaults(name, tmp_path):
    module, given = load(name, output_dir=str(tmp_path)).module, {}

    def called(candidates, **settings):
        given.update(settings, candidates=candidates)
        raise CalledError

    setattr(module, name, called)
    with pytest.raises(CalledError):
        module.main([])
    assert given.pop("command").startswith("python -m experiments.")
    plain = {"candidates": "zoo", "output_dir": str(tmp_path)}
    assert read_settings(KINDS[name], given) == read_settings(KINDS[name], plain)
    given["seed"] += 1  # the control: a difference is one
    assert read_settings(KINDS[name], given) != read_settings(KINDS[name], plain)


@pytest.mark.parametrize(("sizes", "plans"), [((0,), 0), ((0, 4), 1)])
def test_a_grid_of_size_0_alone_plans_no_step(
    sizes, plans, tmp_path, task, by_formula, monkeypatch
):
    planned, fitted = [], RunSettings.fitted

    def counted(self, *args, **settings):
        planned.append(args)
        return fitted(self, *args, **settings)

    monkeypatch.setattr(RunSettings, "fitted", counted)
    lens.finetune_grid(POOL, task, sizes=sizes, learning_rate=1e-3, output_dir=tmp_path / "out")
    assert (len(planned), len(by_formula)) == (plans, plans * len(POOL))


def test_a_grid_is_a_table_and_a_second_call_measures_nothing(tmp_path, task, by_formula):
    seen = []
    settings = {"sizes": (0, 4, 8), "learning_rate": 1e-3, "output_dir": tmp_path / "out"}
    first = lens.finetune_grid(POOL, task, **settings, on_progress=lambda *how: seen.append(how))
    assert by_formula == [(name, size) for name in POOL for size in (4, 8)]
    assert [share for share, _ in seen] == sorted(share for share, _ in seen)
    assert seen[-1][0] == 1.0
    second = lens.finetune_grid(POOL, task, **settings, quiet=True)
    assert len(by_formula) == 4
    assert second.losses.losses.tolist() == first.losses.losses.tolist()
    assert repr(second) == f"{task.name}: 6 losses of 2 candidates"
    page = second._repr_html_()
    assert page.count("<tr>") == 3
    assert "<svg" in page
    assert "<button" not in page
    call = json.loads((tmp_path / "out" / "run.json").read_text())["command"]
    assert call.startswith("lensllm_jax.finetune_grid(candidates=['zoo/gpt2-xs', 'zoo/opt-xs'], ")
    assert "sizes=(0, 4, 8)" in call


def test_a_grid_grows_by_candidates_and_sizes(tmp_path, task, by_formula):
    def grid(pool, sizes, folder):
        settings = {"learning_rate": 1e-3, "output_dir": tmp_path / folder, "quiet": True}
        return lens.finetune_grid(pool, task, sizes=sizes, **settings)

    grid(POOL[:1], (0, 8), "out")
    grown = grid(POOL[::-1], (0, 4, 8, 16), "out")
    first, second = POOL
    expected = [*((second, size) for size in (4, 8, 16)), (first, 4), (first, 16)]
    assert by_formula == [(first, 8), *expected]
    whole = grid(POOL[::-1], (0, 4, 8, 16), "whole")
    assert grown.losses.losses.tolist() == whole.losses.losses.tolist()
    timed = {"seconds", "tokens_per_second"}
    assert [{k: v for k, v in row.items() if k not in timed} for row in grown.ledger] == [
        {k: v for k, v in row.items() if k not in timed} for row in whole.ledger
    ]
    stored = json.loads((tmp_path / "out" / "run.json").read_text())
    assert "sizes=(0, 4, 8, 16)" in stored["command"]
    with pytest.raises(UserError, match=r"sizes=\[0, 4, 8, 16\] there, \[0, 4\] now"):
        grid(POOL, (0, 4), "out")


def test_a_new_candidate_is_fitted_and_the_others_keep_their_passes(
    tmp_path, task, by_formula, monkeypatch
):
    found = {"zoo/gpt2-xs": 2, "zoo/opt-xs": 4}
    asked = []

    def fewest_passes(step, *, compute, free):
        del compute, free
        asked.append(step)
        return found[step]

    where = "lensllm_jax.runs.settings"
    monkeypatch.setattr(f"{where}.is_large", lambda _: True)
    monkeypatch.setattr(f"{where}.fewest_passes", fewest_passes)
    monkeypatch.setattr(f"{where}.LargestStep.of", lambda one, *_, **__: one.name)
    for pool in (POOL[:1], POOL):
        lens.finetune_grid(
            pool, task, sizes=(4,), learning_rate=1e-3, output_dir=tmp_path / "out", quiet=True
        )
    assert asked == POOL  # each once
    stored = json.loads((tmp_path / "out" / "micro_batches.json").read_text())
    assert stored["passes"] == found


def test_a_selection_is_its_answer(tmp_path, task, by_formula):
    chosen = lens.select_model(
        POOL, task, output_dir=tmp_path / "out", target_size=32, budget_size=16, smallest_size=4,
        max_cost=0.9, kernels="none", num_kernel_examples=4, learning_rate=1e-3, quiet=True,
    )  # fmt: skip
    assert chosen.candidate == POOL[0]
    assert repr(chosen) == str(chosen.answer)
    assert json.loads((tmp_path / "out" / "answer.json").read_text())["answer"] == repr(chosen)
    page = chosen._repr_html_()
    assert "Fine-tune zoo/gpt2-xs" in page
    assert "<svg" in page
    assert page.count("<tr>") == 3


def test_a_kernel_is_its_spectrum_and_later_runs_see_no_tiles_of_it(tmp_path, task, monkeypatch):
    monkeypatch.setattr(Measurement, "kernel", lambda measurement, store, map_tiles: KERNEL)
    filters = list(store.logger.filters)
    kernel = lens.compute_ntk(
        POOL[0], task, output_dir=tmp_path / "out", num_kernel_examples=3, quiet=True
    )
    assert kernel.theta.tolist() == KERNEL.theta.tolist()
    assert repr(kernel).startswith("Kernel of zoo/gpt2-xs: 3 examples, largest eigenvalue 4, ")
    assert "<svg" in kernel._repr_html_()
    assert store.logger.filters == filters


def test_a_notebook_gets_a_bar(monkeypatch):
    shown = []

    class Bar:
        def show(self, share, left, message):
            shown.append((share, message))

    monkeypatch.setattr(progress, "_NotebookBar", Bar)
    monkeypatch.setattr(progress, "_in_notebook", lambda: True)
    with progress.Progress(total=4.0) as bar:
        bar.finish(1.0, "one")
    assert shown == [(0.25, "one")]
