"""A pool that memory cannot hold is refused in a line, where a library would end with a dump."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lensllm_jax import checks
from lensllm_jax.measurement.memory import check_memory, free_bytes

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
