"""Kernel of a candidate at its pretrained weights, in a folder that resumes.

``python -m experiments.compute_ntk --help`` says what ``output_dir`` receives.
"""

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.measurement.measurement import Measurement
from lensllm_jax.measurement.pool import check_kernel_examples, describe_pool
from lensllm_jax.ntk import store
from lensllm_jax.report.html import to_html
from lensllm_jax.report.kernel import kernel_report
from lensllm_jax.runs.executors import ExecutorConfig, RayTiles
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.results import ComputedKernel
from lensllm_jax.runs.resume import remember_kernel, task_settings
from lensllm_jax.runs.run_folder import RUN
from lensllm_jax.runs.settings import read_settings

TILE_EXECUTORS = ("serial", "ray")


@dataclasses.dataclass(frozen=True)
class KernelSettings:
    """What a kernel takes beside the settings of every run."""

    store_dir: str | Path | None = None  # folder that keeps each finished tile
    num_processes: int = 1  # that share it
    process_id: int = 0  # which of them this is
    coordinator_address: str | None = None  # host and port of process 0
    executor: str = "serial"  # where tiles are computed
    ray_address: str = "127.0.0.1:6379"  # host:port of the Ray head
    ray_threads: int = 1  # cores of a tile under the executor ray

    def map_tiles(self) -> RayTiles | None:
        """What computes the tiles, if not this process.

        Raises:
            UserError: naming the setting at fault.
        """
        checks.one_of("executor", self.executor, TILE_EXECUTORS)
        if self.executor == "serial":
            return None
        if self.store_dir is None:
            raise checks.UserError(
                f"`executor` must be serial without --store_dir, got {self.executor}"
            )
        executor = ExecutorConfig(
            self.executor, ray_address=self.ray_address, ray_threads=self.ray_threads
        )
        executor.check()
        return RayTiles(executor)

    def join_processes(self) -> None:
        """Makes this process one of several, before JAX looks for devices.

        Raises:
            UserError: naming the setting at fault.
        """
        if self.num_processes == 1:
            return
        if self.store_dir is None or self.coordinator_address is None:
            raise checks.UserError(
                f"`num_processes` must be 1 without --store_dir and --coordinator_address, got "
                f"{self.num_processes}"
            )
        if not 0 <= self.process_id < self.num_processes:
            raise checks.UserError(
                f"`process_id` must be from 0 to {self.num_processes - 1}, got {self.process_id}"
            )
        jax.distributed.initialize(self.coordinator_address, self.num_processes, self.process_id)


def compute_ntk(
    candidate: str,
    task: str | Path | Task = "pydoc",
    *,
    output_dir: str | Path,
    on_progress: Callable[[float, str], object] | None = None,
    **settings: Any,
) -> ComputedKernel:
    """Computes the exact kernel of a candidate on a task's first training examples.

    Args:
        candidate: as ``load_candidate`` takes it.
        task: as ``load_task`` takes it, or one that is loaded.
        output_dir: folder of the run; a kernel that is there is not computed again.
        on_progress: called with the share of the work that is done and a message, in place of the
            bar.
        **settings: those of ``python -m experiments.compute_ntk --help``, as Python values:
            ``num_kernel_examples=64``, ``readout="loss"``, ``store_dir="tiles"``.

    Returns:
        The kernel (n, n), squared units of the read-out, and its spectrum; a notebook shows this.

    Raises:
        UserError: naming the setting at fault, before anything is computed.

    Example:
        >>> kernel = compute_ntk("zoo/gpt2-xs", "sotu", output_dir="out")  # doctest: +SKIP
        >>> kernel.theta.shape  # doctest: +SKIP
        (64, 64)
    """
    given: dict[str, Any] = {"candidates": candidate, "task": task, "output_dir": output_dir}
    given |= {"on_progress": on_progress, **settings}
    run, wanted = read_settings(KernelSettings, given, call="lensllm_jax.compute_ntk")
    wanted.join_processes()
    map_tiles = wanted.map_tiles()
    if len(run.names) != 1:
        raise checks.UserError(f"`candidate` must be one, got {', '.join(run.names)}")
    (name,), config = run.names, run.measurement
    pool = describe_pool(run.names)
    whole = run.load_task(pool)
    check_kernel_examples(whole, config.num_kernel_examples)
    decided = task_settings(pool, whole, config)
    folder = run.open_folder(decided, whole, pool, shared=wanted.num_processes > 1)
    with run.progress(total=1.0) as progress, _tiles_shown(progress):
        progress.at(0.0, f"{name}: kernel")
        spectrum = remember_kernel(
            folder, ".", lambda: Measurement(load_candidate(name), whole, config=config),
            store=wanted.store_dir, map_tiles=map_tiles,
        )  # fmt: skip
        largest = spectrum.eigenvalues.max()
        rest = progress.total - progress.done  # nothing, where tiles were counted
        progress.finish(rest, f"{name}: largest eigenvalue {largest:.4g}")
    theta = np.load(folder.path / "ntk.npy")
    summary = folder.read_piece("ntk.json")
    report = kernel_report(name, theta, spectrum, folder.read_json(RUN), summary)
    folder.write_text("report.html", to_html(report))
    return ComputedKernel(name, theta, spectrum, summary, folder.path, report)


@contextlib.contextmanager
def _tiles_shown(progress: Progress) -> Iterator[None]:
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

    level = store.logger.level
    store.logger.setLevel(logging.INFO)
    store.logger.addFilter(count)
    try:
        yield
    finally:
        store.logger.removeFilter(count)
        store.logger.setLevel(level)
