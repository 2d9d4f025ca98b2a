"""Pages of every kind from a small pool: names that need escaping, a size that is not measured."""

import numpy as np

from lensllm_jax.data.task import Example, build_task
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.report.curves import curves_report
from lensllm_jax.report.html import to_html
from lensllm_jax.report.kernel import kernel_report
from lensllm_jax.report.selection import selection_report
from lensllm_jax.selection.flops import FlopsLedger
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selection import Selection

NAMES = ("a<b>&c", "zoo/middle", "last")
RUN = {"settings": {"seed": 0, "tau": 5.0}, "command": "python -m experiments.x --a='<1>'"}


def loss_table():
    sizes = np.array([0, 200, 400, 800, 1600])
    losses = np.stack([8.0 * (sizes + 60.0) ** -b for b in (0.1, 0.2, 0.15)])
    losses[2, 1] = np.nan  # Algorithm 1 stopped before it
    return LossTable(NAMES, sizes, losses, np.array([1e6, 2e6, 3e6]), ("",) * 3, task="toy")


def spectrum():
    return NtkSpectrum(np.array([4.0, 1.0, 0.1]), np.array([9.0, 1.0, 1.0]), learning_rate=0.01)


def selection():
    table, ledger = loss_table(), FlopsLedger()
    for name in NAMES:
        ledger = ledger.kernel(name, flops=1e12)
        ledger = ledger.train(name, num_params=1e6, num_examples=1600, num_tokens=1e5)
    return Selection(
        table=table,
        target_size=6400,
        halving=Halving(),
        spectra={name: spectrum() for name in NAMES},
        ledger=ledger,
    )


def report(chosen=None):
    """The report of a selection, or of the one above."""
    splits = ("train", "validation", "test")
    task = build_task("toy", "made <here>", **{s: [Example("", f"text {s}")] for s in splits})
    return selection_report(chosen or selection(), task, RUN)


def pages():
    """File name -> page, one of each kind."""
    table = loss_table()
    rankings = {
        name: rank(table, budget_size=1600, target_size=6400, selector=name)
        for name in ("ats", "model_size")
    }
    rows = [{"selector": name, "pearson": 90.0, "flops": 1e15} for name in rankings]
    return {
        "selection": to_html(report()),
        "curves": to_html(curves_report([table], {"toy": {4: rankings}}, rows, RUN)),
        "kernel": to_html(kernel_report("a<b>", np.eye(3), spectrum(), RUN)),
    }
