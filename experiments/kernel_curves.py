r"""The learning curves of kernel regression, before any fine-tuning: estimated and measured.

    python -m experiments.kernel_curves --candidates=zoo --task=pydoc --output_dir=out/kernel-curves

Regression with the exact kernel at pretrained weights, of f* - f0 (Eq 9's residual with its sign
turned, which no error sees), on the first --num_examples training examples of the nested order.
Two read-outs: target_logprob (f0 the mean log-probability of a target's tokens, f* = 0, errors in
nats^2 per token^2; one output per example) and label_logits (the logits of the --num_labels most
common first target tokens, f* one-hot; k outputs per example, which count as k samples each).
Three estimates of the mean square error at each of --sizes, at most half of --num_examples
(lensllm_jax/theory/kernel_regression.py):

* gcv: generalised cross-validation on the first D examples;
* replica: the replica ("eigenlearning") estimate for D of all examples;
* holdout: regression on the first D, measured on the last half of the examples.

All of a candidate and read-out share one ridge, of the least cross-validation error on all
examples.  --output_dir receives kernels/ and <task>_kernel_curves.csv: a row per candidate,
read-out, estimate and size.  What the curves are worth: experiments/kernel_curve_value.py.  The
same command resumes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float

from experiments.common import cli
from experiments.common.first_tokens import common_first_tokens
from experiments.common.flags import define_num_examples, define_num_labels
from experiments.common.measurement_flags import pretrained_flags
from experiments.common.stored_kernels import has_kernel, read_kernel, write_kernel
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.ntk.candidate import candidate_ntk
from lensllm_jax.ntk.loss import flat_kernel, ntk_spectrum
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.runs.resume import pretrained_settings
from lensllm_jax.runs.run_folder import RunFolder, file_name_of
from lensllm_jax.theory.kernel_regression import (
    best_ridge,
    cross_validation_error,
    holdout_error,
    replica_error,
)

FLAGS = pretrained_flags()
NUM_EXAMPLES = define_num_examples(256, "Examples of the kernels.")
SIZES = flags.DEFINE_list("sizes", ["16", "32", "64", "128"], "D of the curves, ascending.")
NUM_LABELS = define_num_labels()

READOUTS = (Readout.TARGET_LOGPROB, Readout.LABEL_LOGITS)
BLOCK = 64  # examples of a tile's side


def main(_: Sequence[str]) -> None:
    """Measures every kernel that is missing, then writes the curves."""
    run = FLAGS.run()
    pool = describe_pool(run.names)
    task = run.load_task(pool)
    sizes = curve_sizes(task)
    settings = {
        **pretrained_settings(pool, task, run.measurement),
        "num_examples": NUM_EXAMPLES.value,
        "num_labels": NUM_LABELS.value,
    }
    folder = run.open_folder(settings, task, pool)
    rows: list[dict[str, Any]] = []
    with run.progress(total=float(len(run.names))) as progress:
        for name in run.names:
            progress.at(0.0, f"{name}: kernels")
            for readout in READOUTS:
                theta, residual = _remember_kernel(name, readout, task, run.measurement, folder)
                key = {"candidate": name, "readout": readout.value}
                rows += [{**key, **row} for row in curve_rows(theta, residual, sizes)]
            progress.finish(1.0, f"{name}: kernels measured")
    folder.write_rows(f"{file_name_of(task.name)}_kernel_curves.csv", rows)
    print(f"written to {folder.path}")


def curve_sizes(task: Task) -> list[int]:
    """The entries of --sizes.

    Raises:
        UserError: naming the flag at fault.
    """
    count = int(checks.positive("num_examples", NUM_EXAMPLES.value))
    if count > len(task.train):
        raise checks.UserError(
            f"`num_examples` must be at most {len(task.train)} (the training examples of "
            f"{task.name}), got {count}"
        )
    checks.positive("num_labels", NUM_LABELS.value)
    sizes = [*cli.whole_numbers("sizes", SIZES.value)]
    if len(sizes) < 2 or sizes != sorted(set(sizes)) or not 2 <= sizes[0] <= sizes[-1] <= count / 2:
        raise checks.UserError(
            f"`sizes` must be two or more, ascending from 2 to at most {count // 2} (half of "
            f"`num_examples`), got {sizes}"
        )
    return sizes


def _remember_kernel(
    name: str, readout: Readout, task: Task, config: MeasurementConfig, folder: RunFolder
) -> tuple[Float[np.ndarray, "n n"] | Float[np.ndarray, "n n k k"], np.ndarray]:
    """Kernel and residual of a candidate, computed if the folder lacks them."""
    stem = f"kernels/{file_name_of(name)}/{readout.value}"
    if not has_kernel(folder, stem):
        candidate = load_candidate(name)
        batch = Measurement(candidate, task, config=config).kernel_texts(NUM_EXAMPLES.value)
        labels: tuple[int, ...] = ()
        if readout is Readout.LABEL_LOGITS:
            shift = not candidate.is_encoder_decoder
            labels = common_first_tokens(batch, NUM_LABELS.value, shift=shift)
        kernel = candidate_ntk(
            candidate, batch, readout=readout, label_tokens=labels, block_size=BLOCK
        )
        write_kernel(folder, stem, kernel, seconds=kernel.seconds)
    return read_kernel(folder, stem)


def curve_rows(
    theta: Float[np.ndarray, "n n"] | Float[np.ndarray, "n n k k"],
    residual: np.ndarray,
    sizes: Sequence[int],
) -> Iterator[dict[str, Any]]:
    """Each estimate at each size."""
    # in the kernel's own type, whose rounding may leave eigenvalues just below zero
    flat, r = np.asarray(flat_kernel(theta)), np.asarray(residual, np.float64).ravel()
    outputs = len(r) // len(theta)
    whole = ntk_spectrum(flat, r)
    ridge = best_ridge(whole)
    num_test = outputs * (len(theta) // 2)
    for size in sizes:
        count = size * outputs
        block = ntk_spectrum(flat[:count, :count], r[:count])
        errors = {
            "gcv": cross_validation_error(block, ridge=ridge),
            "replica": replica_error(whole, count, ridge=ridge),
            "holdout": holdout_error(flat, r, count, num_test=num_test, ridge=ridge),
        }
        for estimate, error in errors.items():
            row = {"estimate": estimate, "ridge": f"{ridge:.6g}", "size": size}
            yield {**row, "mean_square": f"{error:.6g}"}


if __name__ == "__main__":
    cli.run(main)
