"""Micro-batches, bfloat16 and recomputing change what a step costs, not what it means."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.finetune.compute import ComputeConfig, loop_for
from lensllm_jax.finetune.loop import OptimizerConfig
from tests.finetune import tiny
from tests.tolerances import assert_close

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)


@pytest.fixture(scope="module")
def candidate():
    return lens.load_candidate("zoo/gpt2-xs")


@pytest.fixture(scope="module")
def plain(candidate):
    return tiny.trained(loop_for(candidate, OPTIMIZER), candidate.params, tiny.calls(1, 4, width=8))


def test_recomputed_blocks_give_the_same_step(candidate, plain):
    loop = loop_for(candidate, OPTIMIZER, compute=ComputeConfig(remat=True, num_micro_batches=2))
    _, losses = tiny.trained(loop, candidate.params, tiny.calls(1, 4, width=8))
    assert_close(losses, plain[1], "float32")


def test_bfloat16_computes_roughly_and_keeps_float32_weights(candidate, plain):
    loop = loop_for(candidate, OPTIMIZER, compute=ComputeConfig(dtype="bfloat16"))
    batch = {name: a[0] for name, a in tiny.calls(1, 4, width=8).items()}
    assert jax.eval_shape(loop.apply_fn, candidate.params, batch).dtype == jnp.bfloat16
    state, losses = loop.train(loop.start(candidate.params), tiny.calls(1, 4, width=8))
    assert {leaf.dtype for leaf in jax.tree.leaves(state.params)} == {np.dtype("float32")}
    moments = [a for a in jax.tree.leaves(state.optimizer_state) if a.ndim]
    assert {leaf.dtype for leaf in moments} == {np.dtype("float32")}
    assert losses[0] == pytest.approx(plain[1][0], rel=2e-2)  # bfloat16 has 8 bits
    assert losses[0] != plain[1][0]


@pytest.mark.parametrize(
    ("settings", "name"), [({"dtype": "int8"}, "dtype"), ({"num_micro_batches": 0}, "num_micro")]
)
def test_impossible_settings_are_refused(settings, name):
    with pytest.raises(checks.UserError, match=name):
        ComputeConfig(**settings)
