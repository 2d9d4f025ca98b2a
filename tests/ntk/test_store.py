"""Tiles on disk: the same bits as in memory, whatever happens in between."""

import hashlib
import io
import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from contextlib import nullcontext
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.ntk.gram import assemble, tiles
from lensllm_jax.ntk.readout import Readout, ReadoutFn
from lensllm_jax.ntk.store import SETTINGS, TileStore, kernel_settings
from tests.ntk import cases, stored_kernel

ROOT = Path(__file__).parent.parent.parent
NUM_TILES = 15  # 5 examples in blocks of one, half of the kernel


def kernel(folder=None, progress=None):
    return stored_kernel.kernel(folder, on_tile=[].append if progress is None else progress.append)


def tile_files(folder):
    return sorted(folder.glob("tile_*.npy"))


def start(folder, *arguments, pause):
    """Another process that fills the store."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.ntk.stored_kernel", str(folder), str(pause), *arguments],
        cwd=ROOT, env={**os.environ, "JAX_PLATFORMS": "cpu"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def output_of(process):
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    return out.splitlines()


def test_kernel_is_that_in_memory_bit_for_bit_and_half_of_it_is_stored(tmp_path):
    progress = []
    theta = kernel(tmp_path, progress)
    np.testing.assert_array_equal(theta, kernel())
    assert len(tile_files(tmp_path)) == NUM_TILES
    assert [(p.done, p.total, p.computed) for p in progress][-1] == (NUM_TILES, NUM_TILES, True)
    # a second run finds everything
    progress.clear()
    np.testing.assert_array_equal(kernel(tmp_path, progress), theta)
    assert [p.computed for p in progress] == [False] * NUM_TILES


def test_a_run_that_was_killed_resumes_and_ends_with_the_same_bits(tmp_path):
    killed = start(tmp_path, pause=0.3)
    lines = [killed.stdout.readline() for _ in range(4)]
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert lines[-1].startswith("tile 4 of")
    there = {path: path.stat().st_mtime_ns for path in tile_files(tmp_path)}
    assert 4 <= len(there) < NUM_TILES
    progress = []
    theta = kernel(tmp_path, progress)
    np.testing.assert_array_equal(theta, kernel())
    assert sum(p.computed for p in progress) == NUM_TILES - len(there)
    assert {path: path.stat().st_mtime_ns for path in there} == there  # none was made again


def test_two_processes_share_the_tiles_and_both_get_the_kernel(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    both = [start(tmp_path, address, "2", str(i), pause=0.1) for i in (0, 1)]
    lines = [output_of(process) for process in both]
    assert [len(line) - 1 for line in lines] == [8, 7]  # every tile once
    assert len(tile_files(tmp_path)) == NUM_TILES
    expected = fingerprint(kernel())
    assert [line[-1] for line in lines] == [expected, expected]


@pytest.mark.parametrize(
    "damage",
    [lambda content: content[:-1], lambda content: content[:-3] + b"\0\1\2", lambda content: b""],
)
def test_a_damaged_tile_is_computed_again_with_a_warning(tmp_path, damage, caplog):
    theta = kernel(tmp_path)
    victim = tile_files(tmp_path)[7]
    victim.write_bytes(damage(victim.read_bytes()))
    progress = []
    with caplog.at_level(logging.WARNING):
        again = kernel(tmp_path, progress)
    np.testing.assert_array_equal(again, theta)
    assert sum(p.computed for p in progress) == 1
    assert f"{victim.name} is damaged" in caplog.text


def npy(values):
    buffer = io.BytesIO()
    np.save(buffer, values, allow_pickle=True)
    return buffer.getvalue()


EYE = np.eye(2, dtype=np.float32)
NO_TILES = {
    "empty": b"",
    "no file of NumPy's": b"garbage",
    "objects": npy(EYE.astype(object)),
    "a shape that lies": npy(EYE).replace(b"(2, 2)", b"(2, 9)"),
    "a shape beyond all memory": npy(EYE).replace(b"(2, 2), }" + b" " * 9, b"(2, 9999999999), }"),
    "a negative shape": npy(EYE).replace(b"(2, 2), } ", b"(2, -2), }"),
    "integers": npy(EYE.astype(np.int32)),
    "float64": npy(EYE.astype(np.float64)),
    "the other byte order": npy(EYE.astype(">f4")),
    "complex": npy(EYE.astype(np.complex64)),
    "text": npy(np.full((2, 2), "a")),
    "NaN": npy(EYE * np.nan),
    "outputs": npy(EYE[..., None, None]),
    "no axes": npy(EYE[0, 0]),
}


@pytest.mark.parametrize("place", ["tile_0_0", "tile_0_2"])
@pytest.mark.parametrize("name", NO_TILES)
def test_what_is_no_tile_is_computed_again_though_its_name_fits(tmp_path, name, place):
    values = np.arange(25, dtype=np.float32).reshape(5, 5)
    shape = {"block_size": 2, "symmetric": True}

    def filled():
        store, computed = TileStore.open(tmp_path, {}), []

        def tile_fn(tile):
            computed.append(tile)
            return values[tile.rows, tile.columns]

        store.fill(tiles(5, 5, **shape), tile_fn)
        return assemble(store.read, 5, 5, **shape), len(computed)

    whole, num_tiles = filled()
    assert num_tiles == 6
    (victim,) = tmp_path.glob(f"{place}_*")
    victim.unlink()
    digest = hashlib.sha256(f"{place}\n".encode() + NO_TILES[name]).hexdigest()
    (tmp_path / f"{place}_{digest}.npy").write_bytes(NO_TILES[name])
    again, num_tiles = filled()
    np.testing.assert_array_equal(again, whole)
    assert num_tiles == 1


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to(path.parent / "none")])
def test_what_is_no_file_is_no_tile(tmp_path, make):
    theta = kernel(tmp_path)
    victim = tile_files(tmp_path)[3]
    victim.unlink()
    make(victim)
    np.testing.assert_array_equal(kernel(tmp_path), theta)
    assert victim.is_file()


def test_a_damaged_tile_is_never_read(tmp_path):
    kernel(tmp_path)
    settings = json.loads((tmp_path / SETTINGS).read_text())["settings"]
    store = TileStore.open(tmp_path, settings)
    tile = (slice(0, 1), slice(2, 3))
    assert store.read(tile).shape == (1, 1)
    (victim,) = tmp_path.glob("tile_0_2_*.npy")
    victim.write_bytes(victim.read_bytes()[:-1])
    with pytest.raises(UserError, match="must hold tile_0_2, got none that is whole"):
        store.read(tile)


def test_a_store_of_another_kernel_is_refused_by_the_name_of_what_differs(tmp_path):
    case = cases.make("mlp")

    def settings(f=case.f, params=case.params, x=case.x, x2=None, **changed):
        return kernel_settings(f, params, x, x2, **{"block_size": 2, "method": "a", **changed})

    TileStore.open(tmp_path, settings())
    TileStore.open(tmp_path, settings())  # the same is let in
    moved = jax.tree.map(lambda w: w + 1, case.params)
    for name, others in {
        "f": settings(f=lambda params, x: case.f(params, x) * 2),
        "params": settings(params=moved),
        "x1": settings(x=case.x + 1),
        "x2": settings(x2=case.x),
        "block_size": settings(block_size=3),
        "method": settings(method="b"),
        "readout": settings(readout="loss"),
    }.items():
        with pytest.raises(UserError, match=f" {name}=.* there, .* now"):
            TileStore.open(tmp_path, others)


def test_what_a_function_closes_over_belongs_to_it():
    def settings_with(constant):
        return kernel_settings(lambda w, x: x @ (w * constant), jnp.ones(3), jnp.ones((2, 3)), None)

    a, same, other = (settings_with(np.arange(3.0) + i) for i in (0, 0, 1))
    assert a == same
    assert {name for name in a if a[name] != other[name]} == {"f"}


def test_the_readout_of_a_candidate_is_named_in_a_refusal(tmp_path):
    case = cases.make("tied transformer")
    apply_fn = lambda params, x: jnp.ones((*x["labels"].shape, 9)) * params  # noqa: E731
    for readout, fits in ((Readout.LOSS, True), (Readout.TARGET_LOGPROB, False)):
        f = ReadoutFn(apply_fn, readout, shift=True)
        settings = kernel_settings(f, jnp.ones(()), case.x, None)
        with nullcontext() if fits else pytest.raises(UserError, match="readout='loss' there"):
            TileStore.open(tmp_path, settings)


def test_folders_that_are_no_store_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="`store` must be a folder"):
        TileStore.open(tmp_path / "file", {})
    with pytest.raises(UserError, match="must be empty or hold an earlier"):
        TileStore.open(tmp_path, {})
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    (damaged / SETTINGS).write_text("{")
    with pytest.raises(UserError, match="does not read"):
        TileStore.open(damaged, {})


def test_a_tile_that_is_not_finite_is_not_stored(tmp_path):
    store = TileStore.open(tmp_path, {})
    with pytest.raises(UserError, match=r"theta \(tile_0_0\)` must be finite"):
        store.fill([(slice(0, 1), slice(0, 1))], lambda tile: np.full((1, 1), np.nan))
    assert tile_files(tmp_path) == []


def test_waiting_for_a_process_that_stopped_ends_with_a_message(tmp_path, monkeypatch):
    monkeypatch.setattr("jax.process_count", lambda: 2)
    store = TileStore.open(tmp_path, {})
    theirs = list(tiles(5, 5, block_size=1, symmetric=True))
    with pytest.raises(TimeoutError, match="7 tiles of other processes, such as tile_0_1,"):
        store.fill(theirs, lambda tile: np.zeros((1, 1)), patience_seconds=0.3)


def test_several_openers_of_one_new_folder_agree_on_its_settings(tmp_path):
    outcomes = []

    def open_as(value):
        try:
            TileStore.open(tmp_path / "store", {"value": value})
            outcomes.append(value)
        except UserError:
            outcomes.append(None)

    threads = [threading.Thread(target=open_as, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    winner = json.loads((tmp_path / "store" / SETTINGS).read_text())["settings"]["value"]
    assert [value for value in outcomes if value is not None] == [winner]


def test_rectangles_and_many_outputs_are_stored_whole(tmp_path):
    values = np.random.default_rng(0).normal(size=(5, 3, 2, 2))
    store = TileStore.open(tmp_path, {})
    shape = {"block_size": 2, "symmetric": False}
    store.fill(tiles(5, 3, **shape), lambda tile: values[tile.rows, tile.columns])
    np.testing.assert_array_equal(assemble(store.read, 5, 3, **shape), values)


def test_tiles_in_another_place_or_of_another_kind_are_computed_again(tmp_path):
    values = np.arange(16.0).reshape(4, 4)
    shape = {"block_size": 2, "symmetric": False}

    def filled():
        store = TileStore.open(tmp_path, {})
        store.fill(tiles(4, 4, **shape), lambda tile: values[tile.rows, tile.columns])
        return assemble(store.read, 4, 4, **shape)

    def write(stem, array):
        """A file whose name fits its bytes."""
        buffer = io.BytesIO()
        np.save(buffer, array)
        digest = hashlib.sha256(f"{stem}\n".encode() + buffer.getvalue()).hexdigest()
        (tmp_path / f"{stem}_{digest}.npy").write_bytes(buffer.getvalue())

    filled()
    (first,), (last,) = tmp_path.glob("tile_0_0_*"), tmp_path.glob("tile_2_2_*")
    moved = last.with_name(first.name.replace("tile_0_0", "tile_2_2"))
    last.unlink()
    first.rename(moved)
    np.testing.assert_array_equal(filled(), values)
    assert not moved.exists()
    for wrong in (np.ones((1, 1)), np.ones((2, 2), np.float32), np.ones((2, 2, 1, 1))):
        (victim,) = tmp_path.glob("tile_2_0_*")
        victim.unlink()
        write("tile_2_0", wrong)
        np.testing.assert_array_equal(filled(), values)
        (victim,) = tmp_path.glob("tile_2_0_*")
        victim.unlink()
        write("tile_2_0", values[2:, :2] + 1)  # this one is of the right kind: it is believed
        assert filled()[2, 0] == values[2, 0] + 1
