r"""Executors: where the jobs of a grid are measured, and the tiles of a kernel on a Ray cluster.

``serial`` is this process.  ``local`` keeps processes on this machine, each pinned to cores of
its own before JAX starts its threads: processes times threads never exceed the cores.  ``ray``
submits the jobs to an existing cluster, which gives those of a lost node to another; where a node
sees the run folder, a job resumes from its checkpoint, and elsewhere it starts again.  The process
of the run writes the results.

XLA splits its sums by its threads, and the last digits of a loss depend on how many there are.
``local`` fixes their number by the cores of a process, ``ray`` by the environment of a worker.

Example:
    >>> shares({0, 1, 2, 3, 4}, 2)
    ((0, 1), (2, 3))
"""

import concurrent.futures
import contextlib
import ctypes
import dataclasses
import functools
import multiprocessing
import multiprocessing.queues
import os
import signal
import socket
import uuid
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import numpy as np

from lensllm_jax import checks
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import CACHE_BYTES, CACHE_FOLDER, CACHE_SETTINGS
from lensllm_jax.measurement import jobs as measurement_jobs
from lensllm_jax.measurement.jobs import Job, JobResult, Measurer, ProgressUpdate
from lensllm_jax.ntk.gram import Tile
from lensllm_jax.runs.run_folder import RUN, RunFolder, sha256_of

KINDS = ("serial", "local", "ray")
CONNECT_SECONDS = 5.0
RETRIES = 5  # of a job whose node was lost
_Asked = TypeVar("_Asked")
PR_SET_PDEATHSIG = 1  # Linux: the signal a process gets when its parent dies


@dataclasses.dataclass(frozen=True)
class ExecutorConfig:
    """Where jobs are measured."""

    kind: str = "serial"
    processes: int = 1  # of local; they share the cores. Of a race on Ray: jobs at a time
    ray_address: str = "127.0.0.1:6379"  # of the Ray head
    ray_threads: int = 1  # cores of a job on Ray

    def check(self) -> None:
        """Refuses an executor that cannot run, before anything is written.

        Raises:
            UserError: naming the flag at fault.
        """
        checks.positive("ray_threads", self.ray_threads)
        checks.positive("processes", self.processes)
        if self.kind == "local":
            shares(os.sched_getaffinity(0), self.processes)
        if self.kind == "ray":
            check_address(self.ray_address)

    @property
    def at_a_time(self) -> int:
        """Fine-tunes."""
        return 1 if self.kind == "serial" else self.processes

    @property
    def threads(self) -> int | None:
        """Cores of a job, which decide the last digits of its loss; None: all of this process."""
        if self.kind == "local":
            return len(shares(os.sched_getaffinity(0), self.processes)[0])
        return self.ray_threads if self.kind == "ray" else None


@dataclasses.dataclass(frozen=True)
class ExecutorSettings:
    """Where jobs are measured, by the names of the binaries' flags."""

    executor: str = "serial"
    processes: int = 1  # of the executor local; of a race on Ray, fine-tunes at a time
    ray_address: str = "127.0.0.1:6379"  # host:port of the Ray head
    ray_threads: int = 1  # cores of a fine-tune under the executor ray

    def __post_init__(self):
        checks.one_of("executor", self.executor, KINDS)

    def executor_config(self) -> ExecutorConfig:
        """The executor.

        Raises:
            UserError: if there is no such place.
        """
        executor = ExecutorConfig(self.executor, self.processes, self.ray_address, self.ray_threads)
        executor.check()
        return executor


def run(
    executor: ExecutorConfig, jobs: Sequence[Job], task: Task, folder: RunFolder, *,
    on_progress: Callable[[Job, ProgressUpdate], None],
) -> Iterator[JobResult]:  # fmt: skip
    """Measures jobs.

    Args:
        executor: where.
        jobs: those of one candidate together.
        task: the text.
        folder: of the run, in which the jobs keep their checkpoints.
        on_progress: called after each evaluation of a job in this process.

    Yields:
        The result of each job as it ends.

    Raises:
        UserError: if the executor cannot run.
    """
    if not jobs:
        return
    if executor.kind == "local":
        yield from _run_local(jobs, task, processes=executor.processes)
    elif executor.kind == "ray":
        yield from run_ray(jobs, task, FolderProbe.of(folder), executor)
    else:
        measurer = Measurer(task)
        for job in jobs:
            yield measurer.attempt(job, on_progress=functools.partial(on_progress, job))


def shares(cores: Set[int], processes: int) -> tuple[tuple[int, ...], ...]:
    """The cores of each process: equally many, none twice, and those that do not divide idle.

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
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to all: the parent answers
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    os.sched_setaffinity(0, waiting.get())


def _run_local(jobs: Sequence[Job], task: Task, *, processes: int) -> Iterator[JobResult]:
    """Measures jobs in processes of this machine, each with an equal share of the cores.

    Yields:
        The result of each job as it ends.

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
        futures = {pool.submit(measurement_jobs.attempt_here, job, task): job for job in jobs}
        try:
            for future in concurrent.futures.as_completed(futures):
                yield _result(future, futures[future])
        except BaseException:  # Ctrl-C, or the generator is closed: jobs would run to their end
            for process in multiprocessing.active_children():
                process.kill()
            raise


def _result(future: "concurrent.futures.Future[JobResult]", job: Job) -> JobResult:
    try:
        return future.result()
    except concurrent.futures.process.BrokenProcessPool:
        return JobResult(job, None, "a process was killed: the same command resumes")


class FolderProbe(NamedTuple):
    """The file by which another machine finds out whether it shares the run folder."""

    path: Path  # absolute
    sha256: str

    @classmethod
    def of(cls, folder: RunFolder) -> "FolderProbe":
        """The settings of the run, which no other folder holds at this path."""
        path = folder.path.resolve() / RUN
        return cls(path, sha256_of(path))

    def is_shared(self) -> bool:
        """Whether this machine has the file."""
        try:
            return sha256_of(self.path) == self.sha256
        except OSError:
            return False


def attempt_on_node(job: Job, task: Task, probe: FolderProbe) -> JobResult:
    """``attempt_here`` on a machine that may not share the run folder, without checkpoints then."""
    here = job if probe.is_shared() else job._replace(path=None)
    return measurement_jobs.attempt_here(here, task)


def run_ray(
    jobs: Sequence[Job], task: Task, probe: FolderProbe, executor: ExecutorConfig
) -> Iterator[JobResult]:
    """Measures jobs on an existing Ray cluster; those of a lost node end on another.

    Args:
        jobs: nodes need share no disk, but resume from checkpoints where they do.
        task: the text.
        probe: of the run folder.
        executor: address of the cluster, and cores of a job.

    Yields:
        The result of each job as it ends.

    Raises:
        UserError: if Ray is not installed or the cluster does not answer.
    """
    with _cluster(executor.ray_address) as ray:
        attempt = _remote(ray, attempt_on_node, executor)
        shared = ray.put(task)
        waiting = {
            attempt.remote(job._replace(path=job.path and job.path.resolve()), shared, probe): job
            for job in jobs
        }
        for job, result in _as_completed(ray, waiting):
            try:
                yield ray.get(result)._replace(job=job)
            except ray.exceptions.RayError as error:
                yield JobResult(job, None, measurement_jobs.one_line(error))


@dataclasses.dataclass(frozen=True)
class RayTiles:
    """Computes tiles of a kernel on an existing Ray cluster; those of a lost node on another.

    It is the ``map_tiles`` of a tile store.  The function travels once to each worker, with the
    parameters that it holds.
    """

    executor: ExecutorConfig

    def __call__(
        self, tile_fn: Callable[[Tile], Any], tiles: Sequence[Tile]
    ) -> Iterator[tuple[Tile, np.ndarray]]:
        """Each tile with its values, as they are computed.

        Raises:
            UserError: if Ray is not installed or the cluster does not answer; or that of a tile.
            OSError: if a tile failed for another reason.
        """
        with _cluster(self.executor.ray_address) as ray:
            compute = _remote(ray, _tile_on_node, self.executor)
            key, shared = uuid.uuid4().hex, [ray.put(tile_fn)]  # in a list it arrives as it is
            waiting = {compute.remote(key, shared, tile): tile for tile in tiles}
            for tile, result in _as_completed(ray, waiting):
                try:
                    yield tile, ray.get(result)
                except ray.exceptions.RayError as error:
                    cause = getattr(error, "cause", None)
                    if isinstance(cause, checks.UserError):
                        raise cause from error
                    raise OSError(measurement_jobs.one_line(error)) from error


_tile_fns: dict[str, Callable[[Tile], Any]] = {}  # of this worker: the latest


def _tile_on_node(key: str, shared: list, tile: Tile) -> np.ndarray:
    if key not in _tile_fns:  # so that one worker compiles it once
        import ray

        _tile_fns.clear()
        _tile_fns[key] = ray.get(shared[0])
    return np.asarray(_tile_fns[key](tile))


@contextlib.contextmanager
def _cluster(address: str) -> Iterator[Any]:
    """Ray, connected to a cluster.

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
        yield ray
    finally:
        ray.shutdown()


def _remote(ray: Any, function: Callable, executor: ExecutorConfig) -> Any:
    """A function that runs on nodes, again where one is lost."""
    environment = {"env_vars": _environment(executor.ray_threads)}
    return ray.remote(num_cpus=executor.ray_threads, max_retries=RETRIES, runtime_env=environment)(
        function
    )


def _as_completed(ray: Any, waiting: dict[Any, _Asked]) -> Iterator[tuple[_Asked, Any]]:
    """What was asked for, with the reference of each result, as they end."""
    while waiting:
        (ready, *_), _ = ray.wait(list(waiting), num_returns=1)
        yield waiting.pop(ready), ready


def _environment(threads: int) -> dict[str, str]:
    """Of a worker on a node."""
    compiled = {name.upper() for name in (CACHE_FOLDER, CACHE_BYTES, *CACHE_SETTINGS)}
    return {
        "NPROC": str(threads),  # threads of XLA and BLAS; a worker sees all cores of its node
        "JAX_ENABLE_X64": str(int(jax.config.read("jax_enable_x64"))),
        **{name: value for name, value in os.environ.items() if name in compiled},
    }


def check_address(address: str) -> None:
    """Refuses an address (host:port) where nothing listens, within seconds.

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
