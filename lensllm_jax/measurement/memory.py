"""Memory: candidates that this process cannot hold are refused before any work.

A native library that finds no memory ends the process with a dump and no message.  What is checked
is a lower bound: the weights in the smallest type, and what JAX itself maps.

Example:
    >>> check_memory({"zoo/gpt2-xs": 239360}, free=2 * 2**30)
"""

import os
import resource
from collections.abc import Mapping

from lensllm_jax import checks

_RUNTIME_BYTES = 3 * 2**29  # that JAX maps when it starts, threads and compiled programs included
_BYTES_A_WEIGHT = 2  # bfloat16, the smallest type


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


def free_bytes() -> int:
    """What a limit on the address space leaves, and no more than the machine has."""
    machine = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    if limit == resource.RLIM_INFINITY:
        return machine
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    return min(machine, max(limit - mapped, 0))
