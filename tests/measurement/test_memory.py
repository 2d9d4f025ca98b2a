"""A pool that memory cannot hold is refused in a line, where a library would end with a dump."""

import dataclasses
import os
import resource

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.finetune.memory import step_memory
from lensllm_jax.measurement.memory import (
    LargestStep,
    check_memory,
    fewest_passes,
    free_bytes,
    tight_step,
)
from lensllm_jax.measurement.pool import describe_pool

RUNTIME = 3 * 2**29  # bytes: what JAX maps


def test_what_fits_is_taken_and_the_first_that_does_not_is_named():
    check_memory({"small": 10**6, "large": 10**9}, free=2**32)
    with pytest.raises(checks.UserError, match=r"got large, which needs 3\.4 GiB or more of 3\.0"):
        check_memory({"small": 10**6, "large": 10**9}, free=3 * 2**30)


def test_without_a_limit_the_machine_is_what_there_is():
    assert free_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    check_memory({"small": 10**6})


def test_a_run_under_a_limit_is_refused_before_any_work(tmp_path):
    with open("/proc/self/statm") as file:
        mapped = int(file.read().split()[0]) * resource.getpagesize()
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + 2**30, hard))  # as ulimit -v
    try:
        with pytest.raises(checks.UserError, match="`candidates` must fit into memory"):
            lens.finetune_grid("zoo/gpt2-xs", output_dir=tmp_path / "out")
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert not (tmp_path / "out").exists()


@pytest.fixture
def large():
    (summary,) = describe_pool(["zoo/gpt2-xs"]).values()
    return dataclasses.replace(summary, num_params=30_000_000)


@pytest.fixture
def step(large):
    """On three examples; in one they have 2 targets, in the others 20."""
    labels = np.full((20, 32), -100)
    labels[:, 1:21] = labels[0, 1:3] = 5
    test = {"labels": labels, "attention_mask": np.ones_like(labels)}
    return LargestStep(large, test, num_tokens=32, batch_sizes=(3,), buckets=())


def test_bytes_are_those_of_the_logits_that_are_computed(step):
    passes = ComputeConfig(micro_batches=3)
    found = {
        number: step_memory(
            step.summary.config, passes, batch_size=3, num_tokens=32, num_logits=number
        ).total
        for number in (24, None)
    }
    assert step.num_bytes(passes) == found[24] + RUNTIME < found[None] + RUNTIME


class Stated(LargestStep):
    """A step of 12 GB in one pass, half of it where blocks are computed again."""

    def num_bytes(self, compute):
        return 12 * 10**9 // compute.passes // (1 + compute.remat)


@pytest.mark.parametrize(("gigabytes", "passes"), [(13.9, 1), (13.7, 2), (4.61, 3), (1.0, 6)])
def test_a_step_is_made_in_as_few_passes_as_fit(step, gigabytes, passes):
    stated = Stated(*step)._replace(batch_sizes=(6,))
    assert fewest_passes(stated, ComputeConfig(), free=1e9 * gigabytes) == passes


def test_passes_divide_every_batch_size_and_devices_the_rest(step):
    several = Stated(*step)._replace(batch_sizes=(8, 12))
    assert fewest_passes(several, ComputeConfig(), free=0.0) == 4
    assert fewest_passes(several, ComputeConfig(devices=2), free=0.0) == 2


def test_a_step_that_may_not_fit_is_told_with_the_flags_that_help(step):
    stated = Stated(*step)

    def told(gigabytes):
        return tight_step(stated, ComputeConfig(), free=1e9 * gigabytes)

    assert told(12) is None  # the control
    assert "3 examples of 32 tokens takes about 12.0 GB, more than the 5.0 GB" in told(5)
    assert told(5).endswith("--micro_batches=3 takes about 4.0 GB")
    assert told(2).endswith("--micro_batches=3 --remat takes about 2.0 GB")
    assert "experiments.plan" in told(1)
