r"""Measures the test loss of candidates after fine-tuning on each of several subset sizes.

    python -m experiments.finetune_grid --candidates=zoo --task=sotu \
        --sizes=0,200,400,800,1600,3200,6400 --output_dir=out/grid-sotu

--output_dir receives losses.csv in the public table format (which rank_curves and
lensllm_jax.read_loss_table read) and ledger.csv: steps, tokens, seconds and FLOPs of every
fine-tune.  Subsets are nested prefixes of one order.  The same command goes on where a killed
run was cut off, also inside a fine-tune; one that was finished is not made again.  A fine-tune
that fails (a loss that is not finite, a damaged checkpoint, a full disk) leaves its cell empty and
its reason in failures.csv; the rest goes on, and the exit code is 1.

--executor=local measures cells in --processes pinned processes of this machine, ray on a cluster
that is there already (not seen to finish a grid yet).  XLA splits its sums by threads:
losses are equal bit for bit between executors whose cells have equally many cores, and differ by
about 1e-7 otherwise, so that a folder belongs to one number of threads.

On seven bundled candidates (GPT-2 and OPT) and 2 cores: 28 minutes for sizes 0 and 6400 of pydoc
(measured beside other work); expect about twice that for all of these sizes.
"""

import os
import sys
from collections.abc import Iterator, Mapping, Sequence

from absl import flags

from experiments import cli, executors, measuring
from experiments.progress import Progress
from experiments.run_folder import RunFolder
from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.selection.flops import training_flops
from lensllm_jax.selection.loss_table import write_loss_table
from lensllm_jax.selection.measurement import Measurement, MeasurementConfig

SIZES = flags.DEFINE_string(
    "sizes", "0,200,400,800,1600,3200,6400", "Subset sizes, comma-separated; 0 is zero-shot."
)
EXECUTOR = flags.DEFINE_enum(
    "executor", "serial", ["serial", "local", "ray"],
    "Where cells are measured: in this process, in processes of this machine, on a Ray cluster.",
)  # fmt: skip
PROCESSES = flags.DEFINE_integer("processes", 1, "Of --executor=local; they share the cores.")
RAY_ADDRESS = flags.DEFINE_string("ray_address", "127.0.0.1:6379", "host:port of the Ray head.")
RAY_THREADS = flags.DEFINE_integer("ray_threads", 1, "Cores of a cell under --executor=ray.")


def main(argv: Sequence[str]) -> int:
    """Measures the grid; the exit code says whether all of it."""
    del argv
    names = measuring.candidate_names()
    config = measuring.measurement_config()
    task = measuring.load_task_for(names)
    sizes = sizes_of(SIZES.value, task)
    check_executor()
    num_params = measuring.check_candidates(names, config)
    settings = {
        **measuring.task_settings(names, task, config), "sizes": list(sizes), **threads_elsewhere()
    }  # fmt: skip
    folder = RunFolder.open(measuring.OUTPUT_DIR.value, settings)
    losses: dict[str, dict[int, float]] = {}
    families, rows = {}, []
    failures: list[dict] = []
    work = measuring.total_work(num_params, sizes, config)
    with Progress(total=work, quiet=measuring.QUIET.value) as progress:
        failed = measure_elsewhere(names, sizes, task, config, folder, progress)
        failures += failed
        for name in names:
            candidate = load_candidate(name)
            families[name] = candidate.family.name
            measurement = Measurement(candidate, task, config=config)
            cells = measure(
                measurement, remaining_sizes(name, sizes, failed), folder, progress, failures
            )
            losses[name] = {size: cell["test_loss"] for size, cell in cells.items()}
            rows += ledger_rows(measurement, cells, config)
    folder.write_rows("failures.csv", failures)
    for failure in failures:
        print("failed: {candidate}, {size} examples: {reason}".format(**failure), file=sys.stderr)
    if any(losses.values()):
        table = measuring.loss_table(names, losses, num_params, families, task)
        write_loss_table(table, folder.path / "losses.csv")
        folder.write_rows("ledger.csv", rows)
        print((folder.path / "losses.csv").read_text(), end="")
    return 1 if failures else 0


def check_executor() -> None:
    """Refuses an executor that cannot run, before anything is written."""
    checks.positive("ray_threads", RAY_THREADS.value)
    if EXECUTOR.value == "local":
        executors.shares(os.sched_getaffinity(0), PROCESSES.value)
    if EXECUTOR.value == "ray":
        executors.check_address(RAY_ADDRESS.value)


def threads_elsewhere() -> dict[str, int]:
    """What --executor adds to the settings of a run: the cores of a cell."""
    if EXECUTOR.value == "local":
        return {"threads": len(executors.shares(os.sched_getaffinity(0), PROCESSES.value)[0])}
    return {"threads": RAY_THREADS.value} if EXECUTOR.value == "ray" else {}


def remaining_sizes(name: str, sizes: Sequence[int], failed: Sequence[dict]) -> list[int]:
    """Those that have not failed elsewhere."""
    gone = {f["size"] for f in failed if f["candidate"] == name}
    return [size for size in sizes if size not in gone]


def measure_elsewhere(
    names: Sequence[str], sizes: Sequence[int], task: Task, config: MeasurementConfig,
    folder: RunFolder, progress: Progress,
) -> list[dict]:  # fmt: skip
    """Has other processes fill the folder with the cells it lacks; returns what failed."""
    jobs = [
        executors.Job(
            name, size, (folder.path / measuring.cell_path(name, size)).with_suffix(".safetensors"),
            measuring.CHECKPOINT_SECONDS.value,
        )
        for name in names for size in sizes if not folder.has(measuring.cell_path(name, size))
    ]  # fmt: skip
    failed = []
    for done in run_elsewhere(jobs, task, config):
        path = measuring.cell_path(done.job.name, done.job.size)
        if done.cell is None:
            failed.append({"candidate": done.job.name, "size": done.job.size,
                           "reason": done.reason})  # fmt: skip
            continue
        folder.write_json(path, done.cell)
        loss = done.cell["test_loss"]
        progress.finish(0.0, f"{done.job.name}: {done.job.size} examples, test loss {loss:.4f}")
    return failed


def run_elsewhere(
    jobs: Sequence[executors.Job], task: Task, config: MeasurementConfig
) -> Iterator[executors.Done]:
    """The jobs as they end where --executor says; none if that is this process."""
    if not jobs or EXECUTOR.value == "serial":
        return iter(())
    if EXECUTOR.value == "local":
        return executors.run_local(jobs, task, config, processes=PROCESSES.value)
    return executors.run_ray(
        jobs, task, config, address=RAY_ADDRESS.value, threads=RAY_THREADS.value
    )


def sizes_of(text: str, task: Task) -> tuple[int, ...]:
    """The sizes that a flag names, ascending; refuses those that the task does not hold."""
    entries = cli.names(text)
    if not entries or not all(entry.isascii() and entry.isdigit() for entry in entries):
        raise checks.UserError(f"`sizes` must be whole numbers, comma-separated, got {text!r}")
    sizes = tuple(sorted({int(entry) for entry in entries}))
    if sizes[-1] > len(task.train):
        raise checks.UserError(
            f"`sizes` must be at most {len(task.train)} (the training examples of {task.name}), "
            f"got {sizes[-1]}"
        )
    return sizes


def measure(
    measurement: Measurement, sizes: Sequence[int], folder: RunFolder, progress: Progress,
    failures: list[dict],
) -> dict[int, Mapping]:  # fmt: skip
    """The cells of one candidate, by size; those that fail are added to ``failures``."""
    cells: dict[int, Mapping] = {}
    candidate = measurement.candidate
    for size in sizes:
        try:
            if size == 0:
                loss = measuring.remember_zero_shot(measurement, folder, progress)
                cells[0] = {"test_loss": loss}
            else:
                cells[size] = measuring.remember_cell(measurement, size, folder, progress)
        except executors.FAILURES as error:
            reason = " ".join(str(error).split())
            failures.append({"candidate": candidate.name, "size": size, "reason": reason})
            work = measuring.fine_tune_work(candidate.num_params, size, measurement.config)
            progress.drop(work)
    return cells


def ledger_rows(
    measurement: Measurement, cells: Mapping[int, Mapping], config: MeasurementConfig
) -> list[dict]:
    """One row a fine-tune: what it gave and what it took."""
    candidate = measurement.candidate
    return [
        {
            "candidate": candidate.name,
            "size": size,
            **{key: cell[key] for key in sorted(cell)},
            "flops": int(training_flops(candidate.num_params, cell["num_tokens"])),
            "learning_rate": config.learning_rate,
            "seed": config.seed,
        }
        for size, cell in cells.items()
        if size > 0
    ]


if __name__ == "__main__":
    cli.run(main)
