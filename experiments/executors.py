r"""Executors: where the cells of a grid are measured, on this machine or on a Ray cluster.

A cell (a candidate on a subset) depends on nothing but its job, so that any process may measure
it, in any order.  ``local`` keeps processes on this machine, each pinned to cores of its own
before JAX starts its threads: processes times threads never exceed the cores.  ``ray`` hands the
jobs to an existing cluster, which gives those of a lost node to another.  The process that asked
writes the results.

Example:
    >>> shares({0, 1, 2, 3, 4}, 2)
    ((0, 1), (2, 3))
"""

import concurrent.futures
import copyreg
import ctypes
import multiprocessing
import multiprocessing.queues
import os
import signal
import socket
import time
import types
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple

from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.selection.measurement import Measurement, MeasurementConfig

# what ends one cell and not the run
FAILURES = (FloatingPointError, OSError, checks.UserError)
CONNECT_SECONDS = 5.0
RETRIES = 5  # of a cell whose node was lost
PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent dies


def _read_only(content: Mapping) -> types.MappingProxyType:
    return types.MappingProxyType(content)


# a task holds a read-only mapping, which pickle does not know how to send
copyreg.pickle(types.MappingProxyType, lambda mapping: (_read_only, (dict(mapping),)))


class Job(NamedTuple):
    """One cell that is to be measured."""

    name: str  # of the candidate
    size: int  # training examples; 0 is before fine-tuning
    unfinished: Path | None = None  # where its checkpoint is
    every_seconds: float = 60.0  # between two checkpoints


class Done(NamedTuple):
    """What became of a job."""

    job: Job
    cell: dict[str, Any] | None  # None if it failed
    reason: str = ""  # of the failure, one line


_latest: dict[tuple, Measurement] = {}  # of this process: its steps are compiled once


def _measurement(name: str, task: Task, config: MeasurementConfig) -> Measurement:
    """That of the latest candidate, or a new one in its place."""
    key = (name, task.fingerprint, config)
    if key not in _latest:
        _latest.clear()
        _latest[key] = Measurement(load_candidate(name), task, config=config)
    return _latest[key]


def measure_cell(job: Job, task: Task, config: MeasurementConfig) -> Done:
    """Measures a cell in this process.

    Args:
        job: which.
        task: the text.
        config: the settings of the run.

    Returns:
        Its result, or the reason why there is none.
    """
    try:
        measurement = _measurement(job.name, task, config)
        if job.size == 0:
            return Done(job, {"test_loss": measurement.zero_shot()})
        checkpoint = job.unfinished and Checkpoint(job.unfinished, every_seconds=job.every_seconds)
        start = time.monotonic()
        result = measurement.fine_tune(job.size, checkpoint=checkpoint or None).result
        return Done(job, {**result._asdict(), "seconds": round(time.monotonic() - start, 3)})
    except FAILURES as error:
        return Done(job, None, " ".join(str(error).split()))


def shares(cores: Set[int], processes: int) -> tuple[tuple[int, ...], ...]:
    """The cores of each process: equally many, none twice.

    Args:
        cores: that may be used.
        processes: how many share them.

    Returns:
        Cores of each; those that do not divide are left idle.

    Raises:
        UserError: if there are more processes than cores.
    """
    checks.positive("processes", processes)
    if processes > len(cores):
        raise checks.UserError(
            f"`processes` must be at most {len(cores)} (the cores of this process), got {processes}"
        )
    each, ordered = len(cores) // processes, sorted(cores)
    return tuple(tuple(ordered[i * each : (i + 1) * each]) for i in range(processes))


def _pin(waiting: "multiprocessing.queues.SimpleQueue[tuple[int, ...]]") -> None:
    """Takes a share of the cores and dies with the parent; runs before JAX makes threads."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, waiting.get())


def run_local(
    jobs: Sequence[Job], task: Task, config: MeasurementConfig, *, processes: int
) -> Iterator[Done]:
    """Measures cells in processes of this machine.

    Args:
        jobs: the cells.
        task: the text.
        config: the settings of the run.
        processes: how many at once, each with an equal share of the cores.

    Yields:
        Each cell as it ends.

    Raises:
        UserError: if there are more processes than cores.
    """
    context = multiprocessing.get_context("spawn")
    waiting = context.SimpleQueue()
    for share in shares(os.sched_getaffinity(0), processes):
        waiting.put(share)
    with concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_pin, initargs=(waiting,)
    ) as pool:
        futures = {pool.submit(measure_cell, job, task, config): job for job in jobs}
        for future in concurrent.futures.as_completed(futures):
            try:
                yield future.result()
            except concurrent.futures.process.BrokenProcessPool:
                yield Done(futures[future], None, "a process was killed: the same command resumes")


def run_ray(
    jobs: Sequence[Job], task: Task, config: MeasurementConfig, *, address: str, threads: int
) -> Iterator[Done]:
    """Measures cells on an existing Ray cluster; those of a lost node are measured again.

    Args:
        jobs: the cells; their checkpoints are not used, nodes need share no disk.
        task: the text.
        config: the settings of the run.
        address: host:port of the head.
        threads: cores of a cell.

    Yields:
        Each cell as it ends.

    Raises:
        UserError: if Ray is not installed or the cluster does not answer.
    """
    check_address(address)
    try:
        import ray
    except ImportError as error:
        raise checks.UserError(
            "`executor` ray needs Ray: pip install 'lensllm-jax[ray]'"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address) from error
    try:
        remote = ray.remote(num_cpus=threads, max_retries=RETRIES)(measure_cell)
        shared = ray.put(task)
        waiting = {remote.remote(job._replace(unfinished=None), shared, config): job
                   for job in jobs}  # fmt: skip
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                yield ray.get(ready)
            except ray.exceptions.RayError as error:
                yield Done(job, None, " ".join(str(error).split()))
    finally:
        ray.shutdown()


def check_address(address: str) -> None:
    """Refuses an address where nothing listens, within seconds.

    Args:
        address: host:port.

    Raises:
        UserError: if it has another form or does not answer.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        raise checks.UserError(f"`ray_address` must be host:port of a Ray head, got {address!r}")
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _unreachable(address) from error


def _unreachable(address: str) -> checks.UserError:
    return checks.UserError(
        f"`ray_address` must be of a running Ray cluster, got {address!r}, which does not answer: "
        "start one with `ray start --head`"
    )
