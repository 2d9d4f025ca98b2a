r"""Measures the kernels of a pool once, and keeps the few numbers that the laws need of them.

    python -m experiments.kernel_spectra --candidates=zoo --task=pydoc --output_dir=out/kernels

At pretrained weights, on the first n training examples of the nested order and the first
--num_test_examples of the test set, one structured kernel per candidate and read-out; a smaller n
is a leading block of it.  Read-outs: target_logprob (loss has the same kernel and the residual of
opposite sign, hence the same F) and label_logits, the logits of the --num_labels most common first
target tokens.  --output_dir receives

* <task>_spectra.csv: eigenvalues of Theta and squared projections of f0 - y, all that F needs;
* <task>_flow.csv: against the scaled time s = lambda_max eta t, the mean square of the kernel's
  residual on the test examples, and log F of the released code's elementwise exponential;
* <task>_kernels.csv: trace, largest eigenvalue, |mean gradient|^2 (the released code's scalar
  "kernel"), and FLOPs of the kernel alone and with the test columns.

The same command resumes.  About 11 min for the bundled pool on two
busy cores.  Expected on pydoc: F(0), the sum of the projections, of target_logprob and n = 64 is
1,600 to 3,900 nats^2, and 6,600 for zoo/mt5-xs.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import scipy.special
from absl import flags

from experiments.common import cli
from experiments.common.first_tokens import common_first_tokens
from experiments.common.flags import define_num_labels
from experiments.common.measurement_flags import pretrained_flags
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import Candidate
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.ntk.candidate import CandidateNtk, candidate_ntk, estimate_ntk_cost
from lensllm_jax.ntk.loss import flat_kernel, ntk_spectrum, ntk_test_residual
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.runs.resume import pretrained_settings
from lensllm_jax.runs.run_folder import file_name_of
from lensllm_jax.typing import Batch

FLAGS = pretrained_flags()
SAMPLE_SIZES = flags.DEFINE_list(
    "sample_sizes", ["32", "64", "128"], "Examples of the kernels, ascending."
)
LABEL_SAMPLE_SIZES = flags.DEFINE_list(
    "label_sample_sizes", ["32", "64"], "Likewise for label_logits; empty leaves it out."
)
NUM_TEST_EXAMPLES = flags.DEFINE_integer(
    "num_test_examples", 64, "Test examples of <task>_flow.csv."
)
NUM_LABELS = define_num_labels()

# s = 1 learns the fastest mode by a factor e; s = 1e4 what is 1e4 times slower
SCALED_TIMES = np.append(0.0, 10.0 ** np.arange(-3.0, 4.01, 1.0 / 3.0))
BLOCK = 64  # examples of a tile's side


def main(_: Sequence[str]) -> None:
    """Measures every candidate that is not finished, then writes the three tables."""
    run = FLAGS.run()
    names, config = run.names, run.measurement
    pool = describe_pool(names)
    task = run.load_task(pool)
    readouts = sample_sizes(task)
    settings = {
        **pretrained_settings(pool, task, config),
        "sample_sizes": {readout.value: sizes for readout, sizes in readouts.items()},
        "num_test_examples": NUM_TEST_EXAMPLES.value,
        "num_labels": NUM_LABELS.value,
    }
    folder = run.open_folder(settings, task, pool)
    rows: list[dict[str, Any]] = []
    with run.progress(total=float(len(names))) as progress:
        for name in names:
            path = f"kernels/{file_name_of(name)}.json"
            progress.at(0.0, f"{name}: kernels")
            if not folder.has(path):
                measured = list(_kernels(name, task, config, readouts))
                folder.write_piece(path, {"rows": measured})
                progress.finish(1.0, f"{name}: kernels measured")
            else:
                progress.skip(1.0)
            rows += folder.read_piece(path)["rows"]
    stem = file_name_of(task.name)
    folder.write_rows(f"{stem}_spectra.csv", [_spectrum_row(row) for row in rows])
    folder.write_rows(f"{stem}_flow.csv", [flow for row in rows for flow in _flow_rows(row)])
    folder.write_rows(f"{stem}_kernels.csv", [_kernel_row(row) for row in rows])
    print(f"written to {folder.path}")


def sample_sizes(task: Task) -> dict[Readout, list[int]]:
    """Numbers of examples by read-out, ascending; none where a read-out is left out.

    Raises:
        UserError: naming the flag at fault.
    """
    checks.positive("num_test_examples", NUM_TEST_EXAMPLES.value)
    checks.positive("num_labels", NUM_LABELS.value)
    if not SAMPLE_SIZES.value:
        raise checks.UserError("`sample_sizes` must name one or more sizes, got none")
    return {
        Readout.TARGET_LOGPROB: _ascending("sample_sizes", SAMPLE_SIZES.value, task),
        Readout.LABEL_LOGITS: _ascending("label_sample_sizes", LABEL_SAMPLE_SIZES.value, task),
    }


def _ascending(name: str, texts: Sequence[str], task: Task) -> list[int]:
    sizes = [*cli.whole_numbers(name, texts)]
    if sizes != sorted(set(sizes)) or (sizes and not 2 <= sizes[0] <= sizes[-1] <= len(task.train)):
        raise checks.UserError(
            f"`{name}` must ascend from 2 or more to at most {len(task.train)} (the training "
            f"examples of {task.name}), got {sizes}"
        )
    return sizes


def _kernels(
    name: str, task: Task, config: MeasurementConfig, readouts: dict[Readout, list[int]]
) -> Iterator[dict[str, Any]]:
    """One row per read-out and sample size of one candidate."""
    candidate = load_candidate(name)
    measurement = Measurement(candidate, task, config=config)
    # the test set in its own nested order, encoded as training examples are
    held_out = Measurement(candidate, dataclasses.replace(task, train=task.test), config=config)
    test = held_out.subset(NUM_TEST_EXAMPLES.value)
    for readout, sizes in readouts.items():
        if not sizes:
            continue
        train = measurement.subset(sizes[-1])
        tokens = common_first_tokens(
            train, NUM_LABELS.value, shift=not candidate.is_encoder_decoder
        )
        labels = tokens if readout is Readout.LABEL_LOGITS else ()
        kernel = candidate_ntk(
            candidate,
            {key: np.concatenate([train[key], test[key]]) for key in train},
            readout=readout,
            label_tokens=labels,
            block_size=BLOCK,
        )
        for n in sizes:
            yield {
                "candidate": name,
                "readout": readout.value,
                "num_examples": n,
                **quantities(kernel, n, num_train=sizes[-1]),
                **_flops(candidate, n, len(test["labels"]), train, readout, labels),
            }


def quantities(kernel: CandidateNtk, n: int, *, num_train: int) -> dict[str, Any]:
    r"""A summary of the kernel on its first n training rows; test rows follow ``num_train``.

    .. math::
        \tfrac1m |r_t(x)|^2, \qquad
        \log \sum_i \Big(\sum_j e^{-\eta t \Theta_{ij}} r_j\Big)^2 \text{ (elementwise)}
    """
    rows, test = slice(0, n), slice(num_train, kernel.num_examples)
    theta, residual = kernel.theta[rows, rows], kernel.residual[rows]
    spectrum = ntk_spectrum(theta, residual)
    largest = float(spectrum.eigenvalues[-1])
    test_residual = kernel.residual[test]
    moved = ntk_test_residual(
        kernel.theta[test, rows],
        theta,
        test_residual,
        residual,
        learning_rate=1.0 / largest,
        steps=SCALED_TIMES,
    )
    flat, r = np.asarray(flat_kernel(theta), np.float64), np.asarray(residual, np.float64).ravel()
    return {
        "eigenvalues": spectrum.eigenvalues.tolist(),
        "projections": spectrum.squared_projections.tolist(),
        "trace": float(np.trace(flat)),
        "mean_gradient_squared": float(flat.mean()),
        "test_mean_square": np.mean(moved**2, axis=tuple(range(1, moved.ndim))).tolist(),
        "elementwise_log_loss": elementwise_log_loss(flat / largest, r, SCALED_TIMES).tolist(),
    }


def elementwise_log_loss(theta: np.ndarray, residual: np.ndarray, times: np.ndarray) -> np.ndarray:
    r"""Logarithm of F with the exponential taken entry by entry, at each time :math:`\eta t`.

    Logarithms, because negative entries of the kernel overflow.
    """
    logs = []
    for time in times:
        rows, signs = scipy.special.logsumexp(
            -time * theta, axis=1, b=np.broadcast_to(residual, theta.shape), return_sign=True
        )
        del signs  # squared
        logs.append(scipy.special.logsumexp(2.0 * rows))
    return np.array(logs)


def _flops(candidate: Candidate, n: int, m: int, batch: Batch, readout: Readout, labels) -> dict:
    """Operations of the kernel of n examples, and of n + m, by the cost model."""
    length = batch["input_ids"].shape[1]
    flops = [
        estimate_ntk_cost(
            candidate, (count, length), readout=readout, label_tokens=labels, timed=False
        ).flops
        for count in (n, n + m)
    ]
    return {"flops": flops[0], "flops_with_test": flops[1]}


def _key(row: dict[str, Any]) -> dict[str, Any]:
    return {k: row[k] for k in ("candidate", "readout", "num_examples")}


def _spectrum_row(row: dict[str, Any]) -> dict[str, Any]:
    """Six digits: rounding the kernel to float32 has moved the seventh."""
    listed = {k: " ".join(f"{x:.6g}" for x in row[k]) for k in ("eigenvalues", "projections")}
    return {**_key(row), **listed}


def _flow_rows(row: dict[str, Any]) -> Iterator[dict[str, Any]]:
    columns = zip(SCALED_TIMES, row["test_mean_square"], row["elementwise_log_loss"], strict=True)
    for time, mean_square, log_loss in columns:
        values = {"test_mean_square": mean_square, "elementwise_log_loss": log_loss}
        yield {
            **_key(row),
            "scaled_time": f"{time:.6g}",
            **{k: f"{v:.6g}" for k, v in values.items()},
        }


def _kernel_row(row: dict[str, Any]) -> dict[str, Any]:
    columns = ("trace", "mean_gradient_squared", "flops", "flops_with_test")
    values = {"largest_eigenvalue": row["eigenvalues"][-1], **{k: row[k] for k in columns}}
    return {**_key(row), **{k: f"{v:.6g}" for k, v in values.items()}}


if __name__ == "__main__":
    cli.run(main)
