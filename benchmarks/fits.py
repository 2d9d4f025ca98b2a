"""Speed of the rectified fits compared with the original algorithm, in one run.

Fits every model of every table at seven budgets (1/8 to 1/512 of the full data, zero-shot
included) in one compiled call, and the same curves by the scipy reimplementation of Lin et al.
2024 (tests/oracles.py), one after the other.

    python -m benchmarks.fits --curves=lin2024/flan,lin2024/gigaword

About four minutes on two cores, nearly all of it scipy's; `--num_oracle_fits=40` samples and
takes half a minute.  Expected: 300 times the fits per second, and a lower objective on every curve.
"""

import time
from collections.abc import Sequence

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.flags import define_curves
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.selection.public_tables import load_loss_table
from tests import oracles

CURVES = define_curves("Loss tables (CSV) with the same sizes.")
NUM_ORACLE_FITS = flags.DEFINE_integer(
    "num_oracle_fits", 0, "How many curves the scipy algorithm fits; 0 means all."
)
FRACTIONS = (8, 16, 32, 64, 128, 256, 512)
ZERO_SIZE = 1e-10  # their convention, so that objectives can be compared
NUM_REPEATS = 5


def curves_at_budgets(paths: Sequence[str]):
    """Sizes, losses and weights of all models x tables x budgets."""
    tables = [load_loss_table(path) for path in paths]
    sizes = tables[0].sizes.astype(np.float64)
    losses = np.concatenate([table.losses for table in tables for _ in FRACTIONS])
    weights = np.concatenate(
        [
            np.tile(sizes <= sizes[-1] / fraction, (len(table.names), 1))
            for table in tables
            for fraction in FRACTIONS
        ]
    ).astype(np.float64)
    return sizes, losses, weights


def main(_) -> None:
    sizes, losses, weights = curves_at_budgets(CURVES.value)
    their_sizes = np.maximum(sizes, ZERO_SIZE)
    seconds = []
    for _ in range(1 + NUM_REPEATS):
        begin = time.perf_counter()
        fits = fit_laws("rectified", their_sizes, losses, weights=weights)
        seconds.append(time.perf_counter() - begin)
    count = NUM_ORACLE_FITS.value or len(losses)
    chosen = np.unique(np.linspace(0, len(losses) - 1, count).astype(int))
    begin = time.perf_counter()
    theirs = []
    for i in chosen:
        used = weights[i] > 0
        theirs.append(oracles.rectified_fit_by_surrogate(sizes[used], losses[i, used])[1])
    oracle_seconds = (time.perf_counter() - begin) / len(chosen)
    ours = fits.objective[chosen] / weights[chosen].sum(1)
    steady = float(np.median(seconds[1:])) / len(losses)
    print(f"fits in one call              {len(losses)}")
    print(f"ours, with compilation        {seconds[0]:.2f} s")
    print(f"ours, steady state            {steady * len(losses):.3f} s, {1 / steady:.0f} fits/s")
    print(f"scipy, {len(chosen)} fits measured      {oracle_seconds:.3f} s per fit")
    print(f"scipy, all                    {oracle_seconds * len(losses):.0f} s")
    print(f"speed-up, steady state        {oracle_seconds / steady:.0f} x")
    print(f"speed-up, with compilation    {oracle_seconds * len(losses) / seconds[0]:.0f} x")
    print(f"objective above scipy's       {int(np.sum(ours > np.array(theirs) + 1e-9))} curves")
    print(f"largest excess                {np.max(ours - np.array(theirs)):.1e}")
    print(f"not converged                 {sum(s.name != 'CONVERGED' for s in fits.statuses)}")


if __name__ == "__main__":
    cli.run(main)
