"""Rates that train together find what each finds alone."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.finetune.fine_tune import FineTuneConfig, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.search import search_rates
from tests.finetune import tiny

CONFIG = FineTuneConfig(batch_size=4, max_epochs=6, patience=2, steps_per_call=2, buckets=(6,))
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=40)


def search(**settings):
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    data = tiny.examples(24), tiny.examples(24, seed=1)
    return search_rates(loop, tiny.params(), *data, config=CONFIG, **settings)


@pytest.fixture(scope="module")
def found():
    return search(rates=(1e-4, 3e-2, 0.5), batch_sizes=(4, 8))


@pytest.mark.parametrize(("rate", "column"), [(3e-2, 1), (0.5, 2)])
def test_a_rate_among_others_ends_where_it_ends_alone(found, rate, column):
    loop = Loop(tiny.apply_fn, OptimizerConfig(rate, warmup_steps=2, decay_steps=40), shift=True)
    data = tiny.examples(24), tiny.examples(24, seed=1), tiny.examples(8)
    alone = fine_tune(loop, tiny.params(), *data, config=CONFIG).result
    # another order of sums, carried through tens of steps
    assert found.losses[0, column] == pytest.approx(alone.validation_loss, rel=1e-4)
    assert found.best_steps[0, column] == alone.best_step
    assert abs(found.losses[0, 0] - alone.validation_loss) > 0.1  # control: another rate


def test_tokens_of_every_setting_are_counted():
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    data = tiny.examples(24), tiny.examples(24, seed=1), tiny.examples(8)
    alone = fine_tune(loop, tiny.params(), *data, config=CONFIG).result
    assert search(rates=(1e-3,), batch_sizes=(4,)).num_tokens == alone.num_tokens
    two = search(rates=(1e-3, 1e-3), batch_sizes=(4,))
    assert two.num_tokens == 2 * alone.num_tokens


def test_the_lowest_loss_names_rate_and_batch_size(found):
    row, column = np.unravel_index(np.argmin(found.losses), (2, 3))
    assert (found.batch_size, found.learning_rate) == ((4, 8)[row], (1e-4, 3e-2, 0.5)[column])
    assert found.losses.min() < found.losses.max() - 0.1


def test_a_rate_that_diverges_stops_no_other(found):
    wild = search(rates=(3e-2, 1e38), batch_sizes=(4,))
    assert wild.losses[0, 0] == pytest.approx(found.losses[0, 1], rel=1e-4)  # order of sums
    assert not wild.losses[0, 1] < 10
    assert wild.learning_rate == 3e-2


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rates": ()}, "at least one"), ({"rates": (0.0,)}, "`rates` must be positive")],
)
def test_impossible_searches_are_refused(settings, message):
    with pytest.raises(checks.UserError, match=message):
        search(**settings)
