"""The kernel before and after a fine-tune, and the layers that carry it."""

import csv
from types import SimpleNamespace

import jax.numpy as jnp
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.measurement.jobs import RECORDS, Measurer, ProgressUpdate
from tests.experiments.pools import toy_texts
from tests.messages.binaries import load
from tests.tolerances import assert_close

change = load("kernel_change").module
RANDOM = np.random.default_rng(0)


def test_layers_share_the_trace_of_the_kernel():
    params = {
        "blocks": {"kernel": jnp.asarray(RANDOM.standard_normal((2, 3, 3)))},
        "head": {"kernel": jnp.asarray(RANDOM.standard_normal(3))},
    }

    def f(params, batch):
        hidden = batch["x"]
        for layer in range(2):
            hidden = jnp.tanh(hidden @ params["blocks"]["kernel"][layer])
        return hidden @ params["head"]["kernel"]

    batch = {"x": RANDOM.standard_normal((5, 3))}
    traces = change.layer_traces(f, params, batch)
    assert list(traces) == ["block 0", "block 1", "head"]
    theta = lens.empirical_ntk(f, params, {"x": jnp.asarray(batch["x"])})
    assert_close(sum(traces.values()), float(np.trace(theta)), theta.dtype)
    hidden = batch["x"]
    for layer in range(2):
        hidden = np.tanh(hidden @ np.asarray(params["blocks"]["kernel"][layer]))
    assert_close(traces["head"], np.sum(hidden**2), theta.dtype)  # its gradient is its input
    shares = [float(row["share"]) for row in change.layer_rows(traces)]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_growth_alone_changes_no_direction():
    g = RANDOM.standard_normal((6, 9))
    row = change.change_row(g @ g.T, 3 * g @ g.T, steps=10)
    assert (row["trace_ratio"], row["relative_change"], row["alignment"]) == ("3", "2", "1")
    other = RANDOM.standard_normal((6, 9))
    moved = change.change_row(g @ g.T, other @ other.T, steps=10)
    assert float(moved["alignment"]) < 0.95
    assert_close(float(moved["velocity"]), (1 - float(moved["alignment"])) / 10, rel=1e-4)


def test_a_second_run_reads_what_the_first_measured(tmp_path, monkeypatch):
    module = load(
        "kernel_change",
        candidates="zoo/gpt2-xs",
        task=toy_texts(tmp_path),
        num_examples=6,
        size=8,
        output_dir=str(tmp_path / "out"),
        quiet=True,
    ).module
    done = []

    def kernel(candidate, batch, *, block_size, store):
        store.mkdir(parents=True)
        done.append(f"kernel of {len(batch['labels'])}")
        g = np.random.default_rng(len(done)).standard_normal((len(batch["labels"]), 20))
        return SimpleNamespace(theta=g @ g.T, residual=g[:, 0])

    def fine_tune(measurer, job, *, on_progress):
        done.append(f"fine-tune on {job.size}")
        measurer.measurement(job.name, job.config).candidate.save(job.kept)
        on_progress(ProgressUpdate(0.5, "half way"))
        return {"best_step": 4, "test_loss": 1.0, RECORDS: np.ones((2, 3))}

    monkeypatch.setattr(module, "candidate_ntk", kernel)
    monkeypatch.setattr(Measurer, "measure", fine_tune)
    monkeypatch.setattr(module, "layer_traces", lambda *_: {"embed": 1.0, "block 0": 3.0})
    left = tmp_path / "out" / f"{module._stem('zoo/gpt2-xs', 'before')}.tiles"
    for _ in range(2):
        module.main([])
        assert not list((tmp_path / "out").rglob("*.tiles"))
        left.mkdir()  # as a kill between writing a kernel and removing its tiles does
        assert done == ["kernel of 6", "fine-tune on 8", "kernel of 6"]
    tables = {}
    for name in ("kernel_change", "kernel_states", "kernel_layers"):
        with (tmp_path / "out" / f"toy_{name}.csv").open() as file:
            tables[name] = list(csv.DictReader(file))
    assert [len(rows) for rows in tables.values()] == [1, 2, 4]
    assert tables["kernel_change"][0]["steps"] == "4"
    assert {row["share"] for row in tables["kernel_layers"]} == {"0.25", "0.75"}
