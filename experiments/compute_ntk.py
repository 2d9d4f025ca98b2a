r"""Computes the exact neural tangent kernel of a candidate at its pretrained weights.

    python -m experiments.compute_ntk --candidate=zoo/gpt2-xs --task=sotu \
        --num_examples=64 --readout=target_logprob --output_dir=out/ntk

--output_dir receives ntk.npy, the kernel of the first examples of the nested order, and
ntk.json: read-out, outputs f0 and targets y (so that F is defined), eigenvalues, smallest
eigenvalue, asymmetry.  A kernel that is there already is not computed again.

About 20 s for a bundled candidate on 2 cores at 64 examples, compilation included.
"""

from collections.abc import Sequence

from absl import flags

from experiments import cli, measuring
from experiments.progress import Progress
from experiments.run_folder import RunFolder
from lensllm_jax import checks
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.selection.measurement import Measurement

flags.DEFINE_alias("candidate", "candidates")
flags.DEFINE_alias("num_examples", "num_kernel_examples")


def main(argv: Sequence[str]) -> None:
    """Computes the kernel."""
    del argv
    names = measuring.candidate_names()
    if len(names) != 1:
        raise checks.UserError(f"`candidate` must be one, got {', '.join(names)}")
    config = measuring.measurement_config()
    task = load_task(measuring.TASK.value)
    measuring.check_kernel_examples(task, config)
    candidate = measuring.load_checked(names[0], config)
    settings = measuring.task_settings(names, task, config)
    folder = RunFolder.open(measuring.OUTPUT_DIR.value, settings)
    with Progress(total=1.0, quiet=measuring.QUIET.value) as progress:
        measurement = Measurement(candidate, task, config=config)
        spectrum = measuring.remember_kernel(measurement, folder, ".", progress)
        largest = spectrum.eigenvalues.max()
        progress.finish(1.0, f"{candidate.name}: largest eigenvalue {largest:.4g}")
    print(folder.path / "ntk.npy")


if __name__ == "__main__":
    cli.run(main)
