"""The objective, the loop and the stopping rule."""

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.data.buckets import truncated
from lensllm_jax.finetune.evaluation import EvaluationBatches
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from tests.finetune import tiny
from tests.tolerances import assert_close


def data(num_examples, *, seed=0, length=12):
    rng = np.random.default_rng(seed)
    ids = rng.integers(5, 40, (num_examples, length)).astype(np.int32)
    mask = np.ones_like(ids)
    labels = ids.copy()
    labels[:, :3] = -100
    for row, cut in enumerate(rng.integers(6, length, num_examples)):
        mask[row, cut:] = 0
        labels[row, cut:] = -100
    return {
        "input_ids": ids, "attention_mask": mask, "labels": labels,
        "is_end": np.zeros(ids.shape, bool), "num_target_bytes": 3 * (labels != -100).sum(1),
    }  # fmt: skip


@pytest.fixture(scope="module")
def candidate():
    return lens.load_candidate("zoo/gpt2-xs")


@pytest.fixture(scope="module")
def loop(candidate):
    return Loop(candidate.apply_fn, OptimizerConfig(learning_rate=2e-3), shift=True)


def measured(loop, candidate, batch):
    return loop.evaluate(candidate.params, EvaluationBatches.of(batch))


def test_padding_tokens_change_nothing(loop, candidate):
    batch = data(4)
    changed = dict(batch, input_ids=np.where(batch["attention_mask"] == 1, batch["input_ids"], 7))
    assert measured(loop, candidate, changed).loss == measured(loop, candidate, batch).loss


def test_rows_that_fill_the_last_evaluation_batch_do_not_count(loop, candidate):
    batch = data(5)
    filled = EvaluationBatches.of(batch).batches
    assert filled[0]["input_ids"].shape[0] > 5
    assert loop.objective(candidate.params, filled) == pytest.approx(
        loop.objective(candidate.params, [batch]),
        rel=1e-6,  # other batch shape, other order of sums in float32
    )
    assert measured(loop, candidate, batch).loss == pytest.approx(
        loop.objective(candidate.params, [batch]) / 3,  # bytes per token, and no end token
        rel=1e-6,
    )


def test_records_cut_to_few_lengths_have_the_losses_of_padded_ones(loop, candidate):
    batch = data(40)
    padded = loop.evaluate(candidate.params, EvaluationBatches.of(batch))
    batches = EvaluationBatches.of(batch, buckets=(8, 10))
    assert [b["labels"].shape[1] for b in batches.batches] == [8, 10, 12]
    cut = loop.evaluate(candidate.params, batches)
    assert_close(cut.nats, padded.nats, "float32")
    lost = loop.evaluate(candidate.params, EvaluationBatches.of(truncated(batch, 8)))  # control
    assert np.abs(lost.nats - padded.nats).max() > 1


def test_training_lowers_the_loss_and_is_repeatable(loop, candidate):
    config = FineTuneConfig(batch_size=8, max_epochs=6, patience=3, steps_per_call=4)
    train = data(32)
    first = fine_tune(loop, candidate.params, Splits(train, train, train), config=config).result
    again = fine_tune(loop, candidate.params, Splits(train, train, train), config=config).result
    assert first == again
    assert first.test_loss < measured(loop, candidate, train).loss - 0.15
    other = fine_tune(
        loop, candidate.params, Splits(train, train, train),
        config=FineTuneConfig(batch_size=8, max_epochs=6, patience=3, steps_per_call=4, seed=1),
    ).result  # fmt: skip
    assert other != first


def test_patience_stops_and_the_best_step_is_reported(candidate):
    rough = Loop(candidate.apply_fn, OptimizerConfig(learning_rate=3e-2), shift=True)
    config = FineTuneConfig(batch_size=8, max_epochs=200, patience=2, steps_per_call=2)
    seen = []
    result = fine_tune(
        rough, candidate.params, Splits(data(16), data(16, seed=1), data(16, seed=2)),
        config=config, on_progress=seen.append,
    ).result  # fmt: skip
    losses = [p.validation_loss for p in seen]
    assert result.stopped_early
    assert result.validation_loss == min(losses)
    assert seen[int(np.argmin(losses))].step == result.best_step
    assert len(losses) - 1 - int(np.argmin(losses)) == config.patience
    assert result.num_steps == seen[-1].step < seen[-1].max_steps


def test_one_compilation_serves_every_size(candidate):
    fresh = Loop(candidate.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    config = FineTuneConfig(batch_size=4, max_epochs=1, steps_per_call=2)
    for size in (8, 24, 50):
        fine_tune(fresh, candidate.params, Splits(data(size), data(9), data(9)), config=config)
    assert fresh._train._cache_size() == 1
    assert fresh._evaluate._cache_size() == 1


def test_a_diverging_run_stops_with_its_origin(candidate):
    wild = Loop(candidate.apply_fn, OptimizerConfig(learning_rate=1e30), shift=True)
    config = FineTuneConfig(batch_size=8, max_epochs=20)
    with pytest.raises(FloatingPointError, match="learning_rate"):
        fine_tune(wild, candidate.params, Splits(data(16), data(8), data(8)), config=config)


@pytest.mark.parametrize("cut", [0, 1, 2])
def test_data_without_a_target_is_refused(cut):
    """As after a cut that leaves prompts alone; one target in a split is enough."""
    loop = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-3), shift=True)
    whole = tiny.examples(4)
    prompts = {**whole, "labels": np.full_like(whole["labels"], -100)}
    splits = [prompts if i == cut else whole for i in range(3)]
    name = ("train", "validation", "test")[cut]
    with pytest.raises(checks.UserError, match=f"`{name}` must hold a target token, got none in 4"):
        fine_tune(loop, tiny.params(), Splits(*splits), config=FineTuneConfig())


@pytest.mark.parametrize("name", ["batch_size", "max_epochs", "patience", "steps_per_call"])
def test_settings_must_be_positive(name):
    with pytest.raises(checks.UserError, match=name):
        FineTuneConfig(**{name: 0})
