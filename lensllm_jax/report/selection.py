"""The report of a selection: which candidate, how sure, at what cost, and how it was made."""

from lensllm_jax.data.task import Task
from lensllm_jax.report import _parts
from lensllm_jax.report.sections import (
    Block,
    Report,
    Section,
    Table,
    Text,
    known_columns,
    literal,
)
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.race import Race
from lensllm_jax.selection.ranking import Ranking
from lensllm_jax.selection.selection import Selection

_LEGEND = (
    "Losses are nats per byte of target text (UTF-8), its end token left out; one nat is 1.443 "
    "bits, and `bits_per_byte` is `predicted_loss` in bits. `predicted_loss` is L(D) = B / "
    "(F(Θ, t) + D^β) + E with F of the measured kernel and t free, `low_90` to `high_90` its "
    "interval relative to the other candidates, `p_beats_next` the probability of a lower "
    "loss at the target than the candidate below; `rectified_loss` is the control; "
    "`budget_loss` and `zero_shot_loss` are measured. `pflops` counts 6 N per training "
    "token (4 N for weights that LoRA freezes), and the kernel."
)
_RACE_LEGEND = (
    "Losses are nats per byte of target text (UTF-8), its end token left out; one nat is 1.443 "
    "bits. `predicted_loss` is the posterior's, `low_90` to `high_90` its interval relative to the "
    "other candidates; `p_best` is the probability of the lowest loss at the target, "
    "`expected_regret` by which share a loss is expected to exceed the lowest, were this candidate "
    "picked; `largest_loss` is measured at `largest_size`. `pflops` counts 6 N per training token "
    "(4 N for weights that LoRA freezes), and the kernel."
)
_KERNEL_LEGEND = (
    "`lensllm_loss` is Eq 10 with F of the measured kernel and t free, `rectified_loss` its "
    "control, for the candidates whose kernels were computed."
)
_STEPS_NOTE = (
    "All candidates ran the first sizes; each row is a fine-tune after them, with the posterior's "
    "leader once its loss was known."
)
_COST_NOTE = (
    "Orders with the kernels of the candidates that they rank; full tuning: every candidate once "
    "on the target size. Measured: the tokens that were trained on. Counted: the order replayed "
    "on the same losses, at the same tokens per example; at least and at most differ where it "
    "depends on losses that were not measured."
)
_RACE_DROPPED_NOTE = (
    "Dropped after `dropped_at` examples: even with a scale half as wide again, the posterior gave "
    "each no more than `p_best_at_most` of being the best."
)
_DROPPED_NOTE = (
    "Dropped after `dropped_at` examples: a straight line of log loss on log size through the last "
    "losses ends above those of the candidates that continued."
)

_FIRST = ("rank", "candidate", "p_best", "expected_regret", "predicted_loss")  # of the columns


def selection_report(selection: Selection, task: Task, run: _parts.Run) -> Report:
    """The report of a pool measured within a budget.

    Args:
        selection: what was measured.
        task: what was fine-tuned on.
        run: content of run.json.
    """
    ranking = selection.ranking
    spectra = {name: spectrum.eigenvalues for name, spectrum in selection.spectra.items()}
    return Report(
        f"Which candidate for {task.name}?",
        card=str(selection.answer),
        sections=[
            Section("Ranking", _ranking(selection)),
            Section("Measured losses", _losses(selection)),
            *_race(selection),
            *_dropped(selection),
            Section("Cost", _orders(selection), details=[_ledger(ranking)]),
            *([Section("Fits", [_fits(selection, selection.fits)])] if selection.fits else []),
            *([Section("Kernels", [_parts.spectra(spectra)])] if spectra else []),
            Section("How this was made", _made(task, run), details=[_parts.settings(run)]),
        ],
    )


def _ranking(selection: Selection) -> list[Block]:
    ranking = selection.verdict
    chances = {row["candidate"]: row["p_first_beats_it"] for row in ranking.rows()}
    rows = [
        {**dict.fromkeys(_FIRST), **row, "p_first_beats_it": chances.get(row["candidate"])}
        for row in selection.rows()
    ]
    caption = f"{ranking.selector} at {ranking.target_size:,} examples; losses: nats per byte"
    return [
        Table(known_columns(rows), caption, page_only={"p_first_beats_it"}),
        # a race's next fine-tune stands in the answer
        *(_parts.certainty(ranking) if selection.race is None else ()),
        *map(Text, _legend(selection)),
        _parts.curves(selection.table, selection.laws, ranking, law=selection.ranking.selector),
    ]


def _legend(selection: Selection) -> list[str]:
    if selection.race is None:
        return [_LEGEND]
    return [_RACE_LEGEND, _KERNEL_LEGEND] if selection.spectra else [_RACE_LEGEND]


def _losses(selection: Selection) -> list[Block]:
    note = f"A dash is a size that the order `{selection.order.value}` did not measure."
    return [_parts.losses_table(selection.table), Text(note)]


def _race(selection: Selection) -> list[Section]:
    if selection.race is None:
        return []
    blocks: list[Block] = [_end_of(selection.race)]
    if rows := selection.step_rows():
        caption = "fine-tunes after the first sizes; losses in nats per byte"
        blocks += [Table(rows, caption), Text(_STEPS_NOTE)]
    return [Section("How the race went", blocks)]


def _dropped(selection: Selection) -> list[Section]:
    rows = selection.drop_rows()
    if not rows:
        return []
    caption = "losses in nats per byte; sizes in training examples"
    note = _DROPPED_NOTE if selection.race is None else _RACE_DROPPED_NOTE
    return [Section("Dropped", [Table(rows, caption), Text(note)])]


def _end_of(race: Race) -> Text:
    assert race.stop is not None
    spent = f"fine-tunes cost {race.cost:.2%} of tuning all"
    why = literal(race.stop.text)
    return Text(f"The race stopped by its {race.stop.reason} rule: {why}; {spent}.")


def _orders(selection: Selection) -> list[Block]:
    if not selection.costs:
        return [Text(f"{selection.ranking.flops / 1e15:.4g} PFLOPs.")]
    caption = f"orders of measuring, of which {selection.order.value} was run"
    return [Table(selection.cost_rows(), caption), Text(_COST_NOTE)]


def _ledger(ranking: Ranking) -> Table:
    rows = [
        {
            "candidate": entry.candidate,
            "kind": entry.kind,
            "examples": entry.num_examples if entry.kind == "train" else None,
            "PFLOPs": entry.flops / 1e15,
        }
        for entry in ranking.ledger.entries
    ]
    return Table(rows, f"{len(rows)} entries, {ranking.flops / 1e15:.4g} PFLOPs in all")


def _fits(selection: Selection, law: LawFits) -> Table:
    fits = {name: law[i] for i, name in enumerate(selection.ranked.names)}
    rows = [
        {
            "candidate": name,
            **fit.params,
            "log-RMSE": fit.log_rmse,
            "what the fit says": fit.message,
        }
        for name, fit in fits.items()
    ]
    first = law[0]
    units = ", ".join(f"{name}: {unit}" for name, unit in first.units.items())
    caption = f"L(D) = B / (F(Θ, t) + D^β) + E; {units}"
    return Table(rows, caption, forms=dict.fromkeys(first.params, ".4g"))


def _made(task: Task, run: _parts.Run) -> list[Block]:
    splits = f"{len(task.train)} training, {len(task.validation)} validation, {len(task.test)} test"
    origin = (
        f"{splits} examples (sha256 {task.fingerprint[:16]}). "
        + "".join(f"{line[0].upper()}{line[1:]}. " for line in map(literal, task.notes()))
        + "Settings and versions: `run.json`."
    )
    return [_parts.command(run), Text(literal(task.description)), Text(origin)]
