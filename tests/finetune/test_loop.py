"""AdamW's steps: their rate, their clipping, and their sum over micro-batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax import checks
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.objective import batch_nats_and_count
from tests.finetune import tiny
from tests.tolerances import assert_close

OPTIMIZER = OptimizerConfig(learning_rate=1e-2, warmup_steps=0)


@pytest.mark.parametrize("shift", [True, False])
@pytest.mark.parametrize("micro_batches", [2, 3, 6])
def test_a_step_is_the_same_however_its_batch_is_split(shift, micro_batches):
    batches = tiny.calls(2, 6)
    whole = tiny.trained(Loop(tiny.apply_fn, OPTIMIZER, shift=shift), tiny.params(), batches)
    parts = tiny.trained(
        Loop(tiny.apply_fn, OPTIMIZER, shift=shift, micro_batches=micro_batches),
        tiny.params(), batches,
    )  # fmt: skip
    assert_close(parts[1], whole[1], "float32")
    jax.tree.map(lambda a, b: assert_close(a, b, "float32"), parts[0], whole[0])


def test_a_mean_of_the_parts_means_would_be_another_loss():
    """The negative control: parts of unlike numbers of targets must not weigh the same."""
    batches = tiny.calls(1, 6)
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    _, whole = tiny.trained(loop, tiny.params(), batches)
    parts = [
        loop.objective(tiny.params(), [{name: a[0, i::2] for name, a in batches.items()}])
        for i in range(2)
    ]
    assert abs(np.mean(parts) - whole[0]) > 1e-3


def test_a_batch_that_does_not_divide_is_refused():
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True, micro_batches=4)
    with pytest.raises(checks.UserError, match=r"micro_batches.*batch size 6, got 4"):
        loop.train(loop.start(tiny.params()), tiny.calls(1, 6))


def test_weights_stored_in_bfloat16_are_trained_in_float32():
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-5, warmup_steps=0), shift=True)
    stored = tiny.params(dtype=jnp.bfloat16)
    params, _ = tiny.trained(loop, stored, tiny.calls(3, 4))
    before = stored["head"]["kernel"].astype(jnp.float32)
    assert params["head"]["kernel"].dtype == np.float32
    assert jnp.any(params["head"]["kernel"] != before)
    # so small an update is lost in the type of the stored weights
    assert jnp.mean(params["head"]["kernel"].astype(jnp.bfloat16) == stored["head"]["kernel"]) > 0.9


def test_one_large_gradient_is_clipped_to_the_norm():
    """With the norm bounded by c, the first moment is that of a gradient of norm c."""
    moments = {}
    for clip_norm in (1e-2, 1e6):
        config = OptimizerConfig(learning_rate=1e-2, clip_norm=clip_norm)
        loop = Loop(tiny.apply_fn, config, shift=True)
        state, _ = loop.train(loop.start(tiny.params()), tiny.calls(1, 6))
        moments[clip_norm] = jax.tree.leaves(state.optimizer_state[1][0].mu)

    def norm(leaves):
        return float(np.sqrt(sum((np.asarray(leaf, np.float64) ** 2).sum() for leaf in leaves)))

    assert norm(moments[1e-2]) == pytest.approx(0.1 * 1e-2, rel=1e-5)  # 1 - b1 = 0.1; float32
    assert norm(moments[1e6]) > 0.1 * 2e-2


def test_the_rate_rises_linearly_and_falls_along_a_cosine():
    schedule = OptimizerConfig(learning_rate=0.5, warmup_steps=4, decay_steps=12).schedule()
    steps = np.arange(13)
    rise, fall = 0.5 * steps / 4, 0.25 * (1 + np.cos(np.pi * (steps - 4) / 8))
    expected = np.where(steps < 4, rise, fall)
    got = [float(schedule(step)) for step in steps]
    assert np.allclose(got, expected, atol=1e-7)  # float32
    constant = OptimizerConfig(learning_rate=0.5, warmup_steps=4).schedule()
    assert float(constant(1000)) == 0.5


@pytest.mark.parametrize("decay_steps", [None, 8, "all"])
def test_without_a_warm_up_the_first_step_has_the_whole_rate(decay_steps):
    settings = {"learning_rate": 0.5, "decay_steps": decay_steps}
    first = OptimizerConfig(**settings, warmup_steps=0).schedule(last_step=8)(0)
    assert float(first) == 0.5
    assert float(OptimizerConfig(**settings, warmup_steps=1).schedule(last_step=8)(0)) == 0.0


def test_a_decay_over_all_steps_ends_at_the_last_one():
    config = OptimizerConfig(learning_rate=0.5, warmup_steps=4, decay_steps="all")
    fixed = OptimizerConfig(learning_rate=0.5, warmup_steps=4, decay_steps=12).schedule()
    for step in range(14):
        got = float(jax.jit(lambda s, n: config.schedule(last_step=n)(s))(step, 12))
        assert got == pytest.approx(float(fixed(step)), abs=1e-7)  # float32
        half = config.schedule(0.25, last_step=12)(step)
        assert float(half) == pytest.approx(got / 2, abs=1e-7)
    assert float(config.schedule(last_step=20)(12)) > 0.1  # control: another end
    with pytest.raises(checks.UserError, match="`last_step` must be given"):
        config.schedule()


def test_one_compilation_decays_over_every_length():
    """The end of the decay is an input: fine-tunes of other lengths share the compiled step."""
    config = OptimizerConfig(learning_rate=1e-2, warmup_steps=2, decay_steps="all")
    loop = Loop(tiny.apply_fn, config, shift=True)
    settings = FineTuneConfig(batch_size=4, max_epochs=2, steps_per_call=2)
    results = {}
    for size in (16, 32):
        data = tiny.examples(size)
        results[size] = fine_tune(
            loop, tiny.params(), Splits(data, data, data), config=settings
        ).result
    assert loop._train._cache_size() == 1

    def alone(decay_steps):
        other = Loop(
            tiny.apply_fn, dataclasses.replace(config, decay_steps=decay_steps), shift=True
        )
        data = tiny.examples(32)
        return fine_tune(
            other, tiny.params(), Splits(data, data, data), config=settings
        ).result.test_loss

    assert results[32].num_steps == 16
    assert_close(results[32].test_loss, alone(16), "float32")
    assert abs(results[32].test_loss - alone(None)) > 1e-3  # control: no decay


@pytest.mark.parametrize(
    "settings", [{"decay_steps": "most"}, {"decay_steps": 10}, {"warmup_steps": -1}]
)
def test_impossible_schedules_are_refused(settings):
    with pytest.raises(checks.UserError, match=next(iter(settings))):
        OptimizerConfig(learning_rate=1e-3, **settings)


def test_first_step_is_that_of_adamw_written_out():
    """From zero moments AdamW moves each weight by lr * sign(g), and decays matrices alone."""
    rate, decay = 1e-3, 0.5
    config = OptimizerConfig(learning_rate=rate, weight_decay=decay, warmup_steps=0, clip_norm=1e9)
    batch = tiny.examples(4)
    single = Loop(tiny.apply_fn, config, shift=True)
    batches = {k: v[None] for k, v in batch.items()}
    state, _ = single.train(single.start(tiny.params()), batches)

    def mean_loss(params):
        nats, count = batch_nats_and_count(tiny.apply_fn, params, batch, shift=True)
        return nats / count

    gradient = traverse_util.flatten_dict(jax.grad(mean_loss)(tiny.params()))
    before = traverse_util.flatten_dict(tiny.params())
    after = traverse_util.flatten_dict(state.params)
    for path, g in gradient.items():
        decayed = decay if path[-1] in ("kernel", "embedding") else 0.0
        expected = -rate * (np.sign(g) + decayed * np.asarray(before[path]))
        sure = np.abs(g) > 1e-5  # epsilon of Adam (1e-8) matters below
        moved = np.asarray(after[path]) - np.asarray(before[path])
        assert np.allclose(moved[sure], expected[sure], atol=2e-6), path
