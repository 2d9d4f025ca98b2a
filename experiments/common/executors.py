r"""Executors: where the cells of a grid are measured, on this machine or on a Ray cluster.

``serial`` is this process.  ``local`` keeps processes on this machine, each pinned to cores of
its own before JAX starts its threads: processes times threads never exceed the cores.  ``ray``
hands the jobs to an existing cluster, which gives those of a lost node to another; where nodes see
the run folder, a cell goes on there from its checkpoint, and elsewhere it starts again.  The
process that asked writes the results.

XLA splits its sums by its threads, and the last digits of a loss depend on how many there are.
``local`` fixes their number by the cores of a process, ``ray`` by the environment of a worker.

Example:
    >>> shares({0, 1, 2, 3, 4}, 2)
    ((0, 1), (2, 3))
"""

import concurrent.futures
import ctypes
import functools
import multiprocessing
import multiprocessing.queues
import os
import signal
import socket
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import NamedTuple

from absl import flags

from experiments.common.run_folder import RUN, RunFolder, sha256_of
from lensllm_jax import checks
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import CACHE_FOLDER, CACHE_SETTINGS
from lensllm_jax.measurement import jobs as cells
from lensllm_jax.measurement.jobs import Done, Job, Measurements, Told

EXECUTOR = flags.DEFINE_enum(
    "executor", "serial", ["serial", "local", "ray"],
    "Where cells are measured: in this process, in processes of this machine, on a Ray cluster.",
)  # fmt: skip
PROCESSES = flags.DEFINE_integer("processes", 1, "Of --executor=local; they share the cores.")
RAY_ADDRESS = flags.DEFINE_string("ray_address", "127.0.0.1:6379", "host:port of the Ray head.")
RAY_THREADS = flags.DEFINE_integer("ray_threads", 1, "Cores of a cell under --executor=ray.")

CONNECT_SECONDS = 5.0
RETRIES = 5  # of a cell whose node was lost
PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent dies


def check_flags() -> None:
    """Refuses an executor that cannot run, before anything is written.

    Raises:
        UserError: naming the flag at fault.
    """
    checks.positive("ray_threads", RAY_THREADS.value)
    if EXECUTOR.value == "local":
        shares(os.sched_getaffinity(0), PROCESSES.value)
    if EXECUTOR.value == "ray":
        check_address(RAY_ADDRESS.value)


def settings() -> dict[str, int]:
    """What --executor adds to the settings of a run.

    Returns:
        The cores of a cell, where it is measured elsewhere.
    """
    if EXECUTOR.value == "local":
        return {"threads": len(shares(os.sched_getaffinity(0), PROCESSES.value)[0])}
    return {"threads": RAY_THREADS.value} if EXECUTOR.value == "ray" else {}


def run(
    jobs: Sequence[Job], task: Task, folder: RunFolder, *,
    on_progress: Callable[[Job, Told], None],
) -> Iterator[Done]:  # fmt: skip
    """Measures cells where --executor says.

    Args:
        jobs: the cells, those of one candidate together.
        task: the text.
        folder: of the run, in which the jobs keep what is unfinished.
        on_progress: called as a cell goes on in this process.

    Yields:
        Each cell as it ends.

    Raises:
        UserError: if the executor cannot run.
    """
    if not jobs:
        return
    if EXECUTOR.value == "local":
        yield from run_local(jobs, task, processes=PROCESSES.value)
    elif EXECUTOR.value == "ray":
        mark, address = Mark.of(folder), RAY_ADDRESS.value
        yield from run_ray(jobs, task, mark, address=address, threads=RAY_THREADS.value)
    else:
        measurements = Measurements(task)
        for job in jobs:
            yield cells.attempt(job, measurements, on_progress=functools.partial(on_progress, job))


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
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all: the parent answers
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, waiting.get())


def run_local(jobs: Sequence[Job], task: Task, *, processes: int) -> Iterator[Done]:
    """Measures cells in processes of this machine.

    Args:
        jobs: the cells.
        task: the text.
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
        futures = {pool.submit(cells.attempt_here, job, task): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield _done(future, futures[future])
        except BaseException:  # Ctrl-C, or who asked has gone: cells would run on to their end
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _done(future: "concurrent.futures.Future[Done]", job: Job) -> Done:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        return Done(job, None, "a process was killed: the same command resumes")


class Mark(NamedTuple):
    """The file by which another machine tells that it sees the run folder."""

    path: Path  # absolute
    sha256: str

    @classmethod
    def of(cls, folder: RunFolder) -> "Mark":
        """The settings of the run, which no other folder holds at this path.

        Args:
            folder: of the run.

        Returns:
            The mark.
        """
        path = folder.path.resolve() / RUN
        return cls(path, sha256_of(path))

    def is_seen(self) -> bool:
        """Whether this machine has the file."""
        try:
            return sha256_of(self.path) == self.sha256
        except OSError:
            return False


def attempt_on_node(job: Job, task: Task, mark: Mark) -> Done:
    """``cells.attempt_here`` on a machine that may not see the run folder.

    Args:
        job: which; its checkpoint is used where the folder is seen, and left alone elsewhere.
        task: the text.
        mark: of the folder.

    Returns:
        See ``cells.attempt``.
    """
    return cells.attempt_here(job if mark.is_seen() else job._replace(path=None), task)


def run_ray(
    jobs: Sequence[Job], task: Task, mark: Mark, *, address: str, threads: int
) -> Iterator[Done]:
    """Measures cells on an existing Ray cluster; those of a lost node end on another.

    Args:
        jobs: the cells; nodes need share no disk, but go on from checkpoints where they do.
        task: the text.
        mark: of the run folder.
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
            "`executor` must be serial or local without Ray, got ray: "
            "pip install 'lensllm-jax[ray]'"
        ) from error
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _unreachable(address) from error
    try:
        remote = ray.remote(
            num_cpus=threads,
            max_retries=RETRIES,
            runtime_env={"env_vars": _environment(threads)},
        )(attempt_on_node)
        shared = ray.put(task)
        waiting = {
            remote.remote(job._replace(path=job.path and job.path.resolve()), shared, mark): job
            for job in jobs
        }  # fmt: skip
        while waiting:
            (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
            job = waiting.pop(ready)
            try:
                yield ray.get(ready)._replace(job=job)
            except ray.exceptions.RayError as error:
                yield Done(job, None, cells.one_line(error))
    finally:
        ray.shutdown()


def _environment(threads: int) -> dict[str, str]:
    """Of a worker on a node."""
    compiled = {name.upper() for name in (CACHE_FOLDER, *CACHE_SETTINGS)}
    return {
        "NPROC": str(threads),  # threads that XLA makes; a worker sees all cores of its node
        **{name: value for name, value in os.environ.items() if name in compiled},
    }


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
