"""Selections whose fine-tunes are a formula, each killed with -9 until it survives.

    python -m tests.experiments.killed_selection ROOT

For every order, ROOT/<order> is one unbroken run and ROOT/<order>-killed one that dies inside every
second fine-tune of its life; ROOT/<order>.json says what was measured, in order, and how often it
died.  A life is a fork of this process, which has imported everything and computed nothing yet.
"""

import json
import os
import signal
import sys
import types
from pathlib import Path

import numpy as np

import lensllm_jax.runs.select_model as selection
from experiments import select_model
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.finetune.fine_tune import FineTuned, FineTuneResult
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.measurement.rows import RowLengths
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.runs.settings import RunSettings
from tests import forked
from tests.finetune import tiny
from tests.kings import KINGS, write_kings

SLOPES = {"a": 0.30, "b": 0.25, "c": 0.20, "d": 0.10}
SPOILT = ("b", 16)  # Algorithm 1 stops here: off the line through the larger sizes
CONFIG = types.SimpleNamespace(module=lambda **_: None, is_encoder_decoder=False)


class Life:
    """What one life is: where it notes its fine-tunes, and whether every second one is its last."""

    log: Path
    deadly = False
    calls = 0


def fake_fine_tune(measurement, size, **_):
    """A loss by formula, noted."""
    name = measurement.candidate.name
    Life.calls += 1
    if Life.deadly and Life.calls % 2 == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    with open(Life.log, "a") as file:
        file.write(json.dumps([name, size]) + "\n")
    off = 1.5 if (name, size) == SPOILT else 1.0
    wiggle = 1 + 1e-3 * (size % 3)
    loss = 8.0 * off * wiggle * size ** -SLOPES[name]
    result = FineTuneResult(loss, loss, 1, 1, 10 * size, False, "")
    return FineTuned(result, None, tiny.evaluation(loss))


def fake_save(measurement, params, folder, **_):
    """Weights that say whose they are."""
    (folder / "model.txt").write_text(measurement.candidate.name)


def fake_kernel(measurement, **_):
    """A kernel of three eigenvalues."""
    outputs = np.array([[3.0], [1.0], [1.0]])
    return types.SimpleNamespace(
        theta=np.diag([4.0, 1.0, 0.1]), outputs=outputs, targets=0 * outputs,
        residual=outputs[:, 0],
        num_examples=3, readout=Readout.LOSS, method=NtkMethod.STRUCTURED,
    )  # fmt: skip


def fake_candidate(name):
    return types.SimpleNamespace(name=name, config=CONFIG, is_encoder_decoder=False)


def fake_pool(names):
    return {
        name: CandidateSummary(name, "toy", 1000 * number, CONFIG, None)
        for number, name in enumerate(names, start=1)
    }


def install():
    """Puts the formula in the place of models."""
    jobs.load_candidate, selection.describe_pool = fake_candidate, fake_pool
    Measurement.fine_tune, Measurement.kernel = fake_fine_tune, fake_kernel
    Measurement.save = fake_save
    Measurement.lengths = RowLengths(source=64, target=0)
    selection.row_lengths = lambda task, summary, **_: Measurement.lengths
    Measurement.zero_shot = lambda measurement, **_: tiny.evaluation(9.0)
    RunSettings.load_task = lambda run, pool: load_task(run.task)
    RunSettings.open_folder = lambda run, settings, task, pool: RunFolder.open(
        run.output_dir, settings, command=run.command
    )


def live(root: Path, folder: str, order: str, log: str, *, deadly: bool) -> int:
    """One life; its exit code, negative if it was killed."""
    arguments = [
        f"--candidates={','.join(SLOPES)}", f"--task={root / KINGS}", "--budget_size=128",
        "--smallest_size=8", "--target_size=512", f"--output_dir={root / folder}",
        "--num_kernel_examples=3", "--keep=0.5", f"--order={order}", "--max_cost=0.3", "--quiet",
        f"--save_winner={root / folder}-model", "--learning_rate=1e-3",
    ]  # fmt: skip

    def before():
        Life.log, Life.deadly = root / log, deadly

    process = forked.start("select_model", select_model.main, arguments, before=before)
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def main() -> None:
    """Every order, whole and killed."""
    root = Path(sys.argv[1])
    write_kings(root, 300)
    install()
    for order in ("downwards", "upwards", "race"):
        codes = [live(root, order, order, f"{order}.log", deadly=False)]
        deaths = 0
        while (
            code := live(root, f"{order}-killed", order, f"{order}-killed.log", deadly=True)
        ) == -signal.SIGKILL:
            deaths += 1
        measured = {
            kind: [json.loads(line) for line in (root / kind).read_text().splitlines()]
            for kind in (f"{order}.log", f"{order}-killed.log")
        }
        outcome = {"codes": [*codes, code], "deaths": deaths, "measured": [*measured.values()]}
        (root / f"{order}.json").write_text(json.dumps(outcome))


if __name__ == "__main__":
    main()
