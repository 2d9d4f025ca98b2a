r"""Theorem 2 and its lemmas, measured: candidates fine-tuned on doubling subsets.

    python -m experiments.theory_bound --candidate=zoo/gpt2-xs --task=pydoc \
        --sizes=100,200,400,800,1600,3200 --output_dir=out/theory
    python -m experiments.theory_bound --candidates=zoo --sizes=100,200,400,800 --output_dir=out/zoo

For each size n: how far each weight block moved, h_i of the first --num_examples training
examples block by block (Lanczos, with its error estimate), the forms that others compute instead,
the Hessian's trace with an interval, the gradient's variance, and every term of the bound at
--epsilon and --delta, with C the largest loss of any example seen.  Then, over n: the decay of
each with its interval and what the lemmas say, Corollary 1's constants, whether beta_2 < 1/2
holds, and the transition of the loss curve (of curves alone: phase_transitions).  The remainder's
constant K is not known; with --remainder_constant one is assumed, and the bound has a total and n*.

--output_dir receives theory.csv (a row per size), blocks.csv (a row per size and block),
theory.json (fits), bound.png, decays.png.  Of several candidates each has these in a folder of its
own, and decays.csv has a row per candidate and decaying quantity.  The same command resumes a
killed run.  A bundled candidate with six sizes: about 6 minutes on 2 cores.
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

from experiments.common import cli
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax import checks, padding
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.finetune.objective import nats_and_count
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.report import theory as report
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.resume import task_settings
from lensllm_jax.runs.run_folder import RunFolder, file_name_of
from lensllm_jax.scaling.fit import fit_law
from lensllm_jax.scaling.phases import MIN_SIZES, law_transition, segmented_transition
from lensllm_jax.theory.blocks import Block, displacement, squared_norms, weight_blocks
from lensllm_jax.theory.bound import ORDER, share, theorem_2
from lensllm_jax.theory.decay import corollary_1, fit_decay
from lensllm_jax.theory.hessian import (
    BlockForms,
    batch_means,
    block_forms,
    gradient_variance,
    hessian_trace,
    joint_forms,
    least_bytes,
)
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
DELTA = flags.DEFINE_float("delta", 0.01, "One minus the probability of the bound, in (0, 1).")
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


def main(_: Sequence[str]) -> None:
    """Measures the candidates, and writes the tables and figures of each."""
    run = FLAGS.run()
    names, config = run.names, run.measurement
    check_flags()
    pool = describe_pool(names)
    task = run.load_task(pool)
    sizes = _sizes(len(task.train))
    for name in names:  # what one of them cannot do must not end the run of the others late
        check_blocks(name, load_candidate(name).params)
    settings = {
        **task_settings(pool, task, config),
        "sizes": sizes,
        "num_examples": NUM_EXAMPLES.value,
        "num_matvecs": NUM_MATVECS.value,
        "num_probes": NUM_PROBES.value,
        "only": ONLY.value,
        "epsilon": EPSILON.value,
        "delta": DELTA.value,
    }
    folder = run.open_folder(settings, task, pool)
    summaries = {}
    with run.progress(total=float(len(sizes) * len(names))) as progress:
        for name in names:
            subfolder = RunFolder(folder.path / file_name_of(name)) if len(names) > 1 else folder
            bench = _Bench(Measurement(load_candidate(name), task, config=config))
            cells = [_remember_cell(bench, size, subfolder, progress) for size in sizes]
            summaries[name] = _write(subfolder, cells)
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


def _blocks_of(params: Params) -> tuple[Block, ...]:
    """The weights that --only names, one block per layer."""
    return weight_blocks(params, stacked=STACKED, only=ONLY.value)


def check_blocks(name: str, params: Params) -> None:
    """Refuses a candidate without such weights, or whose largest block the budget cannot hold."""
    least = least_bytes(params, _blocks_of(params), num_matvecs=NUM_MATVECS.value)
    if MEGABYTES.value * 2**20 < least:
        raise checks.UserError(
            f"`megabytes` must be {math.ceil(least / 2**20)} or more for {NUM_MATVECS.value} "
            f"products in the largest block of {name}, got {MEGABYTES.value}: give more, or lower "
            "`num_matvecs`"
        )


def _remember_cell(
    bench: "_Bench", size: int, folder: RunFolder, progress: Progress
) -> dict[str, Any]:
    """Everything about one size, measured now if the folder does not hold it."""
    name = bench.measurement.candidate.name
    progress.at(0.0, f"{name}: {size} examples")
    cell = folder.remember(f"cells/{size}.json", functools.partial(bench.measure, size))
    progress.finish(1.0, f"{name}: {size} examples: sum of h {cell['sum_h']:.4g}")
    return cell


def decay_rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """A row per candidate and quantity: its power of n, and what Corollary 1 makes of sum_h."""
    rows = []
    for name, summary in summaries.items():
        for quantity, decay in summary["decays"].items():
            corollary = summary.get("corollary_1", {}) if quantity == "sum_h" else {}
            rows.append({
                "candidate": name,
                "quantity": quantity,
                **{key: decay.get(key, "") for key in FITTED},
                "lemma": decay["lemma"],
                **{key: corollary.get(key, "") for key in ("beta_3", "C_3", "consistency")},
            })  # fmt: skip
    return rows


def _sizes(available: int) -> list[int]:
    sizes = sorted(set(cli.whole_numbers("sizes", SIZES.value)))
    if len(sizes) < 2 or sizes[0] < max(NUM_EXAMPLES.value, BATCH) or sizes[-1] > available:
        raise checks.UserError(
            f"`sizes` must be two or more from `num_examples` ({NUM_EXAMPLES.value}, at least "
            f"{BATCH}) to {available} (the training examples), got {','.join(map(str, sizes))}"
        )
    return sizes


class _Bench:
    """One candidate, and the functions that are compiled once for all sizes."""

    def __init__(self, measurement: Measurement):
        self.measurement = measurement
        self.pretrained = measurement.candidate.params
        self.blocks = _blocks_of(self.pretrained)
        self.loss = self._loss  # one object, so that nothing is compiled twice
        each = jax.vmap(self.loss, in_axes=(None, 0))
        self.losses = jax.jit(lambda p, x: each(p, x))

    def _loss(self, params, one) -> jax.Array:
        """Mean loss of one example's target tokens, nats."""
        batch = {name: values[None] for name, values in one.items()}
        logits = self.measurement.candidate.apply_fn(params, batch)[0]
        nats, count = nats_and_count(logits, one["labels"], shift=self.measurement.loop.shift)
        return jnp.asarray(nats / jnp.maximum(count, 1))

    def measure(self, size: int) -> dict[str, Any]:
        """Everything about one size, as JSON values."""
        start = time.monotonic()
        tuned = self.measurement.fine_tune(size)
        moved = displacement(tuned.params, self.pretrained)
        subset = self.measurement.subset(size)
        few = {name: values[: NUM_EXAMPLES.value] for name, values in subset.items()}
        forms = block_forms(
            self.loss, tuned.params, moved, few, self.blocks,
            num_matvecs=NUM_MATVECS.value, max_bytes=MEGABYTES.value * 2**20,
        )  # fmt: skip
        return {
            "size": size,
            "test_loss": self.measurement.objective(tuned.params),
            "best_step": tuned.result.best_step,
            **self._curvature(tuned.params, moved, few),
            **_form_columns(forms),
            **_bound_columns(self._example_losses(tuned.params, subset), forms),
            "squared_displacement": float(squared_norms(moved, self.blocks).sum()),
            "seconds": round(time.monotonic() - start, 1),
        }

    def _example_losses(self, params, examples) -> np.ndarray:
        """Of each example, nats per target token."""
        losses = padding.map_blocks(lambda x: self.losses(params, x), examples, CHUNK)
        return losses.astype(np.float64)

    def _curvature(self, params, moved, examples) -> dict[str, Any]:
        """Of all blocks together: joint forms, the Hessian's trace, the gradient's variance."""
        joint = joint_forms(self.loss, params, moved, examples, self.blocks)
        trace = hessian_trace(self.loss, params, examples, self.blocks, num_probes=NUM_PROBES.value)
        return {
            "sum_h_joint": float(joint.max(0).sum()),
            "sum_h_batch_means": float(batch_means(joint, batch_size=BATCH).max(0).sum()),
            "trace": trace.value,
            "trace_low": trace.low,
            "trace_high": trace.high,
            "gradient_variance": gradient_variance(self.loss, params, examples, self.blocks),
        }


def _form_columns(forms: Sequence[BlockForms]) -> dict[str, Any]:
    """h_i of each block and their sum, with the error estimate of the largest forms."""
    largest = [int(np.argmax(f.positive)) for f in forms]
    return {
        "sum_h": float(np.array([f.h for f in forms]).sum()),
        "sum_h_error": float(sum(f.error[i] for f, i in zip(forms, largest, strict=True))),
        "sum_h_plain": float(sum(f.plain.max() for f in forms)),
        "blocks": {f.name: {"h": f.h, "error": float(f.error.max())} for f in forms},
    }


def _bound_columns(losses: np.ndarray, forms: Sequence[BlockForms]) -> dict[str, Any]:
    """The terms of Theorem 2 for these training losses, and the largest of them as C."""
    bound = theorem_2(
        float(losses.mean()), np.array([f.h for f in forms]), num_examples=len(losses),
        epsilon=EPSILON.value, loss_bound=float(losses.max()), delta=DELTA.value,
    )  # fmt: skip
    return {
        "training_loss": float(losses.mean()),
        "loss_bound": float(losses.max()),
        "empirical_term": bound.empirical,
        "curvature_term": bound.curvature,
        "confidence_term": bound.confidence,
    }


def summarise(cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Decays, Corollary 1 and the transition, as JSON values."""
    sizes = np.array([float(cell["size"]) for cell in cells])
    decays: dict[str, Any] = {}
    for name, lemma in LEMMAS.items():
        values = np.array([cell[name] for cell in cells])
        if np.all(values > 0):
            decays[name] = {"lemma": lemma, **dataclasses.asdict(fit_decay(sizes, values))}
        else:
            decays[name] = {"lemma": lemma, "no fit": f"not all positive: {values.tolist()}"}
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
    summary["phases"] = _phases(sizes, losses)
    return summary


def _phases(sizes: np.ndarray, losses: np.ndarray) -> dict[str, Any]:
    """The transition by two segments and by the rectified law, or why there is no estimate."""
    segmented: dict[str, Any] | str
    num_sizes = int(((sizes > 0) & ~np.isnan(losses)).sum())
    if num_sizes >= MIN_SIZES:
        transition = segmented_transition(sizes, losses)
        segmented = {**dataclasses.asdict(transition), "phase": transition.phase.value}
    else:
        segmented = f"needs {MIN_SIZES} sizes, got {num_sizes}"
    fit = fit_law("rectified", sizes, losses, weights=(~np.isnan(losses)).astype(float))
    if not fit.status.usable or fit.degrees_of_freedom < 1:
        return {"segmented": segmented, "rectified": fit.message}
    law = law_transition(fit)
    rectified = {**dataclasses.asdict(law), "message": fit.message}
    return {"segmented": segmented, "rectified": rectified}


def _write(folder: RunFolder, cells: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Tables, figures, and the summary, which is also shown on the terminal."""
    hidden = ("size", "blocks", "seconds")
    rows = [{"size": c["size"], **{k: c[k] for k in c if k not in hidden}} for c in cells]
    if CONSTANT.value is not None:
        for row in rows:
            row["remainder_term"] = CONSTANT.value * row["size"] ** -ORDER
    folder.write_rows("theory.csv", rows)
    folder.write_rows("blocks.csv", [
        {"size": cell["size"], "block": name, **values}
        for cell in cells
        for name, values in cell["blocks"].items()
    ])  # fmt: skip
    summary = summarise(cells)
    folder.write_text("theory.json", json.dumps(_finite(summary), indent=1, allow_nan=False) + "\n")
    folder.write_bytes("bound.png", report.bound_figure(rows))
    folder.write_bytes("decays.png", report.decay_figure(rows, summary["decays"]))
    _show(summary)
    return summary


def _show(summary: Mapping[str, Any]) -> None:
    shown = terminal.table(
        "What the lemmas say about powers of n, and what was measured",
        left=["quantity", "exponent", "90 % interval", "the lemma says"],
    )
    for name, decay in summary["decays"].items():
        if "exponent" in decay:
            ends = f"{decay['low']:.2f} to {decay['high']:.2f}"
            shown.add_row(name, f"{decay['exponent']:.2f}", ends, decay["lemma"])
        else:
            shown.add_row(name, "-", decay["no fit"], decay["lemma"])
    terminal.show(shown)
    if "corollary_1" in summary:
        terminal.show(summary["corollary_1"]["consistency"])


def _finite(value: Any) -> Any:
    """Numbers that JSON cannot hold become null: an open interval has no end."""
    if isinstance(value, dict):
        return {name: _finite(part) for name, part in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


if __name__ == "__main__":
    cli.run(main)
