r"""How far fine-tuning moves a candidate's kernel, and which layers carry it.

    python -m experiments.kernel_change --candidates=zoo/gpt2-xs,zoo/t5-xs --task=pydoc \
        --num_examples=128 --size=800 --output_dir=out/kernel-change

The exact kernel of the mean target log-probability on the first --num_examples training examples
of the nested order, before and after fine-tuning on the first --size (of which they are a part, if
--size is at least as many).  --output_dir receives the kernels and fine-tuned weights, and

* <task>_kernel_change.csv: a row per candidate with the relative change of the kernel, its
  alignment, the same after centring, and the velocity, 1 - alignment per optimizer step
  (lensllm_jax/ntk/velocity.py);
* <task>_kernel_states.csv: eigenvalues and squared projections of the residual, before and after;
* <task>_kernel_layers.csv: the share of each layer in the kernel's trace, before and after: blocks
  by their number, embeddings, heads and final norms by their names.

The same command resumes, also inside a fine-tune or a kernel.
"""

import re
import shutil
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from jaxtyping import Float

from experiments.common import cli
from experiments.common.flags import define_num_examples
from experiments.common.measurement_flags import measurement_flags
from experiments.common.stored_kernels import has_kernel, read_kernel, write_kernel
from lensllm_jax import checks
from lensllm_jax.data.task import Task
from lensllm_jax.measurement.jobs import WHOLE, Job, Measurer
from lensllm_jax.measurement.pool import describe_pool
from lensllm_jax.ntk.candidate import candidate_ntk
from lensllm_jax.ntk.loss import ntk_spectrum
from lensllm_jax.ntk.readout import Readout, ReadoutFn
from lensllm_jax.ntk.velocity import kernel_alignment, relative_change
from lensllm_jax.runs import terminal
from lensllm_jax.runs.resume import Cells, task_settings
from lensllm_jax.runs.run_folder import file_name_of
from lensllm_jax.theory.blocks import weight_blocks
from lensllm_jax.typing import Array, Batch, Params

FLAGS = measurement_flags()
NUM_EXAMPLES = define_num_examples(128, "Examples of the kernels.")
SIZE = flags.DEFINE_integer("size", 800, "Examples of the fine-tune.")

STATES = ("before", "after")
BLOCK = 32  # examples of a tile's side
# of a kernel, per fine-tune: of SmolLM2-135M with 128 and 800 examples both take as long as that
KERNEL_WORK = 0.5


def main(_: Sequence[str]) -> None:
    """Measures every candidate that is not finished, then writes the three tables."""
    run = FLAGS.run()
    pool = describe_pool(run.names)
    task = run.load_task(pool)
    checked_sizes(task)
    settings = {
        **task_settings(pool, task, run.measurement),
        "num_examples": NUM_EXAMPLES.value,
        "size": SIZE.value,
    }
    folder = run.open_folder(settings, task, pool)
    configs = run.fitted(task, pool, folder)
    change, spectra, layers = [], [], []
    measurer = Measurer(task)
    jobs = {
        name: Job(
            name, one.num_params, SIZE.value, configs[name],
            path=folder.path / f"tuned/{file_name_of(name)}.json",
            checkpoint_seconds=run.checkpoint_seconds, keep=WHOLE,
        )
        for name, one in pool.items()
    }  # fmt: skip
    work = sum(job.work for job in jobs.values()) * (1 + 2 * KERNEL_WORK)
    with run.progress(total=work) as progress:
        cells = Cells(folder, progress)
        for name, job in jobs.items():
            steps = _remember_states(job, measurer, cells)
            kernels = [read_kernel(folder, _stem(name, state)) for state in STATES]
            thetas = (theta for theta, _ in kernels)
            change.append({"candidate": name, **change_row(*thetas, steps=steps)})
            for state, (theta, residual) in zip(STATES, kernels, strict=True):
                key = {"candidate": name, "state": state}
                spectra.append({**key, **_spectrum_row(theta, residual)})
                trace = folder.read_piece(f"{_stem(name, state)}.json")["trace"]
                layers += [{**key, **row} for row in layer_rows(trace)]
    stem = file_name_of(task.name)
    folder.write_rows(f"{stem}_kernel_change.csv", change)
    folder.write_rows(f"{stem}_kernel_states.csv", spectra)
    folder.write_rows(f"{stem}_kernel_layers.csv", layers)
    _show(change)
    print(f"written to {folder.path}")


def checked_sizes(task: Task) -> None:
    """Refuses more examples than the task has."""
    for name, count in (("num_examples", NUM_EXAMPLES.value), ("size", SIZE.value)):
        if not 0 < count <= len(task.train):
            raise checks.UserError(
                f"`{name}` must be positive and at most {len(task.train)} (the training examples "
                f"of {task.name}), got {count}"
            )


def _stem(name: str, state: str) -> str:
    return f"kernels/{file_name_of(name)}/{state}"


def _remember_states(job: Job, measurer: Measurer, cells: Cells) -> int:
    """Kernels of both states; returns the steps of the fine-tune between them."""
    before, after = STATES
    _remember_kernel(job, before, job.name, measurer, cells)
    tuned = cells.measured(job, measurer)
    _remember_kernel(job, after, str(job.kept), measurer, cells)
    return int(tuned["best_step"])


def _remember_kernel(job: Job, state: str, source: str, measurer: Measurer, cells: Cells) -> None:
    """The kernel of ``source``, a candidate or its tuned weights."""
    work, stem = KERNEL_WORK * job.work, _stem(job.name, state)
    tiles = cells.folder.path / f"{stem}.tiles"
    if has_kernel(cells.folder, stem):
        shutil.rmtree(tiles, ignore_errors=True)  # left by a kill once the kernel was written
        cells.progress.skip(work)
        return
    message = f"{job.name}: kernel {state} fine-tuning"
    cells.progress.at(0.0, message)
    measurement = measurer.measurement(source, job.config)
    candidate, batch = measurement.candidate, measurement.kernel_texts(NUM_EXAMPLES.value)
    kernel = candidate_ntk(candidate, batch, block_size=BLOCK, store=tiles)
    f = ReadoutFn(candidate.apply_fn, Readout.TARGET_LOGPROB, not candidate.is_encoder_decoder)
    trace = layer_traces(f, candidate.params, batch)
    write_kernel(cells.folder, stem, kernel, trace=trace)
    shutil.rmtree(tiles)
    cells.progress.finish(work, message)


def layer_traces(f: ReadoutFn, params: Params, batch: Batch) -> dict[str, float]:
    """Each layer's part of the kernel's trace: squared gradients, summed over examples."""

    def squares(params: Params, example: Batch) -> list[Array]:
        one = {key: row[None] for key, row in example.items()}
        gradients = jax.tree.leaves(jax.grad(lambda p: f(p, one)[0])(params))
        return [jnp.sum(g**2, axis=tuple(range(1, g.ndim))) if g.ndim else g**2 for g in gradients]

    mapped = jax.jit(lambda params, rows: jax.lax.map(partial(squares, params), rows))
    rows = {key: jnp.asarray(value) for key, value in batch.items()}
    by_leaf = [np.asarray(of_leaf, np.float64).sum(0) for of_leaf in mapped(params, rows)]
    traces: dict[str, float] = {}
    for block in weight_blocks(params, stacked=("blocks",)):
        of_leaf = by_leaf[block.leaf]
        part = of_leaf.sum() if block.layer is None else of_leaf[block.layer]
        layer = layer_of(block.name)
        traces[layer] = traces.get(layer, 0.0) + float(part)
    return traces


def layer_of(block: str) -> str:
    """The layer that a weight block belongs to.

    Example:
        >>> layer_of("params/decoder/blocks/mlp/kernel[3]"), layer_of("params/embed/embedding")
        ('decoder block 3', 'embed')
    """
    path = block.removeprefix("params/")
    if match := re.fullmatch(r"(.*?)/?blocks/.*\[(\d+)\]", path):
        return f"{match[1]} block {match[2]}".strip()
    return path.rpartition("/")[0] or path


def layer_rows(traces: dict[str, float]) -> Iterator[dict[str, Any]]:
    """Shares that sum to 1."""
    total = sum(traces.values())
    for layer, trace in traces.items():
        yield {"layer": layer, "share": f"{trace / total:.6g}"}


def change_row(
    before: Float[np.ndarray, "n n"], after: Float[np.ndarray, "n n"], *, steps: int
) -> dict[str, Any]:
    """How far the kernel moved in ``steps`` optimizer steps."""
    alignment = kernel_alignment(after, before)
    values = {
        "trace_ratio": float(np.trace(after) / np.trace(before)),
        "relative_change": relative_change(after, before),
        "alignment": alignment,
        "centred_alignment": kernel_alignment(after, before, centred=True),
        "velocity": (1.0 - alignment) / max(steps, 1),
    }
    return {"steps": steps, **{key: f"{value:.6g}" for key, value in values.items()}}


def _spectrum_row(theta: np.ndarray, residual: np.ndarray) -> dict[str, str]:
    spectrum = ntk_spectrum(theta, residual)
    columns = {"eigenvalues": spectrum.eigenvalues, "projections": spectrum.squared_projections}
    return {key: " ".join(f"{x:.6g}" for x in values) for key, values in columns.items()}


def _show(rows: Sequence[dict[str, Any]]) -> None:
    columns = ("steps", "trace_ratio", "relative_change", "alignment", "centred_alignment")
    shown = terminal.table(
        "The kernel after fine-tuning, compared with before",
        left=["candidate"],
        right=[column.replace("_", " ") for column in columns],
    )
    for row in rows:
        shown.add_row(row["candidate"], *(str(row[column]) for column in columns))
    terminal.show(shown)


if __name__ == "__main__":
    cli.run(main)
