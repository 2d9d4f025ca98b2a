"""LoRA trains its factors alone, from the pretrained loss on, and resumes and searches as usual."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

import lensllm_jax as lens
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.compute import (
    ComputeConfig,
    config_apply_fn,
    loop_for,
    start_of,
    whole_params,
)
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import OptimizerConfig, joined
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.finetune.search import SearchGrid, search_rates
from lensllm_jax.ntk.gram import empirical_ntk
from tests.finetune import tiny
from tests.models.tiny import tiny_candidate
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close

OPTIMIZER = OptimizerConfig(learning_rate=3e-3, warmup_steps=2)
LORA = ComputeConfig(tune="lora", lora_rank=4)
CONFIG = FineTuneConfig(batch_size=4, max_epochs=2, steps_per_call=2)


@pytest.fixture(scope="module")
def candidate():
    return lens.load_candidate("zoo/gpt2-xs")


@pytest.fixture(scope="module")
def splits():
    data = tiny.examples(16, width=8)
    return Splits(data, data, data)


@pytest.fixture(scope="module")
def tuned(candidate, splits):
    start = start_of(candidate, LORA, seed=0)
    loop = loop_for(candidate, OPTIMIZER, LORA).beside(start.frozen)
    return loop, start, fine_tune(loop, start.params, splits, config=CONFIG)


def test_factors_decay_as_matrices_do(candidate):
    start = start_of(candidate, LORA, seed=0)
    transform = dataclasses.replace(OPTIMIZER, weight_decay=0.5, warmup_steps=0).optimizer()
    still = jax.tree.map(jnp.zeros_like, start.params)
    moved, _ = transform.update(still, transform.init(start.params), start.params)
    expected = jax.tree.map(lambda leaf: -OPTIMIZER.learning_rate * 0.5 * leaf, start.params)
    for got, wanted in zip(*map(jax.tree.leaves, (moved, expected)), strict=True):
        np.testing.assert_allclose(got, wanted, rtol=1e-6)  # float32
    assert max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(moved)) > 1e-5  # control


def test_it_starts_at_the_pretrained_loss_and_trains_the_factors_alone(candidate, splits, tuned):
    loop, start, found = tuned
    records = EvaluationBatches.of(splits.test)
    before = loop.evaluate(start.params, records).loss
    plain = (
        loop_for(candidate, OPTIMIZER)
        .evaluate(candidate.params, EvaluationBatches.of(splits.test))
        .loss
    )
    assert before == plain
    assert found.result.test_loss < before - 0.05
    paths = traverse_util.flatten_dict(found.params, sep="/")
    assert {path.rpartition("/")[2] for path in paths} == {lora.A, lora.B}
    assert all(np.any(leaf) for leaf in paths.values())
    whole = whole_params(candidate, LORA, found.params)
    assert jax.tree.structure(whole) == jax.tree.structure(candidate.params)
    merged = loop_for(candidate, OPTIMIZER).evaluate(whole, records).loss
    assert merged == pytest.approx(loop.evaluate(found.params, records).loss, rel=1e-5)


def test_a_killed_one_resumes_to_the_same_bits_and_not_beside_other_weights(
    candidate, splits, tuned, tmp_path
):
    loop, start, found = tuned
    checkpoint = Checkpoint(tmp_path / "cell.safetensors", every_seconds=0)
    fine_tune(loop, start.params, splits, config=CONFIG, checkpoint=checkpoint)
    calls = []
    resumed = fine_tune(
        loop, start.params, splits, config=CONFIG, checkpoint=checkpoint, on_progress=calls.append
    )
    assert not calls
    assert resumed.result == found.result
    other = loop.beside(jax.tree.map(lambda leaf: leaf * 2, start.frozen))
    with pytest.raises(lens.checks.UserError, match="`checkpoint` must be of this fine-tune"):
        fine_tune(other, start.params, splits, config=CONFIG, checkpoint=checkpoint)


def test_a_search_of_rates_reads_the_frozen_weights(splits, tuned):
    loop, start, found = tuned
    searched = search_rates(
        loop, start.params, splits, SearchGrid((1e-5, OPTIMIZER.learning_rate), (4,)), config=CONFIG
    )
    assert searched.learning_rate == OPTIMIZER.learning_rate
    # vmapped products are summed in another order
    assert searched.losses[0, 1] == pytest.approx(found.result.validation_loss, rel=1e-4)


def test_frozen_weights_in_bfloat16_are_half_as_large_and_nearly_as_good(candidate, splits, tuned):
    compute = dataclasses.replace(LORA, frozen_dtype="bfloat16")
    start = start_of(candidate, compute, seed=0)
    loop = loop_for(candidate, OPTIMIZER, compute).beside(start.frozen)
    assert {str(leaf.dtype) for leaf in jax.tree.leaves(loop.frozen)} == {"bfloat16"}
    logits = jax.eval_shape(loop.apply_fn, joined(start.params, loop.frozen), splits.test)
    assert logits.dtype == jnp.float32
    loss = loop.evaluate(start.params, EvaluationBatches.of(splits.test)).loss
    plain = tuned[0].evaluate(start.params, EvaluationBatches.of(splits.test)).loss
    assert loss == pytest.approx(plain, rel=1e-2)
    assert loss != plain


def test_the_kernel_of_the_factors_alone_is_exact(x64):
    candidate = tiny_candidate(VARIANTS["llama-tied-grouped"])
    factors = lora.init_factors(candidate.params, rank=2, seed=0)
    factors = jax.tree.map(lambda leaf: leaf + 0.1, factors)  # B = 0 has no gradient for A
    apply_fn = config_apply_fn(candidate.config, LORA)

    def of_all(params, x):
        return jnp.sum(jax.nn.log_softmax(apply_fn(params, x))[:, -3:, 5], axis=1)

    def f(factors, x):
        return of_all(joined(factors, candidate.params), x)

    x = {name: batch()[name] for name in ("input_ids", "attention_mask")}
    gradients = jax.jacrev(f)(factors, x)
    rows = np.concatenate([leaf.reshape(3, -1) for leaf in jax.tree.leaves(gradients)], axis=1)
    assert_close(empirical_ntk(f, factors, x, method="structured"), rows @ rows.T, "float64")
    whole = joined(factors, candidate.params)  # and of all parameters, those of the adapter
    of_adapter = empirical_ntk(of_all, whole, x, parameters="*/lora_a,*/lora_b")
    assert_close(of_adapter, rows @ rows.T, "float64")
