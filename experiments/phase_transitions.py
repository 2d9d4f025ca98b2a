r"""Figure 2: the pre-power and the power phase on measured curves, with the transition's interval.

    python -m experiments.phase_transitions --curves=experiments/results/pydoc_losses.csv \
        --output_dir=out/phases
    python -m experiments.phase_transitions \
        --curves=lin2024/flan,lin2024/gigaword --output_dir=out/phases2

Two answers per candidate.  *Segments*: two straight pieces of log L against log D, their meeting
point, its 90 % interval, and the F test of two pieces against one line.  *Law*: the rectified law
fitted to all sizes, D* = D_l^(1/beta), where its slope is half of beta, with the 90 % range of 200
bootstrap refits.  A curve may also flatten, or show one piece only; the table says which.

--output_dir receives phases.csv, which `make figures` draws.  Seconds per table on 2 cores.
Expected: pydoc, 9 of 13 candidates TRANSITION, at 580 to 1,340 examples, with intervals about a
factor 4 wide; FLAN, most candidates TRANSITION, near 10,000 to 80,000.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.curves import digests
from experiments.common.flags import define_curves, define_output_dir, define_quiet
from lensllm_jax import checks
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.phases import (
    MIN_SIZES,
    LawTransition,
    SegmentedTransition,
    law_transition,
    segmented_transition,
)
from lensllm_jax.scaling.result import LawFit
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.public_tables import load_loss_table

CURVES = define_curves()
OUTPUT_DIR = define_output_dir()
QUIET = define_quiet()
NUM_RESAMPLES = flags.DEFINE_integer("num_resamples", 200, "Bootstrap refits of the law.")

LEVEL = 0.9


def main(_: Sequence[str]) -> None:
    """Looks for the transition of every curve and writes the table."""
    checks.positive("num_resamples", NUM_RESAMPLES.value)
    tables = [load_loss_table(path) for path in CURVES.value]
    for table in tables:
        _check(table)
    folder = RunFolder.open(OUTPUT_DIR.value, {
        "curves": digests(CURVES.value),
        "num_resamples": NUM_RESAMPLES.value,
        "seed": 0,
    })  # fmt: skip
    total = float(sum(len(table.names) for table in tables))
    with Progress(total=total, quiet=QUIET.value) as progress:
        rows = [row for table in tables for row in _rows_of(table, progress)]
    folder.write_rows("phases.csv", rows)
    for table in tables:
        counts = Counter(row["phase"] for row in rows if row["task"] == table.task)
        print(f"{table.task}: {', '.join(f'{n} {phase}' for phase, n in counts.most_common())}")
    print(f"written to {folder.path}")


def _check(table: LossTable) -> None:
    measured = (~np.isnan(table.losses) & (table.sizes > 0)[None]).sum(1)
    if measured.min() < MIN_SIZES:
        raise checks.UserError(
            f"every candidate of {table.task} must have {MIN_SIZES} sizes above 0, got "
            f"{measured.min()} of {table.names[int(measured.argmin())]!r}"
        )


def _rows_of(table: LossTable, progress: Progress) -> Iterator[dict[str, Any]]:
    sizes = table.sizes.astype(np.float64)
    weights = (~np.isnan(table.losses)).astype(np.float64)
    fits = fit_laws(Law.RECTIFIED, sizes, table.losses, weights=weights)
    for i, name in enumerate(table.names):
        segments = segmented_transition(sizes, table.losses[i], level=LEVEL)
        law = law_transition(fits[i], num_resamples=NUM_RESAMPLES.value)
        yield _row(table.task, name, segments, law, fits[i])
        progress.finish(1.0, f"{table.task} {name}: {segments.phase.name}")


def _row(
    task: str, name: str, segments: SegmentedTransition, law: LawTransition, fit: LawFit
) -> dict[str, Any]:
    numbers = {
        "size": segments.size,
        "low": segments.low,
        "high": segments.high,
        "slope_before": segments.slope_before,
        "slope_after": segments.slope_after,
        "p_value": segments.p_value,
        "law_size": law.size,
        "law_low": law.low,
        "law_high": law.high,
        **{parameter: fit.params[parameter] for parameter in ("B", "D_l", "beta", "E")},
    }
    texts = {key: f"{value:.6g}" for key, value in numbers.items()}
    return {"task": task, "candidate": name, "phase": segments.phase.name, **texts}


if __name__ == "__main__":
    cli.run(main)
