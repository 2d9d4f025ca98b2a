r"""Theorem 2 and its lemmas, measured: candidates fine-tuned on doubling subsets.

    python -m experiments.theory_bound --candidate=zoo/gpt2-xs --task=pydoc \
        --sizes=100,200,400,800,1600,3200 --output_dir=out/theory
    python -m experiments.theory_bound --candidates=zoo --sizes=100,200,400,800 --output_dir=out/zoo

For each size n: how far each weight block moved, h_i of the first --num_examples training
examples block by block (Lanczos, with its error estimate), the forms that others compute instead,
the Hessian's trace with an interval, the gradient's variance, and every term of the bound at
--epsilon and --delta, with C the largest loss of any example seen.  Then, over n: the decay of
each with its interval beside what the lemmas say, Corollary 1's constants, whether beta_2 < 1/2
holds, and the transition of the loss curve (of curves alone: phase_transitions).  The remainder's
constant K is not known; with --remainder_constant one is assumed, and the bound has a total and n*.

--output_dir receives theory.csv (a row a size), blocks.csv (a row a size and block), theory.json
(fits), bound.png, decays.png.  Of several candidates each has these in a folder of its own, and
decays.csv has a row for each and what decays.  The same command goes on where a killed run was cut
off.  A bundled candidate with six sizes: about 6 minutes on 2 cores.
"""

import dataclasses
import functools
import json
import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from experiments.common import cli, terminal
from experiments.common.measurement_flags import measurement_flags
from experiments.common.progress import Progress
from experiments.common.resume import slug_of, task_settings
from experiments.common.run_folder import RunFolder
from experiments.transitions import of_law
from lensllm_jax import checks, padding
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.finetune.objective import nats_and_count
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.report import theory as report
from lensllm_jax.scaling.fit import fit_law
from lensllm_jax.scaling.intervals import degrees_of_freedom
from lensllm_jax.theory.blocks import Block, displacement, squared_norms, weight_blocks
from lensllm_jax.theory.bound import ORDER, share, theorem_2
from lensllm_jax.theory.decay import corollary_1, fit_decay
from lensllm_jax.theory.hessian import (
    batch_means,
    block_forms,
    gradient_variance,
    hessian_trace,
    joint_forms,
    least_bytes,
)
from lensllm_jax.theory.phases import MIN_SIZES, segmented_transition
from lensllm_jax.typing import Params

FLAGS = measurement_flags()
flags.DEFINE_alias("candidate", "candidates")
SIZES = flags.DEFINE_list("sizes", ["100", "200", "400", "800", "1600", "3200"], "Subsets.")
NUM_EXAMPLES = flags.DEFINE_integer("num_examples", 16, "Examples of each Hessian form.")
NUM_MATVECS = flags.DEFINE_integer("num_matvecs", 32, "Products of each Lanczos quadrature.")
NUM_PROBES = flags.DEFINE_integer("num_probes", 16, "Probes of each trace.")
ONLY = flags.DEFINE_string("only", "blocks/.*kernel", "Regular expression: which weights count.")
MEGABYTES = flags.DEFINE_integer("megabytes", 1024, "Memory of the Lanczos vectors.")
EPSILON = flags.DEFINE_float("epsilon", 0.1, "Of the bound, in (0, 1).")
DELTA = flags.DEFINE_float("delta", 0.01, "One less the probability of the bound, in (0, 1).")
CONSTANT = flags.DEFINE_float("remainder_constant", None, "K of K n^(-3/4), if one is assumed.")

STACKED = ("blocks",)
BATCH = 4  # examples of a batch mean
CHUNK = 32  # examples whose losses are computed at once
FITTED = ("coefficient", "exponent", "low", "high")  # of a Decay
# what decays, and the exponent that the lemmas give it
LEMMAS = {
    "sum_h": "Eq 6: beta_2 > 0, and < 1/2 for the order of phases",
    "trace": "Lemma 2: 1",
    "gradient_variance": "Lemma 3: beta > 0",
    "squared_displacement": "Lemma 4: 0 (bounded)",
}


def main(argv: Sequence[str]) -> None:
    """Measures the candidates, and writes the tables and figures of each."""
    del argv
    names = FLAGS.candidates()
    check_flags()
    config = FLAGS.config()
    pool = describe_pool(names, max_length=config.max_length)
    task = FLAGS.load_task(pool)
    sizes = _sizes(len(task.train))
    for name in names:  # what one of them cannot do must not end the run of the others late
        check_blocks(name, load_candidate(name).params)
    settings = {
        **task_settings(names, task, config),
        "sizes": sizes,
        "num_examples": NUM_EXAMPLES.value,
        "num_matvecs": NUM_MATVECS.value,
        "num_probes": NUM_PROBES.value,
        "only": ONLY.value,
        "epsilon": EPSILON.value,
        "delta": DELTA.value,
    }
    folder = RunFolder.open(FLAGS.output_dir, settings)
    summaries = {}
    with Progress(total=float(len(sizes) * len(names)), quiet=FLAGS.quiet) as progress:
        for name in names:
            own = RunFolder(folder.path / slug_of(name)) if len(names) > 1 else folder
            bench = Bench(Measurement(load_candidate(name), task, config=config))
            cells = [cell_of(bench, size, own, progress) for size in sizes]
            summaries[name] = write(own, cells)
            jax.clear_caches()  # compiled programs keep the candidate's weights alive
    if len(names) > 1:
        folder.write_rows("decays.csv", decay_rows(summaries))
    print(f"written to {folder.path}")


def check_flags() -> None:
    """Refuses numbers that would end the run after its first fine-tune."""
    share("epsilon", EPSILON.value)
    share("delta", DELTA.value)
    checks.positive("num_matvecs", NUM_MATVECS.value)
    for name, flag, least in (("num_examples", NUM_EXAMPLES, BATCH), ("num_probes", NUM_PROBES, 2)):
        if flag.value < least:
            raise checks.UserError(f"`{name}` must be {least} or more, got {flag.value}")
    if CONSTANT.value is not None:
        checks.positive("remainder_constant", CONSTANT.value)


def blocks_of(params: Params) -> tuple[Block, ...]:
    """The weights that --only names, a block a layer."""
    return weight_blocks(params, stacked=STACKED, only=ONLY.value)


def check_blocks(name: str, params: Params) -> None:
    """Refuses a candidate without such weights, or whose largest block the budget cannot hold."""
    least = least_bytes(params, blocks_of(params), num_matvecs=NUM_MATVECS.value)
    if MEGABYTES.value * 2**20 < least:
        raise checks.UserError(
            f"`megabytes` must be {math.ceil(least / 2**20)} or more for {NUM_MATVECS.value} "
            f"products in the largest block of {name}, got {MEGABYTES.value}: give more, or lower "
            "`num_matvecs`"
        )


def cell_of(bench: "Bench", size: int, folder: RunFolder, progress: Progress) -> dict[str, Any]:
    """Everything about one size, measured now if the folder does not hold it."""
    name = bench.measurement.candidate.name
    progress.at(0.0, f"{name}: {size} examples")
    cell = folder.remember(f"cells/{size}.json", functools.partial(bench.measure, size))
    progress.finish(1.0, f"{name}: {size} examples: sum of h {cell['sum_h']:.4g}")
    return cell


def decay_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """One row a candidate and quantity: its power of n, and what Corollary 1 makes of sum_h."""
    rows = []
    for name, summary in summaries.items():
        for quantity, decay in summary["decays"].items():
            corollary = summary.get("corollary_1", {}) if quantity == "sum_h" else {}
            rows.append(
                {
                    "candidate": name,
                    "quantity": quantity,
                    **{key: decay.get(key, "") for key in FITTED},
                    "lemma": decay["lemma"],
                    **{key: corollary.get(key, "") for key in ("beta_3", "C_3", "consistency")},
                }
            )
    return rows


def _sizes(available: int) -> list[int]:
    sizes = sorted(set(cli.whole_numbers("sizes", SIZES.value)))
    if len(sizes) < 2 or sizes[0] < max(NUM_EXAMPLES.value, BATCH) or sizes[-1] > available:
        raise checks.UserError(
            f"`sizes` must be two or more from `num_examples` ({NUM_EXAMPLES.value}, at least "
            f"{BATCH}) to {available} (the training examples), got {','.join(map(str, sizes))}"
        )
    return sizes


class Bench:
    """The candidate, and the functions that are compiled once for all sizes."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement
        self.pretrained = measurement.candidate.params
        self.blocks = blocks_of(self.pretrained)
        self.loss = self._loss  # one object, so that nothing is compiled twice
        each = jax.vmap(self.loss, in_axes=(None, 0))
        self.losses = jax.jit(lambda p, x: each(p, x))

    def _loss(self, params, one) -> jax.Array:
        """Mean loss of one example's target tokens, nats."""
        batch = {name: values[None] for name, values in one.items()}
        logits = self.measurement.candidate.apply_fn(params, batch)[0]
        nats, count = nats_and_count(logits, one["labels"], shift=self.measurement.loop.shift)
        return jnp.asarray(nats / jnp.maximum(count, 1))

    def every_loss(self, params, examples) -> np.ndarray:
        """Loss of each example, nats per target token."""
        losses = padding.map_blocks(lambda x: self.losses(params, x), examples, CHUNK)
        return losses.astype(np.float64)

    def measure(self, size: int) -> dict[str, Any]:
        """Everything about one size, as JSON values."""
        start = time.monotonic()
        tuned = self.measurement.fine_tune(size)
        moved = displacement(tuned.params, self.pretrained)
        subset = self.measurement.subset(size)
        seen = self.every_loss(tuned.params, subset)
        few = {name: values[: NUM_EXAMPLES.value] for name, values in subset.items()}
        loss = self.loss
        forms = block_forms(
            loss, tuned.params, moved, few, self.blocks,
            num_matvecs=NUM_MATVECS.value, max_bytes=MEGABYTES.value * 2**20,
        )  # fmt: skip
        joint = joint_forms(loss, tuned.params, moved, few, self.blocks)
        trace = hessian_trace(loss, tuned.params, few, self.blocks, num_probes=NUM_PROBES.value)
        h = np.array([f.h for f in forms])
        loss_bound = float(seen.max())
        bound = theorem_2(
            float(seen.mean()), h, num_examples=size, epsilon=EPSILON.value,
            loss_bound=loss_bound, delta=DELTA.value,
        )  # fmt: skip
        worst = [int(np.argmax(f.positive)) for f in forms]
        return {
            "size": size,
            "training_loss": float(seen.mean()),
            "test_loss": tuned.result.test_loss,
            "loss_bound": loss_bound,
            "sum_h": float(h.sum()),
            "sum_h_error": float(sum(f.error[i] for f, i in zip(forms, worst, strict=True))),
            "sum_h_plain": float(sum(f.plain.max() for f in forms)),
            "sum_h_joint": float(joint.max(0).sum()),
            "sum_h_batch_means": float(batch_means(joint, batch_size=BATCH).max(0).sum()),
            "trace": trace.value,
            "trace_low": trace.low,
            "trace_high": trace.high,
            "gradient_variance": gradient_variance(loss, tuned.params, few, self.blocks),
            "squared_displacement": float(squared_norms(moved, self.blocks).sum()),
            "empirical_term": bound.empirical,
            "curvature_term": bound.curvature,
            "confidence_term": bound.confidence,
            "blocks": {f.name: {"h": f.h, "error": float(f.error.max())} for f in forms},
            "best_step": tuned.result.best_step,
            "seconds": round(time.monotonic() - start, 1),
        }


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Decays, Corollary 1 and the transition, as JSON values."""
    sizes = np.array([float(cell["size"]) for cell in cells])
    decays: dict[str, Any] = {}
    for name, said in LEMMAS.items():
        values = np.array([cell[name] for cell in cells])
        if np.all(values > 0):
            decays[name] = {"lemma": said, **dataclasses.asdict(fit_decay(sizes, values))}
        else:
            decays[name] = {"lemma": said, "no fit": f"not all positive: {values.tolist()}"}
    summary: dict[str, Any] = {"decays": decays}
    if "exponent" in decays["sum_h"]:
        result = corollary_1(
            fit_decay(sizes, np.array([cell["sum_h"] for cell in cells])),
            loss_bound=max(cell["loss_bound"] for cell in cells),
            num_blocks=len(cells[0]["blocks"]),
            remainder_constant=CONSTANT.value,
        )
        summary["corollary_1"] = {
            **dataclasses.asdict(result),
            "remainder_constant": CONSTANT.value,
            "consistency": result.consistency.value,
        }
    losses = np.array([cell["test_loss"] for cell in cells])
    summary["phases"] = transitions(sizes, losses)
    return summary


def transitions(sizes: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """Both detectors on one curve; what cannot be said is said."""
    kept = (sizes > 0) & ~np.isnan(losses)
    found: dict[str, Any] = {}
    if kept.sum() >= MIN_SIZES:
        segmented = segmented_transition(sizes, losses)
        found["segmented"] = {**dataclasses.asdict(segmented), "phase": segmented.phase.value}
    else:
        found["segmented"] = f"needs {MIN_SIZES} sizes, got {int(kept.sum())}"
    fit = fit_law("rectified", sizes, losses, weights=(~np.isnan(losses)).astype(float))
    if not fit.status.usable or degrees_of_freedom(fit) < 1:
        return {**found, "rectified": fit.message}
    law = of_law(fit)
    return {**found, "rectified": {**dataclasses.asdict(law), "message": fit.message}}


def write(folder: RunFolder, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables, figures, and the summary, which is also shown on the terminal."""
    hidden = ("size", "blocks", "seconds")
    rows = [{"size": c["size"], **{k: c[k] for k in c if k not in hidden}} for c in cells]
    if CONSTANT.value is not None:
        for row in rows:
            row["remainder_term"] = CONSTANT.value * row["size"] ** -ORDER
    folder.write_rows("theory.csv", rows)
    folder.write_rows(
        "blocks.csv",
        [
            {"size": cell["size"], "block": name, **values}
            for cell in cells
            for name, values in cell["blocks"].items()
        ],
    )
    summary = summarise(cells)
    folder.write_text("theory.json", json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n")
    folder.write_bytes("bound.png", report.bound_figure(rows))
    folder.write_bytes("decays.png", report.decay_figure(rows, summary["decays"]))
    shown = terminal.table("What the lemmas say about powers of n, and what was measured")
    for column in ("quantity", "exponent", "90 % interval", "the lemma says"):
        shown.add_column(column)
    for name, decay in summary["decays"].items():
        if "exponent" in decay:
            ends = f"{decay['low']:.2f} to {decay['high']:.2f}"
            shown.add_row(name, f"{decay['exponent']:.2f}", ends, decay["lemma"])
        else:
            shown.add_row(name, "-", decay["no fit"], decay["lemma"])
    terminal.show(shown)
    if "corollary_1" in summary:
        terminal.show(summary["corollary_1"]["consistency"])
    return summary


def _finite(value: Any) -> Any:
    """Numbers that JSON has no word for become null: an open interval has no end."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    cli.run(main)
