r"""Ranks a pool of pretrained language models for one task at a part of the cost of full tuning.

    python -m experiments.select_model --candidates=zoo --task=pydoc \
        --target_size=6400 --output_dir=out/pydoc

The answer is one sentence: which candidate to fine-tune, its probability of being the best at
--target_size, how much is lost if it is not, and what the answer cost.  What is measured depends
on the order.

* --order=race, the default: all candidates are fine-tuned on the first sizes; each further
  fine-tune is the one that lowers the expected regret most for its cost, by the posterior of all
  losses, which drops candidates that can hardly win.  It stops at --confidence, at --max_cost (a
  share of fine-tuning all on the target size) or --max_hours, or when no fine-tune is worth its
  cost (--worth).  The exact neural tangent kernel (Eq 8) of those that reached the last two sizes
  (--kernels) gives Eq 10 next to the posterior.
* --order=downwards, Algorithm 1 (--paper: with Eq 10 to decide): fine-tunes on the largest subset
  within the budget, on half of it, and so on until the loss leaves the power phase.
* --order=upwards, successive halving: from --smallest_size on, the pool together; once --gamma
  losses are known, only the --keep best by a straight line to the target reach the next size.
  Dropped candidates are never measured again, need no kernel, and stand last in the ranking.
* --order=all: every size of every candidate.

In the other orders every kernel of a ranked candidate is computed, and the law
L(D) = B / (F(Theta, t) + D^beta) + E (Eq 10) through the losses that Algorithm 1 accepts, at
--target_size, decides.  The rectified law, fitted by the same optimizer, is the
control.  The cost of every order is compared with full tuning: measured for the order that was run,
counted from the same losses for the others.

--output_dir receives answer.json, ranking.csv, losses.csv (the public table format), orders.csv
(FLOPs), race.csv (each fine-tune of a race and its reason), kernels/<name>/ntk.npy with ntk.json,
report.html, report.md, loss_curves.png and kernel_spectra.png; run.json
holds settings, versions and seed; cells/ what is finished.  The same command resumes a killed
run and ends with the same files; only cells/ holds durations.
--save_winner=FOLDER receives the pick's weights after its largest fine-tune, at the best step.

Seven bundled candidates, --paper with a budget of 800: 10 minutes on 2 cores with other work.
"""

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from absl import flags

from experiments.common import cli
from experiments.common.flags import (
    define_confidence,
    define_executor,
    define_gamma,
    define_keep,
    define_save_adapter,
    define_save_winner,
    define_tau,
)
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax.language_modelling import LOSS_UNIT
from lensllm_jax.report.markdown import format_cell
from lensllm_jax.report.sections import known_columns
from lensllm_jax.runs import terminal
from lensllm_jax.runs.executors import KINDS
from lensllm_jax.runs.progress import remaining
from lensllm_jax.runs.select_model import KERNELS, select_model
from lensllm_jax.selection.orders import Order
from lensllm_jax.selection.selection import Selection

FLAGS = measurement_flags()
BUDGET_SIZE = flags.DEFINE_integer(
    "budget_size",
    None,
    "Examples of the largest subset to fine-tune on. Default: 1600, of a race --target_size / 2.",
)
TARGET_SIZE = flags.DEFINE_integer(
    "target_size", 6400, "Examples of the full fine-tune: the size to rank at."
)
SMALLEST_SIZE = flags.DEFINE_integer(
    "smallest_size",
    None,
    "Examples of the smallest subset. Default: 200, or less in a race of a small task.",
)
GAMMA = define_gamma()
TAU = define_tau()
ORDER = flags.DEFINE_enum(
    "order", Order.RACE.value, [order.value for order in Order],
    "What is fine-tuned: a race; sizes from the budget down (Algorithm 1), from the smallest up "
    "(successive halving), or all.",
)  # fmt: skip
PAPER = flags.DEFINE_bool(
    "paper", False, "The paper's procedure: --order=downwards, and Eq 10 decides."
)
CONFIDENCE = define_confidence()
MAX_COST = flags.DEFINE_float(
    "max_cost", None,
    "A race stops at this share of the cost of fine-tuning all candidates on --target_size; "
    "searches of rates count. Default: 0.1, or three times what these take if that is more.",
)  # fmt: skip
MAX_HOURS = flags.DEFINE_float(
    "max_hours", math.inf, "A race stops after so many hours of fine-tuning."
)
WORTH = flags.DEFINE_float(
    "worth",
    0.0,
    "In a race: share of the loss whose removal is worth the cost of fine-tuning all candidates.",
)
WITH_KERNELS = flags.DEFINE_enum(
    "kernels", "survivors", KERNELS, "Candidates whose kernels are computed after a race."
)
ALL_TEST_EXAMPLES = flags.DEFINE_bool(
    "all_test_examples", False,
    "In a race: evaluate on all test examples, also where the first 128, 256, ... put a loss far "
    "above the best.",
)  # fmt: skip
KEEP = define_keep()
EXECUTOR = define_executor(KINDS)
SAVE_WINNER = define_save_winner()
SAVE_ADAPTER = define_save_adapter()
# columns of ranking.csv on the terminal, as many as 80 characters hold
SHOWN = (
    "rank", "candidate", "predicted_loss", "low_90", "high_90", "p_beats_next", "rectified_loss",
    "budget_loss", "dropped_at",
)  # fmt: skip
SHOWN_OF_RACE = (
    "rank", "candidate", "p_best", "predicted_loss", "low_90", "high_90", "lensllm_loss",
    "largest_size", "dropped_at",
)  # fmt: skip


def main(argv: Sequence[str]) -> None:
    """Measures, ranks and reports."""
    del argv
    start, given = time.monotonic(), FLAGS.values()
    result = select_model(
        **given, target_size=TARGET_SIZE.value, budget_size=BUDGET_SIZE.value,
        smallest_size=SMALLEST_SIZE.value, order=ORDER.value, paper=PAPER.value,
        gamma=GAMMA.value, tau=TAU.value, keep=KEEP.value, confidence=CONFIDENCE.value,
        max_cost=MAX_COST.value, max_hours=MAX_HOURS.value, worth=WORTH.value,
        kernels=WITH_KERNELS.value, all_test_examples=ALL_TEST_EXAMPLES.value,
        save_winner=SAVE_WINNER.value, save_adapter=SAVE_ADAPTER.value,
        **EXECUTOR.values(),
    )  # fmt: skip
    show(result.selection)
    if not given["quiet"]:
        _show_costs(result.selection)
        print(f"\n{result.folder}: done in {remaining(time.monotonic() - start)}")


def show(selection: Selection) -> None:
    """The ranking on the terminal."""
    title = (
        f"{selection.table.task}: predicted test loss at {selection.target_size} examples "
        f"({LOSS_UNIT})"
    )
    shown = SHOWN if selection.race is None else SHOWN_OF_RACE
    rows = [{column: row[column] for column in shown if column in row} for row in selection.rows()]
    _print(title, known_columns(rows), texts=("candidate",))
    if selection.race is None and selection.ranking.advice is not None:
        terminal.show(str(selection.ranking.advice))
    terminal.show_box(str(selection.answer))


def _show_costs(selection: Selection) -> None:
    """What every order costs, on the terminal."""
    title = f"order {selection.order.value}: what it cost, and what the others would have"
    _print(title, selection.cost_rows(), texts=("order", "known"))


def _print(title: str, rows: Sequence[Mapping[str, Any]], texts: Sequence[str]) -> None:
    table = terminal.table(title)
    for column in rows[0]:
        justify: Literal["left", "right"] = "left" if column in texts else "right"
        table.add_column(column.replace("_", " "), justify=justify)
    for row in rows:
        table.add_row(*map(format_cell, row.values()))
    terminal.show(table)


if __name__ == "__main__":
    cli.run(main)
