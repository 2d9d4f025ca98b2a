"""Memory: candidates that this process cannot hold are refused before any work.

A native library that finds no memory ends the process with a dump and no message, and a system
kills it without one.  What is refused is what a lower bound forbids: the weights in the smallest
type, and what JAX itself maps.  A step of a fine-tune is made in as few passes as fit; one that
may not fit is told, with the remedy.

Example:
    >>> check_memory({"zoo/gpt2-xs": 239360}, free=2 * 2**30)
"""

import dataclasses
import math
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import jax
import numpy as np

from lensllm_jax import checks
from lensllm_jax.address_space import mapped_bytes
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.data.buckets import few_lengths
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.finetune.memory import step_memory
from lensllm_jax.finetune.num_logits import num_logits_by_shape
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.rows import encode_rows, row_lengths
from lensllm_jax.typing import Batch

_RUNTIME_BYTES = 3 * 2**29  # that JAX maps when it starts, threads and compiled programs included
_BYTES_A_WEIGHT = 2  # bfloat16, the smallest type
_FEWEST_PARAMS = 2e7  # of a candidate whose step is estimated: a smaller one needs little
_SLACK = 0.15  # by which bytes may be above those that shapes say
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


class LargestStep(NamedTuple):
    """The step of a fine-tune that holds the most: on records as long as the longest."""

    summary: CandidateSummary
    test: Batch  # whose lengths and targets are those of all records
    num_tokens: int  # of an example, on its longer side
    batch_sizes: tuple[int, ...]  # examples: one, or those that are searched
    buckets: tuple[int, ...]  # tokens

    @classmethod
    def of(
        cls, summary: CandidateSummary, task: Task, config: MeasurementConfig, *,
        batch_sizes: Sequence[int] = (),
    ) -> "LargestStep":  # fmt: skip
        """That of a candidate on a task; with several batch sizes, of the largest."""
        lengths = row_lengths(task, summary, chat_template=config.chat_template)
        encoded = encode_rows(task.test, summary, lengths, chat_template=config.chat_template)
        test = encoded.batch(np.arange(len(encoded)))
        buckets = few_lengths(test) if config.buckets is None else config.buckets
        sizes = (*batch_sizes,) or (config.batch_size,)
        return cls(summary, test, max(lengths.source, lengths.target), sizes, buckets)

    @property
    def batch_size(self) -> int:
        """Examples."""
        return max(self.batch_sizes)

    def num_bytes(self, compute: ComputeConfig) -> int:
        """Of the whole process, when the step is computed so."""
        config = self.summary.config
        rows = self.batch_size // compute.passes
        numbers = num_logits_by_shape(
            self.test, rows=rows, shift=not config.is_encoder_decoder, buckets=self.buckets
        )
        memory = step_memory(
            config, compute, batch_size=self.batch_size, num_tokens=self.num_tokens,
            num_logits=numbers.get((rows, self.test["labels"].shape[1])),
        )  # fmt: skip
        return memory.total + _RUNTIME_BYTES


def is_large(summary: CandidateSummary) -> bool:
    """Whether a step of the candidate may take more than a GB or two."""
    return summary.num_params >= _FEWEST_PARAMS


def fewest_passes(step: LargestStep, compute: ComputeConfig, *, free: float) -> int:
    """The smallest number of equal passes in which a step fits; the largest where none does.

    Args:
        step: of the candidate.
        compute: how it is computed otherwise.
        free: bytes.
    """
    passes = _passes(math.gcd(*step.batch_sizes), compute.devices)
    for count in passes:
        one = dataclasses.replace(compute, micro_batches=count)
        if (1 + _SLACK) * step.num_bytes(one) <= free:
            return count
    return passes[-1]


def tight_step(step: LargestStep, compute: ComputeConfig, *, free: float) -> str | None:
    """A line for a user whose device may be short of memory for one step; None where it is not.

    Args:
        step: of the candidate.
        compute: how it is computed.
        free: bytes.
    """
    if (now := step.num_bytes(compute)) <= free:
        return None
    advice = "`python -m experiments.plan` says what would fit"
    for smaller in _smaller(compute, step.batch_size):
        if (less := step.num_bytes(smaller)) <= free:
            flags = f"--micro_batches={smaller.passes}"
            flags += " --remat" if smaller.remat and not compute.remat else ""
            advice = f"{flags} takes about {less / _GB:.1f} GB"
            break
    return (
        f"{step.summary.name}: a step on {step.batch_size} examples of {step.num_tokens} tokens "
        f"takes about {now / _GB:.1f} GB, more than the {free / _GB:.1f} GB that are free: {advice}"
    )


def _passes(batch_size: int, devices: int) -> list[int]:
    """The numbers of equal passes that a batch can be made in, ascending."""
    parts = range(1, batch_size // devices + 1)
    return [n for n in parts if batch_size % n == 0 and batch_size // n % devices == 0]


def _smaller(compute: ComputeConfig, batch_size: int) -> Iterator[ComputeConfig]:
    """The same step in more passes, which take no longer, then with blocks computed again."""
    for remat in sorted({compute.remat, True}):
        for passes in _passes(batch_size, compute.devices):
            if passes >= compute.passes:
                yield dataclasses.replace(compute, remat=remat, micro_batches=passes)


def free_now() -> int:
    """Bytes of the first device, or what the machine of a CPU can give without swapping."""
    statistics = jax.local_devices()[0].memory_stats()
    if statistics and "bytes_limit" in statistics:
        return statistics["bytes_limit"] - statistics.get("bytes_in_use", 0)
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
    return min(machine, max(limit - mapped_bytes(), 0))
