"""Vmapped rates end where each ends alone, also in a search that was killed and resumed."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.finetune import search as search_module
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.resume import Checkpoint
from lensllm_jax.finetune.search import SearchGrid, search_rates
from tests.finetune import tiny

CONFIG = FineTuneConfig(batch_size=4, max_epochs=6, patience=2, steps_per_call=2, buckets=(6,))
OPTIMIZER = OptimizerConfig(learning_rate=1e-3, warmup_steps=2, decay_steps=40)
RATES = (1e-4, 3e-2)  # of the search that is killed


def splits():
    return Splits(tiny.examples(24), tiny.examples(24, seed=1), tiny.examples(8))


def search(micro_batches=1, **grid):
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True, micro_batches=micro_batches)
    return search_rates(loop, tiny.params(), splits(), SearchGrid(**grid), config=CONFIG)


@pytest.fixture(scope="module")
def found():
    return search(rates=(1e-4, 3e-2, 0.5), batch_sizes=(4, 8))


@pytest.mark.parametrize(("rate", "column"), [(3e-2, 1), (0.5, 2)])
def test_a_rate_among_others_ends_where_it_ends_alone(found, rate, column):
    loop = Loop(tiny.apply_fn, OptimizerConfig(rate, warmup_steps=2, decay_steps=40), shift=True)
    alone = fine_tune(loop, tiny.params(), splits(), config=CONFIG).result
    # another order of sums, carried through tens of steps
    assert found.losses[0, column] == pytest.approx(alone.validation_loss, rel=1e-4)
    assert found.best_steps[0, column] == alone.best_step
    assert abs(found.losses[0, 0] - alone.validation_loss) > 0.1  # control: another rate


def test_tokens_of_every_setting_are_counted():
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    alone = fine_tune(loop, tiny.params(), splits(), config=CONFIG).result
    assert search(rates=(1e-3,), batch_sizes=(4,)).num_tokens == alone.num_tokens
    two = search(rates=(1e-3, 1e-3), batch_sizes=(4,))
    assert two.num_tokens == 2 * alone.num_tokens


def test_the_lowest_loss_names_rate_and_batch_size(found):
    row, column = np.unravel_index(np.argmin(found.losses), (2, 3))
    assert (found.batch_size, found.learning_rate) == ((4, 8)[row], (1e-4, 3e-2, 0.5)[column])
    assert found.losses.min() < found.losses.max() - 0.1


def test_steps_in_two_passes_find_the_same(found):
    parts = search(micro_batches=2, rates=(1e-4, 3e-2, 0.5), batch_sizes=(4, 8))
    # another order of sums, carried through tens of steps
    np.testing.assert_allclose(parts.losses[:, :2], found.losses[:, :2], rtol=1e-4)
    assert parts.num_tokens == found.num_tokens


def test_a_rate_that_diverges_stops_no_other(found):
    wild = search(rates=(3e-2, 1e38), batch_sizes=(4,))
    assert wild.losses[0, 0] == pytest.approx(found.losses[0, 1], rel=1e-4)  # order of sums
    assert not wild.losses[0, 1] < 10
    assert wild.learning_rate == 3e-2


class Killed(Exception):
    """In place of a signal."""


class KilledAt:
    """One compiled program for all lives, which counts its calls and ends them at one."""

    def __init__(self):
        loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
        self.vmapped = search_module._Vmapped(loop, RATES)
        self.train, self.vmapped.train = self.vmapped.train, self.counted
        self.batch_sizes, self.kill_at = [], None

    def counted(self, state, batches, last_step):
        self.batch_sizes.append(batches["labels"].shape[1])
        if len(self.batch_sizes) == self.kill_at:
            raise Killed
        return self.train(state, batches, last_step)

    def search(self, checkpoint=None, *, kill_at=None, rates=RATES, **settings):
        """What is found, and the batch size of each call made."""
        self.batch_sizes, self.kill_at = [], kill_at
        found = search_rates(
            self.vmapped.loop, tiny.params(), splits(), SearchGrid(rates, (4, 8)), config=CONFIG,
            checkpoint=checkpoint, **settings,
        )  # fmt: skip
        return found, self.batch_sizes


@pytest.fixture
def killed(monkeypatch):
    """A search that may be killed; compiled once."""
    killed = KilledAt()
    monkeypatch.setattr(search_module, "_Vmapped", lambda loop, rates: killed.vmapped)
    return killed


def assert_same_bits(found, whole):
    for name in ("losses", "best_steps"):
        np.testing.assert_array_equal(getattr(found, name), getattr(whole, name))
    assert found.num_tokens == whole.num_tokens


def test_a_search_killed_at_any_call_ends_in_the_same_bits(killed, tmp_path):
    whole, calls = killed.search()
    seam = calls.index(8) + 1  # the first call with the second batch size
    for kill_at in sorted({1, 2, 7, seam - 1, seam, seam + 1, len(calls)}):
        checkpoint = Checkpoint(tmp_path / f"{kill_at}.safetensors", every_seconds=0)
        with pytest.raises(Killed):
            killed.search(checkpoint, kill_at=kill_at)
        found, later_calls = killed.search(checkpoint)
        assert_same_bits(found, whole)
        assert later_calls == calls[kill_at - 1 :]  # nothing is trained twice
        assert killed.search(checkpoint)[1] == []  # what is finished stays so
        checkpoint.discard()
        assert killed.search(checkpoint)[1] == calls  # control: without its file it starts over


def test_progress_is_the_share_of_calls_and_says_the_lowest_loss(killed):
    updates = []
    found, calls = killed.search(on_progress=updates.append)
    # six passes over 24 examples in calls of two steps: 18 with batches of 4, 9 with those of 8
    made = [1 + n for n in range(calls.count(4))] + [19 + n for n in range(calls.count(8))]
    assert [now.share for now in updates] == [n / 27 for n in made]
    assert updates[-1].validation_loss == found.losses.min() < updates[2].validation_loss
    assert updates[-1].tokens_per_second > 0


def test_a_finished_batch_size_is_kept_though_no_writing_is_due(killed, tmp_path):
    _, calls = killed.search()
    checkpoint = Checkpoint(tmp_path / "cell.safetensors", every_seconds=3600)
    with pytest.raises(Killed):
        killed.search(checkpoint, kill_at=len(calls))
    assert killed.search(checkpoint)[1] == [size for size in calls if size == 8]


def test_a_file_of_another_search_is_refused(killed, tmp_path):
    checkpoint = Checkpoint(tmp_path / "cell.safetensors", every_seconds=0)
    with pytest.raises(Killed):
        killed.search(checkpoint, kill_at=3)
    with pytest.raises(checks.UserError, match=r"learning_rate=\[0.0001, 0.03\] there"):
        killed.search(checkpoint, rates=(1e-4, 1e-2))


def test_prompts_without_a_target_are_refused():
    data = tiny.examples(8)
    prompts = {**data, "labels": np.full_like(data["labels"], -100)}
    loop = Loop(tiny.apply_fn, OPTIMIZER, shift=True)
    with pytest.raises(checks.UserError, match="`validation` must hold a target token"):
        search_rates(loop, tiny.params(), Splits(data, prompts, data), config=CONFIG)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"rates": ()}, "at least one"), ({"rates": (0.0,)}, "`rates` must be positive")],
)
def test_impossible_searches_are_refused(settings, message):
    with pytest.raises(checks.UserError, match=message):
        search(**settings)
