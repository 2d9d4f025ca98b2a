r"""Noise of the ground truth: how far two seeds of the same fine-tunes lie apart.

    python -m experiments.seed_noise --curves=experiments/results/sotu_losses.csv \
        --again=experiments/results/sotu_seed_1_losses.csv --output_dir=out/noise

--again is the same grid with another --seed: other subsets, in another order.  Of the candidates
and sizes that both tables hold, with d the differences of the losses at one size over the
candidates,

.. math:: \hat\sigma^2 = \frac{1}{2 (n - 1)} \sum_i (d_i - \bar d)^2

is the variance of one measurement that moves ranks; what a subset does to every candidate alike,
the mean of d, moves none.  The 90 % interval of sigma is that of normal d:
:math:`2 (n - 1) \hat\sigma^2 / 2 \sigma^2 \sim \chi^2_{n - 1}`.

--output_dir receives noise.csv: a row per size with both, and with what a second seed of full
tuning would reach as a selector: PearCorr of its losses with those of --curves, and the relative
accuracy of its pick: no selector that reads small sizes can be expected to do better.  Takes a
second.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float
from scipy.stats import chi2

from experiments.common import cli
from experiments.common.curves import digests
from experiments.common.flags import define_curve, define_output_dir
from lensllm_jax import checks
from lensllm_jax.metrics import pearson_correlation, relative_accuracy
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, known
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.public_tables import load_loss_table

CURVES = define_curve("Loss table (CSV) of one seed.")
AGAIN = flags.DEFINE_string("again", None, "The same of another seed.", required=True)
OUTPUT_DIR = define_output_dir()

TAILS = (0.95, 0.05)  # of chi-squared, for the lower and the upper end of a 90 % interval
Losses = Float[np.ndarray, " num_candidates"]


def main(_: Sequence[str]) -> None:
    """Compares the two tables size by size."""
    tables = (load_loss_table(CURVES.value), load_loss_table(AGAIN.value))
    names, sizes = _shared(*tables)
    first, second = (table.select(names) for table in tables)
    rows = [row_of(size, first.column(size), second.column(size)) for size in sizes]
    folder = RunFolder.open(OUTPUT_DIR.value, {
        "files": digests([CURVES.value, AGAIN.value]),
        "seed": None,  # nothing is random
    })  # fmt: skip
    folder.write_rows("noise.csv", [known(row) for row in rows])
    _show(rows)
    print(f"written to {folder.path}")


def _shared(first: LossTable, second: LossTable) -> tuple[list[str], list[int]]:
    """Candidates, in the first's order, and sizes that both tables hold."""
    names = [name for name in first.names if name in second.names]
    sizes = [int(size) for size in first.sizes if size in second.sizes]
    if len(names) < 3 or not sizes:
        raise checks.UserError(
            "`again` must share three or more candidates and a size with `curves`, got "
            f"{len(names)} and {len(sizes)}"
        )
    return names, sizes


def row_of(size: int, a: Losses, b: Losses) -> dict[str, Any]:
    """A row of noise.csv from the losses of two seeds at one size, nats per byte."""
    difference = b - a
    n = len(difference)
    squares = float(np.sum((difference - difference.mean()) ** 2)) / 2
    low, high = (math.sqrt(squares / chi2.ppf(tail, n - 1)) for tail in TAILS)
    return {
        "size": size,
        "num_candidates": n,
        "mean_difference": float(difference.mean()),
        "sd": math.sqrt(squares / (n - 1)),
        "sd_low": low,
        "sd_high": high,
        "pearson": pearson_correlation(b, a),
        "relative_accuracy": relative_accuracy(a[np.argmin(b)], a),
    }


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ["size", "mean difference", "sd", "90 % low", "90 % high", "PearCorr", "RelAcc"]
    shown = terminal.table("Two seeds", right=columns)
    for row in rows:
        shown.add_row(
            str(row["size"]),
            *(f"{row[name]:.4f}" for name in ("mean_difference", "sd", "sd_low", "sd_high")),
            *(f"{row[name]:.1f}" for name in ("pearson", "relative_accuracy")),
        )
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
