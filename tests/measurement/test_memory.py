"""A pool that memory cannot hold is refused in a line, where a library would end with a dump."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensllm_jax import checks
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.finetune.memory import step_memory
from lensllm_jax.measurement.memory import check_memory, free_bytes, tight_step
from lensllm_jax.measurement.pool import describe_pool

ROOT = Path(__file__).parents[2]


def test_what_fits_is_taken_and_the_first_that_does_not_is_named():
    check_memory({"small": 10**6, "large": 10**9}, free=2**32)
    with pytest.raises(checks.UserError, match=r"got large, which needs 3\.4 GiB or more of 3\.0"):
        check_memory({"small": 10**6, "large": 10**9}, free=3 * 2**30)


def test_without_a_limit_the_machine_is_what_there_is():
    assert free_bytes() <= os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    check_memory({"small": 10**6})


@pytest.mark.slow
def test_a_binary_under_a_limit_ends_in_one_line(tmp_path):
    flags = ["--candidate=zoo/gpt2-xs", f"--output_dir={tmp_path / 'out'}"]
    limited = 'ulimit -v 1048576; exec "$@"'
    done = subprocess.run(
        ["bash", "-c", limited, "-", sys.executable, "-m", "experiments.compute_ntk", *flags],
        cwd=ROOT, text=True, capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: `candidates` must fit into memory")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def large():
    (summary,) = describe_pool(["zoo/gpt2-xs"]).values()
    return dataclasses.replace(summary, num_params=30_000_000)


def test_a_step_that_may_not_fit_is_told_with_the_flags_that_help(large):
    step = {"batch_size": 3, "num_tokens": 32}

    def total(**compute):
        memory = step_memory(large.config, ComputeConfig(**compute), **step)
        return memory.total + 3 * 2**29  # what JAX maps

    def line(free, summary=large):
        return tight_step(summary, ComputeConfig(), free=free, **step)

    whole, passes = total(), total(num_micro_batches=3)
    assert line(whole) is None
    told = line(passes)
    assert f"3 examples of 32 tokens takes about {whole / 1e9:.1f} GB" in told
    assert f"--micro_batches=3 takes about {passes / 1e9:.1f} GB" in told
    assert "--micro_batches=3 --remat" in line(total(num_micro_batches=3, remat=True))
    assert "experiments.plan" in line(10**9)
    assert line(10**9, dataclasses.replace(large, num_params=10**6)) is None  # the control
