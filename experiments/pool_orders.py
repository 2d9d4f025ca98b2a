r"""What a ranking says of a small pool: orders, crossings, predictions, full tuning against LoRA.

    python -m experiments.pool_orders --curves=experiments/results/pydoc_losses.csv \
        --output_dir=out/orders

Reads one task's tables: --curves of full tuning, --lora_curves, if any, of LoRA, tables of other
candidates being joined at the sizes that they share.  Join only what read the same text: grids
whose run.json have one task_sha256.  --candidates takes some of them alone.
Everything is of the sizes at which all candidates have a loss; --output_dir receives

* orders.csv: each candidate's loss and place before fine-tuning, at the smallest size and at the
  largest, by kind of tuning;
* crossings.csv: a row per pair of candidates and sizes between which they change places: a tie in
  between is no place;
* predictions.csv: what each of --selectors predicted from a quarter of the largest size: loss,
  place (neither where it has no usable fit), and, by a selector that says so, the probability of
  being the best;
* race.csv: what a race up to the largest size makes of the pool: how far it runs each candidate
  until it believes in one at .95 or has spent what fine-tuning all of them on that size costs, the
  share of it that each took, who is dropped, P(best) and why it stops; searches of rates left out;
* agreement.csv, with --lora_curves: at each size, the share of pairs that both kinds of tuning put
  in the same order, and the best of either.

A handful of candidates is an example and no statistic: nothing is tested here.  Seconds.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.curves import digests, selectors_of
from experiments.common.flags import (
    define_curves,
    define_higher_is_better,
    define_output_dir,
    define_selectors,
)
from lensllm_jax import checks
from lensllm_jax.runs import terminal
from lensllm_jax.runs.run_folder import RunFolder, known
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.public_tables import load_loss_table
from lensllm_jax.selection.race import RaceRule, replay
from lensllm_jax.selection.rank import rank

CURVES = define_curves("Loss tables (CSV) of full tuning, of one task.")
LORA_CURVES = flags.DEFINE_list("lora_curves", [], "Loss tables of LoRA, likewise.")
CANDIDATES = flags.DEFINE_list("candidates", [], "Those of the tables to compare; all.")
HIGHER_IS_BETTER = define_higher_is_better()
SELECTORS = define_selectors("lensllm", "rectified", "pooled", "posterior")
OUTPUT_DIR = define_output_dir()

QUARTER = 4


def main(_: Sequence[str]) -> None:
    """Compares and writes the tables."""
    selectors = selectors_of(SELECTORS.value)
    paths = {"full": CURVES.value, "lora": LORA_CURVES.value}
    higher = HIGHER_IS_BETTER.value
    read = {kind: [load_loss_table(path, higher_is_better=higher) for path in of_kind]
            for kind, of_kind in paths.items() if of_kind}  # fmt: skip
    tables = {kind: joined(some, CANDIDATES.value) for kind, some in read.items()}
    settings = {"curves": {kind: digests(of_kind) for kind, of_kind in paths.items()},
                "candidates": CANDIDATES.value, "selectors": selectors,
                "higher_is_better": higher}  # fmt: skip
    folder = RunFolder.open(OUTPUT_DIR.value, settings)
    orders = [row for kind, table in tables.items() for row in order_rows(kind, table)]
    predictions = [row for kind, table in tables.items()
                   for row in prediction_rows(kind, table, selectors)]  # fmt: skip
    folder.write_rows("orders.csv", orders)
    folder.write_rows("crossings.csv", [
        row for kind, table in tables.items() for row in crossing_rows(kind, table)
    ])  # fmt: skip
    folder.write_rows("predictions.csv", [known(row) for row in predictions])
    folder.write_rows("race.csv", [
        row for kind, table in tables.items() for row in race_rows(kind, table)
    ])  # fmt: skip
    if len(tables) > 1:
        folder.write_rows("agreement.csv", list(agreement_rows(*tables.values())))
    _show(orders)
    print(f"written to {folder.path}")


def joined(tables: Sequence[LossTable], names: Sequence[str] = ()) -> LossTable:
    """One table of all candidates, at the sizes where all have a loss.

    Raises:
        UserError: if that leaves fewer than three sizes, the first of them 0.
    """
    shared = sorted(set.intersection(*({*map(int, table.sizes)} for table in tables)))
    if not shared:
        raise checks.UserError("`curves` must share sizes, got none that all tables have")
    whole = LossTable(
        tuple(itertools.chain.from_iterable(table.names for table in tables)),
        np.array(shared),
        np.concatenate([t.losses[:, np.isin(t.sizes, shared)] for t in tables]),
        np.concatenate([t.num_params for t in tables]),
        tuple(itertools.chain.from_iterable(table.family for table in tables)),
        tables[0].task,
    )
    chosen = whole.select(names) if names else whole
    there = ~np.isnan(chosen.losses).any(0)
    sizes = chosen.sizes[there]
    if len(sizes) < 3 or sizes[0] != 0:
        raise checks.UserError(
            "`curves` must have losses of all candidates at size 0 and at two others, got "
            f"{sizes.tolist()}"
        )
    return LossTable(
        chosen.names, sizes, chosen.losses[:, there], chosen.num_params, chosen.family, chosen.task
    )


def order_rows(kind: str, table: LossTable) -> Iterator[dict[str, Any]]:
    """Loss and place of every candidate at three sizes."""
    for size in (0, int(table.sizes[1]), int(table.sizes[-1])):
        losses = table.by_name(size)
        for place, name in enumerate(sorted(losses, key=losses.__getitem__), start=1):
            row = {"tuning": kind, "size": size, "place": place, "candidate": name}
            yield {**row, "loss": f"{losses[name]:.6g}"}


def crossing_rows(kind: str, table: LossTable) -> Iterator[dict[str, Any]]:
    """Pairs that change places, with the one that is better afterwards first."""
    for i, j in itertools.combinations(range(len(table.names)), 2):
        gaps = table.losses[i] - table.losses[j]
        apart = np.flatnonzero(np.isfinite(gaps) & (gaps != 0.0))  # a tie is on neither side
        for before, after in itertools.pairwise(apart.tolist()):
            if gaps[before] * gaps[after] > 0:
                continue
            first, second = (i, j) if gaps[after] < 0 else (j, i)
            yield {
                "tuning": kind,
                "overtakes": table.names[first],
                "is_overtaken": table.names[second],
                "above_size": int(table.sizes[before]),
                "by_size": int(table.sizes[after]),
            }


def prediction_rows(
    kind: str, table: LossTable, selectors: Sequence[str]
) -> Iterator[dict[str, Any]]:
    """What a quarter of the largest size predicted, next to what was measured."""
    target = int(table.sizes[-1])
    if target % QUARTER or target // QUARTER not in table.sizes:
        raise checks.UserError(
            f"`curves` must have losses at {target / QUARTER:g}, a quarter of the largest size, "
            f"got {table.sizes.tolist()}"
        )
    measured = table.by_name(target)
    places = {
        name: place for place, name in enumerate(sorted(measured, key=measured.__getitem__), 1)
    }
    for selector in selectors:
        ranking = rank(table, budget_size=target // QUARTER, target_size=target, selector=selector)
        for place, name in enumerate(ranking.order, start=1):
            best = ranking.probability_best.get(name, np.nan)
            yield {
                "tuning": kind,
                "selector": selector,
                "candidate": name,
                "predicted": ranking.predicted.get(name, np.nan),
                "measured": measured[name],
                "predicted_place": np.nan if np.isnan(ranking.scores[name]) else place,
                "place": places[name],
                "probability_best": best,
            }


def race_rows(kind: str, table: LossTable) -> Iterator[dict[str, Any]]:
    """Every candidate at the end of a race that may spend all, the leader first."""
    sizes = tuple(int(size) for size in table.sizes if size > 0)
    *_, race = replay(table, RaceRule(sizes[-1], sizes, max_cost=1.0))
    assert race.stop is not None
    chances = dict(zip(race.names, race.odds.probability_best, strict=True))
    for name in sorted(race.names, key=lambda name: (name != race.leader, -chances[name])):
        yield {
            "tuning": kind,
            "candidate": name,
            "ran_to": race.largest[name],
            "cost": race.spent_on(name),
            "probability_best": chances[name],
            "dropped": name in race.dropped,
            "stop": race.stop.text if name == race.leader else "",
        }


def agreement_rows(full: LossTable, lora: LossTable) -> Iterator[dict[str, Any]]:
    """How far both kinds of tuning agree, on the candidates and sizes that both have."""
    names = [name for name in full.names if name in lora.names]
    if len(names) < 2:
        raise checks.UserError(
            f"`lora_curves` must share two or more candidates with `curves`, got {names}"
        )
    tables = [table.select(names) for table in (full, lora)]
    for size in sorted({*map(int, full.sizes)} & {*map(int, lora.sizes)}):
        losses = [table.column(size) for table in tables]
        signs = [np.sign(x[:, None] - x[None])[np.triu_indices(len(names), 1)] for x in losses]
        yield {
            "size": size,
            "same_order": f"{np.mean(signs[0] == signs[1]):.4g}",
            **{f"best_{kind}": names[int(np.argmin(x))]
               for kind, x in zip(("full", "lora"), losses, strict=True)},
        }  # fmt: skip


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    """The orders, one line for each kind of tuning and size."""
    shown = terminal.table("Best first", left=["tuning", "examples", "order"], right=[])
    for (kind, size), group in itertools.groupby(rows, lambda row: (row["tuning"], row["size"])):
        shown.add_row(kind, str(size), ", ".join(row["candidate"] for row in group))
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
