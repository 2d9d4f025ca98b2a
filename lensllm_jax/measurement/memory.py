"""Memory: candidates that this process cannot hold are refused before any work.

A native library that finds no memory ends the process with a dump and no message, and a system
kills it without one.  What is refused is what a lower bound forbids: the weights in the smallest
type, and what JAX itself maps.  A step of a fine-tune that may not fit is told, with the remedy.

Example:
    >>> check_memory({"zoo/gpt2-xs": 239360}, free=2 * 2**30)
"""

import dataclasses
import os
import resource
from collections.abc import Iterator, Mapping

import jax

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.finetune.memory import step_memory

_RUNTIME_BYTES = 3 * 2**29  # that JAX maps when it starts, threads and compiled programs included
_BYTES_A_WEIGHT = 2  # bfloat16, the smallest type
_FEWEST_PARAMS = 2e7  # of a candidate whose step is estimated: a smaller one needs a GB or less
_GB = 1e9


def check_memory(num_params: Mapping[str, int], *, free: int | None = None) -> None:
    """Refuses the first candidate whose weights alone do not fit.

    Args:
        num_params: candidate -> parameters.
        free: bytes; default what a limit of this process (ulimit -v) or the machine leaves.

    Raises:
        UserError: naming the candidate, with what it needs and what there is.
    """
    free = free_bytes() if free is None else free
    for name, count in num_params.items():
        if (needed := _BYTES_A_WEIGHT * count + _RUNTIME_BYTES) > free:
            raise checks.UserError(
                f"`candidates` must fit into memory, got {name}, which needs {needed / 2**30:.1f} "
                f"GiB or more of {free / 2**30:.1f} GiB: leave it out, or raise the limit (ulimit "
                "-v)"
            )


def tight_step(
    summary: CandidateSummary, compute: ComputeConfig, *, batch_size: int, num_tokens: int,
    free: int | None = None,
) -> str | None:  # fmt: skip
    """A line for a user whose device may be short of memory for one step; None where it is not.

    Args:
        summary: of the candidate.
        compute: how the step is computed.
        batch_size: examples of a step.
        num_tokens: of an example.
        free: bytes; default what the device, or the machine of a CPU, has free.
    """
    if summary.num_params < _FEWEST_PARAMS:
        return None
    free = _free_now() if free is None else free

    def needed(compute: ComputeConfig) -> int:
        memory = step_memory(
            summary.config, compute, batch_size=batch_size, num_tokens=num_tokens
        )  # fmt: skip
        return memory.total + _RUNTIME_BYTES

    if (now := needed(compute)) <= free:
        return None
    advice = "`python -m experiments.plan` says what would fit"
    for smaller in _smaller(compute, batch_size):
        if (less := needed(smaller)) <= free:
            flags = f"--micro_batches={smaller.num_micro_batches}"
            flags += " --remat" if smaller.remat and not compute.remat else ""
            advice = f"{flags} takes about {less / _GB:.1f} GB"
            break
    return (
        f"{summary.name}: a step on {batch_size} examples of {num_tokens} tokens takes about "
        f"{now / _GB:.1f} GB, more than the {free / _GB:.1f} GB that are free: {advice}"
    )


def _smaller(compute: ComputeConfig, batch_size: int) -> Iterator[ComputeConfig]:
    """The same step in more passes, which take no longer, then with blocks computed again."""
    for remat in sorted({compute.remat, True}):
        for passes in range(compute.num_micro_batches, batch_size // compute.devices + 1):
            if batch_size % passes == 0 and batch_size // passes % compute.devices == 0:
                yield dataclasses.replace(compute, remat=remat, num_micro_batches=passes)


def _free_now() -> int:
    """Bytes of the first device, or what the machine of a CPU can give without swapping."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"]
    try:
        with open("/proc/meminfo") as file:
            fields = dict(line.split(":") for line in file)
        return min(free_bytes(), 1024 * int(fields["MemAvailable"].split()[0]))
    except (OSError, LookupError, ValueError):
        return free_bytes()


def free_bytes() -> int:
    """What a limit on the address space leaves, and no more than the machine has."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return machine
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    return min(machine, max(limit - mapped, 0))
