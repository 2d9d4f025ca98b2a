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

or the workers of a Ray cluster compute them for this process, again where a node is lost:

    python -m experiments.compute_ntk ... --store_dir=out/tiles --executor=ray \
        --ray_address=10.0.0.1:6379

About 20 s for a bundled candidate on 2 cores at 64 examples, compilation included.
"""

from collections.abc import Sequence

from absl import flags

from experiments.common import cli
from experiments.common.flags import define_executor
from experiments.common.measurement_flags import pretrained_flags
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.runs.compute_ntk import TILE_EXECUTORS, compute_ntk

FLAGS = pretrained_flags()
flags.DEFINE_alias("candidate", "candidates")
flags.DEFINE_alias("num_examples", "num_kernel_examples")
PARAMETERS = flags.DEFINE_string(
    "parameters", None,
    "Compute the kernel of these parameters alone: globs of paths, such as *embed*,*/bias.",
)  # fmt: skip
STORE_DIR = flags.DEFINE_string(
    "store_dir",
    None,
    "Folder that keeps each finished tile of the kernel, so that a killed run resumes.",
)
NUM_PROCESSES = flags.DEFINE_integer("num_processes", 1, "Processes that share --store_dir.")
PROCESS_ID = flags.DEFINE_integer(
    "process_id", 0, "Number of this process, from 0 to --num_processes - 1."
)
COORDINATOR_ADDRESS = flags.DEFINE_string(
    "coordinator_address", None, "host:port at which the other processes reach process 0."
)
EXECUTOR = define_executor(TILE_EXECUTORS, processes=False)
KERNEL_BLOCK_SIZE = flags.DEFINE_integer(
    "kernel_block_size",
    MeasurementConfig.kernel_block_size,
    "Examples per side of a tile: more is faster, and takes more memory.",
)


def main(_: Sequence[str]) -> None:
    """Computes the kernel."""
    given = FLAGS.values()
    kernel = compute_ntk(
        given.pop("candidates"), **given, kernel_block_size=KERNEL_BLOCK_SIZE.value,
        kernel_parameters=PARAMETERS.value,
        store_dir=STORE_DIR.value, num_processes=NUM_PROCESSES.value, process_id=PROCESS_ID.value,
        coordinator_address=COORDINATOR_ADDRESS.value, **EXECUTOR.values(),
    )  # fmt: skip
    print(kernel.folder / "ntk.npy")


if __name__ == "__main__":
    cli.run(main)
