"""The search of a candidate's rate: kept trial by trial, used for every size."""

import dataclasses
import json
import math

import pytest

from lensllm_jax import checks
from lensllm_jax.finetune.fine_tune import Progress
from lensllm_jax.finetune.rates import LADDER, Trial
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.jobs import Job, Measurer
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.rates import RateSearch, search_rate

CONFIG = MeasurementConfig(learning_rate="auto")


class Fake(Measurement):
    """A candidate whose best rate is known; notes what it trains."""

    def __init__(self, best, *, num_params=656_448):
        self.best, self.trained, self.config = best, [], CONFIG
        self.candidate = type("Candidate", (), {"num_params": num_params})
        self.task = type("Task", (), {"train": range(40)})

    def trial(self, size):
        assert size == 40  # all of a small task

        def of(rate, on_progress):
            self.trained.append(rate)
            on_progress(Progress(1, 2, 3.0, 0.5, 9.0))
            return Trial(rate, abs(math.log(rate / self.best)), 100)

        return of


def test_trials_that_ended_are_not_made_again(tmp_path):
    file = tmp_path / "rates.json"
    whole = search_rate(Fake(1e-4), file, on_progress=lambda *_: None)
    assert whole.learning_rate == 1e-4
    assert whole.as_dict()["num_tokens"] == 100 * len(whole.trials)
    assert whole.as_dict()["num_examples"] == 40 * len(whole.trials)
    kept = json.loads(file.read_bytes())
    file.write_text(json.dumps(kept[:2]))  # killed after two
    again, shown = Fake(1e-4), []

    def show(*now):
        shown.append(now)

    assert search_rate(again, file, on_progress=show) == whole
    assert again.trained == [trial[0] for trial in kept[2:]]
    assert shown[0] == ((2 + 1 / 2) / 3, f"rate {again.trained[0]:g}, validation loss 0.5000")
    assert [now[0] for now in shown[1:]] == [1.0] * (2 * len(again.trained) - 1)
    file.write_text("[[1, 2]]")
    with pytest.raises(checks.UserError, match="delete it to search again"):
        search_rate(Fake(1e-4), file, on_progress=show)


def test_of_rates_that_are_as_good_the_highest_is_taken():
    def found(*losses):
        rates = (3e-4, 1e-3, 3e-3)
        trials = [Trial(rate, loss, 1) for rate, loss in zip(rates, losses, strict=True)]
        return RateSearch(tuple(trials), 100).learning_rate

    assert found(2.000, 1.9200, 1.9210) == 3e-3
    assert found(1.725, 1.7040, 1.7080) == 1e-3  # the control
    assert found(1.704, 1.7050, math.inf) == 1e-3


def test_every_size_uses_the_rate_that_was_found_once(tmp_path, monkeypatch):
    fake, used = Fake(3e-4), []
    monkeypatch.setattr(Measurer, "measurement", lambda self, name, config: _with(fake, config))
    monkeypatch.setattr(jobs, "_fine_tuned", lambda job, m, _: used.append(m.config) or {})
    measurer = Measurer.__new__(Measurer)
    measurer._rates = {}
    cells = [
        measurer.measure(Job("a", 656_448, size, CONFIG, path=tmp_path / f"{size}.json"))
        for size in (8, 16)
    ]
    assert [config.learning_rate for config in used] == [3e-4, 3e-4]
    assert len(fake.trained) == len(cells[0]["rate_search"]["learning_rates"]) == 3
    assert cells[0] == cells[1]
    assert (tmp_path / "rates.json").exists()
    given = Job("a", 656_448, 8, dataclasses.replace(CONFIG, learning_rate=2e-3))
    assert measurer.measure(given) == {}  # control: a rate that was given is not searched
    assert used[-1].learning_rate == 2e-3
    assert fake.trained[0] == LADDER[4]


def _with(fake, config):
    fake.config = config
    return fake
