"""Moments in bfloat16 keep the mean of what they round, and end where float32's do."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.moments import stochastically_rounded, with_bfloat16_state
from tests.finetune import tiny
from tests.tolerances import relative_difference


def test_rounding_chooses_a_neighbour_with_the_true_value_as_mean():
    x = jnp.full(200_000, 1.0 + 2**-7 * 0.3, jnp.float32)  # bfloat16 has 1 and 1 + 2^-7
    rounded = np.asarray(stochastically_rounded(x, 1), np.float64)
    assert set(rounded) == {1.0, 1.0 + 2**-7}
    above = np.mean(rounded > 1)
    assert abs(above - 0.3) < 4 * np.sqrt(0.3 * 0.7 / len(x))  # four standard errors
    exact = jnp.array([0.0, -2.5, jnp.inf], jnp.float32)
    np.testing.assert_array_equal(np.asarray(stochastically_rounded(exact, 0), np.float32), exact)


def test_a_second_moment_falls_when_gradients_vanish_and_does_not_if_rounded_to_the_nearest():
    optimizer = with_bfloat16_state(optax.scale_by_adam(b2=0.999))
    state = optimizer.init({"w": jnp.zeros(4096)})
    _, state = optimizer.update({"w": jnp.ones(4096)}, state)
    start = float(jnp.mean(state.inner.nu["w"].astype(jnp.float32)))
    nothing, steps = {"w": jnp.zeros(4096)}, 200

    def step(state, _):
        return optimizer.update(nothing, state)[1], None

    state, _ = jax.lax.scan(step, state, length=steps)
    end = float(jnp.mean(state.inner.nu["w"].astype(jnp.float32)))
    assert abs(end / (start * 0.999**steps) - 1) < 5e-3  # of 4,096 random roundings
    nearest = jnp.bfloat16(start)
    assert (nearest.astype(jnp.float32) * 0.999).astype(jnp.bfloat16) == nearest  # the control


def test_training_keeps_half_the_bytes_and_follows_float32():
    found = {}
    for dtype in ("float32", "bfloat16"):
        config = OptimizerConfig(learning_rate=3e-2, warmup_steps=0, moments_dtype=dtype)
        loop = Loop(tiny.apply_fn, config, shift=True)
        state, losses = loop.train(loop.start(tiny.params()), tiny.calls(60, 8))
        found[dtype] = state, losses
        moments = [leaf for leaf in jax.tree.leaves(state.optimizer_state) if leaf.ndim]
        assert {str(leaf.dtype) for leaf in moments} == {dtype}
    (_, expected), (narrow, losses) = found["float32"], found["bfloat16"]
    assert jax.tree.leaves(narrow.params)[0].dtype == np.float32
    assert expected[-10:].mean() < 0.8 * expected[0]
    assert relative_difference(losses[-10:].mean(), expected[-10:].mean()) < 2e-2  # 8 bits
    assert not np.array_equal(losses, expected)
