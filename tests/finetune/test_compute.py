"""Micro-batches, bfloat16 and recomputing change what a step costs, not what it means."""

import os

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.finetune.compute import (
    CACHE_BYTES,
    CACHE_FOLDER,
    CACHE_SETTINGS,
    ComputeConfig,
    keep_compiled,
    loop_for,
)
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
    loop = loop_for(candidate, OPTIMIZER, compute=ComputeConfig(remat=True, micro_batches=2))
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
    ("settings", "name"), [({"dtype": "int8"}, "dtype"), ({"micro_batches": 0}, "micro")]
)
def test_impossible_settings_are_refused(settings, name):
    with pytest.raises(checks.UserError, match=name):
        ComputeConfig(**settings)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    """JAX without a cache of compiled programs, and a home of nobody."""
    names = [CACHE_BYTES, CACHE_FOLDER, *CACHE_SETTINGS]
    before = {name: getattr(jax.config, name) for name in names}
    for name in names:  # those that the code sets are taken back with these
        monkeypatch.setenv(name.upper(), "")
    jax.config.update(CACHE_FOLDER, None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path / "cache" / "lensllm_jax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def test_compiled_programs_are_kept_in_the_users_cache(no_cache):
    keep_compiled()
    assert no_cache.is_dir()
    assert getattr(jax.config, CACHE_FOLDER) == os.environ[CACHE_FOLDER.upper()] == str(no_cache)


def test_compiled_programs_stay_where_jax_was_told_to_keep_them(no_cache, tmp_path):
    keep_compiled(tmp_path / "own")
    keep_compiled()
    assert getattr(jax.config, CACHE_FOLDER) == str(tmp_path / "own")
    assert not no_cache.exists()


def test_nothing_is_kept_where_the_users_cache_cannot_be_made(no_cache, tmp_path):
    (tmp_path / "cache").write_text("a file in its place")
    keep_compiled()
    assert getattr(jax.config, CACHE_FOLDER) is None
