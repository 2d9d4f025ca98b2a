r"""Where does linearised training stop to describe the real one?  F against gradient descent.

    python -m experiments.linear_training --candidates=zoo/gpt2-xs,zoo/t5-xs --task=pydoc \
        --num_examples=32 --num_steps=256 --output_dir=out/linear-training

The regime in which Eq 9 is a theorem, but for the kernel's change: plain gradient descent on
1/2 |f - y|^2, all --num_examples texts at once, f their mean target log-probability and y = 0, with
the step eta = share / lambda_max for each of --shares.  After 0, 1, 2, 4, ... steps

* measured: |f_t - y|^2 of the model itself;
* linear: what the same steps leave under the kernel at pretrained weights,
  sum_j c_j (1 - eta lambda_j)^(2 t);
* flow: F(Theta, t) of Eq 9, whose steps are infinitely small.

--output_dir receives <task>_linear_training.csv: a row per candidate, share and step.  It departs
at the first such step at which measured is off linear by more than a tenth.  The same command
resumes.  Cost: --num_steps forward and backward passes of all texts per candidate and share.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from absl import flags

from experiments.common import cli
from experiments.common.flags import define_num_examples
from experiments.common.measurement_flags import pretrained_flags
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.ntk.candidate import candidate_ntk
from lensllm_jax.ntk.loss import ntk_spectrum
from lensllm_jax.ntk.readout import Readout, ReadoutFn
from lensllm_jax.runs import terminal
from lensllm_jax.runs.resume import pretrained_settings
from lensllm_jax.runs.run_folder import file_name_of
from lensllm_jax.typing import Array, Batch, Params

FLAGS = pretrained_flags()
NUM_EXAMPLES = define_num_examples(32, "Texts that are trained on.")
NUM_STEPS = flags.DEFINE_integer("num_steps", 256, "Steps of gradient descent.")
SHARES = flags.DEFINE_list("shares", ["0.01", "0.1", "1"], "Of 1 / lambda_max, below 2: eta.")

CHUNK = 8  # examples of a forward and backward pass
BLOCK = 32  # examples of a tile's side
DEPARTED = 0.1  # relative difference


def main(_: Sequence[str]) -> None:
    """Trains every candidate that is not finished, then writes the table."""
    run = FLAGS.run()
    pool = describe_pool(run.names)
    task = run.load_task(pool)
    shares = _checked_shares()
    settings = {
        **pretrained_settings(pool, task, run.measurement),
        "num_examples": NUM_EXAMPLES.value,
        "num_steps": NUM_STEPS.value,
        "shares": shares,
    }
    folder = run.open_folder(settings, task, pool)
    rows: list[dict[str, Any]] = []
    with run.progress(total=float(len(run.names))) as progress:
        for name in run.names:
            path = f"trained/{file_name_of(name)}.json"
            progress.at(0.0, f"{name}: training")
            if not folder.has(path):
                candidate = load_candidate(name)
                measurement = Measurement(candidate, task, config=run.measurement)
                batch = measurement.kernel_texts(NUM_EXAMPLES.value)
                found = list(trained_rows(candidate, batch, shares, NUM_STEPS.value))
                folder.write_piece(path, {"rows": found})
            rows += [{"candidate": name, **row} for row in folder.read_piece(path)["rows"]]
            progress.finish(1.0, f"{name}: trained")
    folder.write_rows(f"{file_name_of(task.name)}_linear_training.csv", rows)
    _show(rows)
    print(f"written to {folder.path}")


def _checked_shares() -> list[float]:
    """The entries of --shares; also checks --num_examples and --num_steps."""
    checks.positive("num_examples", NUM_EXAMPLES.value)
    checks.positive("num_steps", NUM_STEPS.value)
    shares = list(cli.numbers("shares", SHARES.value))
    if not shares or not all(0 < share < 2 for share in shares):
        raise checks.UserError(
            f"`shares` must be between 0 and 2, where gradient descent is stable, got {shares}"
        )
    return shares


def trained_rows(
    candidate: Candidate, batch: Batch, shares: Sequence[float], num_steps: int
) -> Iterator[dict[str, Any]]:
    """Squared residuals by share and step: measured, linear and flow."""
    kernel = candidate_ntk(candidate, batch, block_size=BLOCK)
    spectrum = ntk_spectrum(kernel.theta, kernel.residual)
    f = ReadoutFn(candidate.apply_fn, Readout.TARGET_LOGPROB, not candidate.is_encoder_decoder)
    steps = [0, *(2**k for k in range(num_steps.bit_length()))]
    for share in shares:
        rate = share / float(spectrum.eigenvalues[-1])
        descent = squared_residuals(f, candidate.params, batch, rate, num_steps)
        for step, measured in enumerate(descent):
            if step in steps:
                yield {
                    "share": f"{share:g}",
                    "step": step,
                    "measured": f"{measured:.6g}",
                    "linear": f"{linear_residual(spectrum, rate, step):.6g}",
                    "flow": f"{float(spectrum.loss(rate * step)):.6g}",
                }


def linear_residual(spectrum: NtkSpectrum, rate: float, steps: int) -> float:
    """What gradient descent on a linear model leaves of |f - y|^2."""
    left = (1.0 - rate * spectrum.eigenvalues) ** (2 * steps)
    return float(left @ spectrum.squared_projections)


def squared_residuals(
    f: ReadoutFn, params: Params, batch: Batch, rate: float, num_steps: int
) -> Iterator[float]:
    """|f_t|^2 for t = 0, 1, ..., num_steps of gradient descent on half of it."""

    @jax.jit
    def chunk_loss(params: Params, chunk: Batch) -> tuple[Array, Params]:
        return jax.value_and_grad(lambda p: 0.5 * jnp.sum(f(p, chunk) ** 2))(params)

    @jax.jit
    def moved(params: Params, gradients: Params) -> Params:
        return jax.tree.map(lambda p, g: p - rate * g, params, gradients)

    add = jax.jit(lambda a, b: jax.tree.map(jnp.add, a, b))
    count = len(batch["labels"])
    chunks = [
        {key: jnp.asarray(rows[start : start + CHUNK]) for key, rows in batch.items()}
        for start in range(0, count, CHUNK)
    ]
    for step in range(num_steps + 1):
        half, gradients = chunk_loss(params, chunks[0])
        for chunk in chunks[1:]:
            more, others = chunk_loss(params, chunk)
            half, gradients = half + more, add(gradients, others)
        yield 2.0 * float(half)
        if step < num_steps:
            params = moved(params, gradients)


def departure(rows: Sequence[Mapping[str, Any]]) -> Mapping[str, Any] | None:
    """The first row, of one candidate and share, that is off the linear model."""
    for row in rows:
        measured, linear = float(row["measured"]), float(row["linear"])
        if not abs(measured - linear) <= DEPARTED * linear:
            return row
    return None


def _show(rows: Sequence[Mapping[str, Any]]) -> None:
    shown = terminal.table(
        "Plain gradient descent and the linear model: where they part by a tenth",
        left=["candidate"],
        right=["eta lambda_max", "step", "of the residual left, linear", "measured"],
    )
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["candidate"], row["share"]), []).append(row)
    for (name, share), group in groups.items():
        start = float(group[0]["measured"])
        at = departure(group)
        row = at or group[-1]
        step = str(row["step"]) if at else f"not by {row['step']}"
        left = [f"{100 * float(row[key]) / start:.1f} %" for key in ("linear", "measured")]
        shown.add_row(name, share, step, *left)
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
