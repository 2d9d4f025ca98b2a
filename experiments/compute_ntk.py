r"""Computes the exact neural tangent kernel of a candidate at its pretrained weights.

    python -m experiments.compute_ntk --candidate=zoo/gpt2-xs --task=sotu \
        --num_examples=64 --readout=target_logprob --output_dir=out/ntk

--output_dir receives ntk.npy, the kernel of the first examples of the nested order, and
ntk.json: read-out, outputs f0 and targets y (so that F is defined), eigenvalues, smallest
eigenvalue, asymmetry; report.html shows them.  A kernel that is there already is not computed
again; with --store_dir neither is a tile of it, so that a long run that was killed resumes.
Several processes, on machines that share --store_dir, share the tiles:

    python -m experiments.compute_ntk ... --store_dir=/shared/tiles --num_processes=2 \
        --process_id=0 --coordinator_address=10.0.0.1:4321   # and the same with --process_id=1

About 20 s for a bundled candidate on 2 cores at 64 examples, compilation included.
"""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import numpy as np
from absl import flags

from experiments.common import cli
from experiments.common.measurement_flags import measurement_flags
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.pool import check_kernel_examples, describe_pool
from lensllm_jax.ntk import store
from lensllm_jax.report.html import to_html
from lensllm_jax.report.kernel import kernel_report
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.resume import remember_kernel, task_settings
from lensllm_jax.runs.run_folder import RUN

FLAGS = measurement_flags()
flags.DEFINE_alias("candidate", "candidates")
flags.DEFINE_alias("num_examples", "num_kernel_examples")
PARAMETERS = flags.DEFINE_string(
    "parameters", None,
    "The kernel of these parameters alone: globs of paths, such as *embed*,*/bias.",
)  # fmt: skip
STORE_DIR = flags.DEFINE_string("store_dir", None, "Folder that keeps each finished tile.")
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes that share --store_dir.")
PROCESS_ID = flags.DEFINE_integer("process_id", 0, "Which of them this is, from 0.")
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "Host and port at which the others reach process 0."
)
KERNEL_BLOCK_SIZE = flags.DEFINE_integer(
    "kernel_block_size", MeasurementConfig.kernel_block_size, "Examples of a tile's side."
)


def main(_: Sequence[str]) -> None:
    """Computes the kernel."""
    join_processes()
    names = FLAGS.candidates()
    if len(names) != 1:
        raise checks.UserError(f"`candidate` must be one, got {', '.join(names)}")
    config = dataclasses.replace(
        FLAGS.config(), kernel_block_size=KERNEL_BLOCK_SIZE.value,
        kernel_parameters=PARAMETERS.value,
    )  # fmt: skip
    (name,) = names
    pool = describe_pool(names)
    task = FLAGS.load_task(pool)
    check_kernel_examples(task, config.num_kernel_examples)
    settings = task_settings(pool, task, config)
    folder = FLAGS.open_folder(settings, task, pool, shared=NUM_PROCESSES.value > 1)
    with Progress(total=1.0, quiet=FLAGS.quiet) as progress:
        _show_tiles(progress)
        progress.at(0.0, f"{name}: kernel")
        spectrum = remember_kernel(
            folder, ".", lambda: Measurement(load_candidate(name), task, config=config),
            store=STORE_DIR.value,
        )  # fmt: skip
        largest = spectrum.eigenvalues.max()
        rest = progress.total - progress.done  # nothing, where tiles were counted
        progress.finish(rest, f"{name}: largest eigenvalue {largest:.4g}")
    theta = np.load(folder.path / "ntk.npy")
    run, summary = folder.read_json(RUN), folder.read_piece("ntk.json")
    report = kernel_report(name, theta, spectrum, run, summary)
    folder.write_text("report.html", to_html(report))
    print(folder.path / "ntk.npy")


def join_processes() -> None:
    """Makes this process one of several, before JAX looks for devices."""
    if NUM_PROCESSES.value == 1:
        return
    if STORE_DIR.value is None or COORDINATOR_ADDRESS.value is None:
        raise checks.UserError(
            f"`num_processes` must be 1 without --store_dir and --coordinator_address, got "
            f"{NUM_PROCESSES.value}"
        )
    if not 0 <= PROCESS_ID.value < NUM_PROCESSES.value:
        raise checks.UserError(
            f"`process_id` must be from 0 to {NUM_PROCESSES.value - 1}, got {PROCESS_ID.value}"
        )
    jax.distributed.initialize(COORDINATOR_ADDRESS.value, NUM_PROCESSES.value, PROCESS_ID.value)


def _show_tiles(progress: Progress) -> None:
    """Counts the tiles that the store reports; all of them are the total of ``progress``."""

    def count(record: logging.LogRecord) -> bool:
        tile = getattr(record, "tile", None)
        if tile is None:
            return True
        share = progress.total / tile.total
        if tile.computed:
            progress.finish(share, f"tile {tile.done} of {tile.total}")
        else:
            progress.skip(share)
        return False  # shown here and nowhere else

    store.logger.setLevel(logging.INFO)
    store.logger.addFilter(count)


if __name__ == "__main__":
    cli.run(main)
