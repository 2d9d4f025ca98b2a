"""A fine-tune that resumes from its file gives the same number, bit for bit, or says why not."""

import subprocess
import sys
import time

import jax
import numpy as np
import pytest

from lensllm_jax import checks, durable
from lensllm_jax.finetune import resume
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.resume import Checkpoint, Position
from tests.finetune import tiny

CONFIG = FineTuneConfig(batch_size=4, max_epochs=30, patience=2, steps_per_call=2, buckets=(6,))


class Killed(Exception):
    """In place of a signal."""


@pytest.fixture(scope="module")
def loop():
    return Loop(tiny.apply_fn, OptimizerConfig(learning_rate=3e-2), shift=True)


def run(loop, checkpoint=None, *, kill_at=None, config=CONFIG, seed=0):
    calls = []

    class Counted(Loop):
        """The same compiled steps, counted."""

        def __init__(self):
            self.__dict__ |= loop.__dict__

        def train(self, *args):
            calls.append(1)
            if len(calls) == kill_at:
                raise Killed
            return loop.train(*args)

    data = [tiny.examples(24, seed=seed + i) for i in range(3)]
    done = fine_tune(Counted(), tiny.params(), Splits(*data), config=config, checkpoint=checkpoint)
    return done, len(calls)


@pytest.fixture(scope="module")
def whole(loop):
    return run(loop)


@pytest.fixture
def stopped(loop, tmp_path):
    """The file of a run that was killed in its seventh call."""
    with pytest.raises(Killed):
        run(loop, Checkpoint(tmp_path / "cell.safetensors", every_seconds=0), kill_at=7)
    return tmp_path / "cell.safetensors"


def test_moments_of_16_bits_are_resumed(tmp_path):
    narrow = Loop(
        tiny.apply_fn, OptimizerConfig(learning_rate=3e-2, moments_dtype="bfloat16"), shift=True
    )
    file = tmp_path / "cell.safetensors"
    with pytest.raises(Killed):
        run(narrow, Checkpoint(file, every_seconds=0), kill_at=7)
    (resumed, *_), again = run(narrow, Checkpoint(file))
    whole, calls = run(narrow)
    assert (resumed, again) == (whole.result, calls - 6)


WRITES_AND_READS = """
import pathlib, resource, sys
import jax.numpy as jnp, numpy as np
from lensllm_jax.finetune.loop import TrainState
from lensllm_jax.finetune.resume import Checkpoint, Position

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024  # MiB

weights = {str(i): jnp.full((2**22,), float(i)) for i in range(16)}  # of 16 MiB
start = Position(TrainState(weights, {}), {})
before, checkpoint = peak(), Checkpoint(pathlib.Path(sys.argv[1]))
checkpoint.save(start, {})
saved = peak()
loaded = checkpoint.load(start, {})
print(before, saved, peak(), float(loaded.state.params["7"][-1]))
"""


def test_writing_holds_no_copy_of_the_arrays(tmp_path):
    command = [sys.executable, "-c", WRITES_AND_READS, str(tmp_path / "cell.safetensors")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    before, saved, loaded, value = map(float, done.stdout.split())
    assert value == 7.0
    assert saved - before < 64  # MiB, of 256
    # what is read and the file's pages, but not the file as one string of bytes too
    assert loaded - saved < 256 + 256 + 64


def test_a_slow_disk_takes_a_twentieth_of_the_time(tmp_path, monkeypatch, loop):
    now, written = [0.0], []

    def replace(*_):
        written.append(now[0])
        now[0] += 8.0

    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(resume, "write_safetensors", replace)
    start = Position.at_start(loop.start(tiny.params()))
    for every_seconds, expected in ((60, [60.0, 228.0, 396.0]), (0, [0.0, 8.0, 16.0])):
        now[0] = 0.0
        written.clear()
        checkpoint = Checkpoint(tmp_path / "cell.safetensors", every_seconds=every_seconds)
        while len(written) < 3:
            checkpoint.save_if_due(start, {})
            now[0] += float(every_seconds > 0)
        assert np.allclose(written, expected, atol=1.0)  # asked once a second


def test_the_test_stops_by_patience(whole):
    (result, *_), num_calls = whole
    assert result.stopped_early
    assert result.best_step < result.num_steps == num_calls * CONFIG.steps_per_call


def test_killed_at_every_call_it_ends_in_the_same_bits(loop, whole, tmp_path):
    (expected, params, _), num_calls = whole
    for kill_at in range(1, num_calls + 1):
        checkpoint = Checkpoint(tmp_path / f"{kill_at}.safetensors", every_seconds=0)
        with pytest.raises(Killed):
            run(loop, checkpoint, kill_at=kill_at)
        (result, resumed, _), later_calls = run(loop, checkpoint)
        assert result == expected
        assert later_calls == num_calls - (kill_at - 1)  # nothing is trained twice
        jax.tree.map(np.testing.assert_array_equal, resumed, params)


def test_killed_after_the_last_call_it_only_measures(loop, whole, tmp_path):
    checkpoint = Checkpoint(tmp_path / "cell.safetensors", every_seconds=0)
    run(loop, checkpoint)
    (result, *_), num_calls = run(loop, checkpoint)
    assert result == whole[0].result
    assert num_calls == 0
    checkpoint.discard()
    assert list(tmp_path.iterdir()) == []


def test_seconds_of_all_lives_are_summed(loop, whole, tmp_path, monkeypatch):
    """By a clock that ticks a second a call of it, so that nothing depends on the machine."""
    clock = iter(range(10**6))
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    file, lasted = tmp_path / "cell.safetensors", []
    for kill_at in (4, 7, None):
        checkpoint, began = Checkpoint(file, every_seconds=0), next(clock)
        assert checkpoint.earlier_seconds == 0.0
        if kill_at:
            with pytest.raises(Killed):
                run(loop, checkpoint, kill_at=kill_at)
        else:
            (result, *_), _ = run(loop, checkpoint)
        # a life counts up to its last writing, a few ticks before its end
        assert checkpoint.earlier_seconds == pytest.approx(sum(lasted), abs=5 * len(lasted))
        assert (checkpoint.earlier_seconds > 0) == bool(lasted)
        lasted.append(next(clock) - began)
    assert result == whole[0].result  # time decides nothing


def test_a_file_is_written_when_it_is_due(loop, tmp_path):
    run(loop, Checkpoint(tmp_path / "cell.safetensors", every_seconds=3600))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "emptied", "bit", "header"])
def test_a_damaged_file_is_refused(loop, stopped, damage):
    content = bytearray(stopped.read_bytes())
    if damage == "bit":
        content[-3] ^= 16
    elif damage == "header":
        content[20] ^= 1
    stopped.write_bytes(content[: {"cut": 100, "emptied": 0}.get(damage, len(content))])
    with pytest.raises(checks.UserError, match=r"`checkpoint` must be a whole file.*delete it"):
        run(loop, Checkpoint(stopped))


def test_a_file_of_another_fine_tune_is_refused(loop, stopped):
    other = FineTuneConfig(batch_size=4, max_epochs=30, patience=3, steps_per_call=2, buckets=(6,))
    with pytest.raises(checks.UserError, match="patience=2 there, 3 now"):
        run(loop, Checkpoint(stopped), config=other)
    with pytest.raises(checks.UserError, match="train="):
        run(loop, Checkpoint(stopped), seed=10)
    rate = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-2), shift=True)
    with pytest.raises(checks.UserError, match=r"learning_rate=0\.03 there"):
        run(rate, Checkpoint(stopped))


def test_what_a_killed_writer_left_is_removed(loop, stopped, whole):
    left = stopped.with_name(f".{stopped.name}.0123{durable.PARTIAL}")
    left.write_bytes(b"half")
    (result, *_), _ = run(loop, Checkpoint(stopped))
    assert result == whole[0].result
    assert not left.exists()


def test_a_full_disk_keeps_the_file_before(loop, stopped, monkeypatch):
    before = stopped.read_bytes()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(durable.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        run(loop, Checkpoint(stopped, every_seconds=0))
    assert stopped.read_bytes() == before
    assert [path.name for path in stopped.parent.iterdir()] == [stopped.name]
