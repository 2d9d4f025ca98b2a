"""A fine-tune over eight devices is that of one, with an eighth of the weights on each."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.finetune.sharding import longest_divisible, per_device
from tests.models.variants import GPT2

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def found():
    environment = {
        **os.environ, "JAX_PLATFORMS": "cpu", "JAX_ENABLE_X64": "1",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=8",
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "tests.finetune.sharded_steps"], cwd=ROOT, env=environment,
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.slow
def test_eight_devices_give_the_losses_of_one_and_hold_an_eighth_each(found):
    for name, (difference, share) in found.items():
        # float32: sums of other lengths round differently, and three steps of Adam pass it on
        assert difference <= (1e-10 if name.endswith("float64") else 2e-6), (name, difference)
        assert 1 / 8 <= share < 1 / 8 + 0.02, (name, share)
    assert len(found) == 4


def test_an_array_is_cut_along_its_longest_axis_but_never_along_the_blocks():
    assert longest_divisible((8, 12, 16), 4, stacked=True) == 2
    assert longest_divisible((8, 3, 5), 4, stacked=True) is None
    assert longest_divisible((8, 3, 5), 4, stacked=False) == 0  # the control


def test_what_one_device_holds_follows_from_shapes():
    shapes = parameter_shapes(parse_config({**GPT2, "n_embd": 16}).config)
    total = sum(int(np.prod(shape)) for shape in shapes.values())
    assert per_device(shapes, 1) == total
    assert per_device(shapes, 8) == total // 8  # each array of this model has an axis of 16 or more
    assert per_device(shapes, 7) > total // 3  # the control: none of most has one that 7 divide
