"""The structured kernel over several devices, virtual ones of this machine's CPU."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from lensllm_jax import checks
from lensllm_jax.ntk.gram import empirical_ntk

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_devices_change_nothing_also_where_examples_do_not_divide_evenly():
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run(
        [sys.executable, "-m", "tests.ntk.sharded_kernel"], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = [line.split() for line in done.stdout.splitlines()]
    assert [(devices, compared) for devices, compared, _ in found] == [("4", "8"), ("8", "8")]
    # float32: sums of other lengths round differently
    assert max(float(difference) for *_, difference in found) < 1e-6


def test_devices_are_for_the_structured_method_alone():
    with pytest.raises(checks.UserError, match="`devices` must be left out"):
        empirical_ntk(
            lambda w, x: x @ w, jnp.ones(2), jnp.eye(2),
            method="jacobian_contraction", devices=jax.devices(),
        )  # fmt: skip


def test_no_device_is_an_error():
    with pytest.raises(checks.UserError, match="`devices` must name at least one"):
        empirical_ntk(lambda w, x: x @ w, jnp.ones(2), jnp.eye(2), devices=[])
