"""Whatever stands in a file of a task, of losses or of a run, it is read or refused in one line."""

import csv
import json
import os

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from safetensors.numpy import save

from lensllm_jax import checks
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.finetune import resume
from lensllm_jax.finetune.loop import TrainState
from lensllm_jax.fingerprint import fingerprint
from lensllm_jax.measurement import jobs
from lensllm_jax.ntk.store import SETTINGS, TileStore
from lensllm_jax.runs.run_folder import RUN, RunFolder
from lensllm_jax.selection.loss_table import read_loss_table
from lensllm_jax.selection.public_tables import loss_table_file
from tests.checkpoints.mutations import VALUES, mutated_bytes
from tests.checkpoints.test_mutations import read_all

NUM_CASES = int(os.environ.get("FUZZ_FILES", "60"))  # 100,000 in `make soak`
RECORDS = [{"prompt": f"what of {i}?", "target": f"the king saw {i} stones"} for i in range(40)]


def task_file(folder, suffix):
    """Bytes of a task in a format."""
    path = folder / f"whole{suffix}"
    match suffix:
        case ".jsonl":
            path.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
        case ".json":
            path.write_text(json.dumps(RECORDS))
        case ".txt":
            path.write_text("\n\n".join(record["target"] for record in RECORDS))
        case ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(RECORDS), path)
        case _:
            with path.open("w", newline="") as file:
                writer = csv.DictWriter(file, RECORDS[0], delimiter="\t" if "t" in suffix else ",")
                writer.writeheader()
                writer.writerows(RECORDS)
    return path.read_bytes()


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv", ".txt", ".parquet"])
def test_tasks(suffix, tmp_path):
    whole, path = task_file(tmp_path, suffix), tmp_path / f"a{suffix}"

    def read(content):
        path.write_bytes(content)
        load_task(path)

    read(whole)
    num_read, num_refused = read_all(lambda rng: mutated_bytes(rng, whole), read, NUM_CASES, 0)
    assert num_read + num_refused == NUM_CASES


def test_loss_tables(tmp_path):
    whole, path = loss_table_file("lin2024/flan").read_bytes(), tmp_path / "a.csv"

    def read(content):
        path.write_bytes(content)
        assert (read_loss_table(path).losses > 0).any()

    read(whole)
    _, num_refused = read_all(lambda rng: mutated_bytes(rng, whole), read, NUM_CASES, 1)
    assert num_refused > 0


@pytest.mark.parametrize("record", [RUN, SETTINGS])
def test_records_of_folders(record, tmp_path):
    def opened():
        if record == RUN:
            return RunFolder.open(tmp_path, {"seed": 0, "sizes": [0, 200]})
        return TileStore.open(tmp_path, {"seed": 0, "sizes": [0, 200]})

    opened()
    path = tmp_path / record
    whole = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        opened()

    read_all(lambda rng: mutated_bytes(rng, whole), read, NUM_CASES, 2)


def test_pieces_are_whole_or_made_again(tmp_path, capsys):
    folder, piece = RunFolder.open(tmp_path, {}), {"test_loss": 1.25, "learning_rate": 1e-3}
    folder.write_piece("cells/a.json", piece)
    path = tmp_path / "cells/a.json"
    whole = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        assert folder.remember("cells/a.json", lambda: piece) == piece

    assert read_all(lambda rng: mutated_bytes(rng, whole), read, NUM_CASES, 3)[1] == 0
    assert "is made again" in capsys.readouterr().err


def test_tiles_are_whole_or_computed_again(tmp_path, caplog):
    tile, theta = (slice(0, 2), slice(0, 2)), np.arange(4.0).reshape(2, 2)
    TileStore.open(tmp_path, {}).fill([tile], lambda _: theta)
    (path,) = tmp_path.glob("tile_*")
    whole = path.read_bytes()

    def read(content):
        path.write_bytes(content)
        store = TileStore.open(tmp_path, {})
        store.fill([tile], lambda _: theta)
        np.testing.assert_array_equal(store.read(tile), theta)

    assert read_all(lambda rng: mutated_bytes(rng, whole), read, NUM_CASES, 4)[1] == 0


START = resume.Position.at_start(TrainState({"w": np.zeros(2)}, {"mu": np.zeros(2)}))


def checkpoint_of(position):
    """Bytes of a checkpoint whose digest is right, whatever its position says."""
    tensors = resume.named_arrays(START.arrays)
    text = json.dumps(position)
    digests = {name: fingerprint(array) for name, array in tensors.items()}
    metadata = {"position": text, "sha256": fingerprint([text, digests])}
    return save({name: np.asarray(array) for name, array in tensors.items()}, metadata)


def test_checkpoints(tmp_path):
    path = tmp_path / "cell.safetensors"
    resume.Checkpoint(path).save(START, {"seed": 0})
    whole = path.read_bytes()
    position = {"counts": START.counts, "seconds": 0.0, "settings": {"seed": 0}}

    def make(rng):
        if rng.random() < 0.5:
            return mutated_bytes(rng, whole)
        changed = json.loads(json.dumps(position))
        place = changed["counts"] if rng.random() < 0.7 else changed
        place[str(rng.choice([*place, "extra"]))] = VALUES[rng.integers(len(VALUES))]
        return checkpoint_of(changed)

    def read(content):
        path.write_bytes(content)
        loaded = resume.Checkpoint(path).load(START, {"seed": 0})
        resume.Checkpoint(path).check_at_most("call", loaded.call, 10)
        assert 0 <= loaded.call <= 10

    read(whole)
    read(checkpoint_of(position))
    num_read, num_refused = read_all(make, read, max(NUM_CASES, 600), 5)
    assert min(num_read, num_refused) > 0


@pytest.mark.parametrize("count", [-1, 11, 10**18, 1.5, "x", None, True, [1]])
def test_absurd_counts_with_a_right_digest_are_refused(tmp_path, count):
    path = tmp_path / "cell.safetensors"
    counts = {**START.counts, "call": count}
    path.write_bytes(checkpoint_of({"counts": counts, "seconds": 0.0, "settings": {}}))
    with pytest.raises(checks.UserError, match="`checkpoint` must be a whole file"):
        resume.Checkpoint(path).check_at_most(
            "call", resume.Checkpoint(path).load(START, {}).call, 10
        )


@pytest.mark.parametrize(
    "content", ["[]", "null", "{}", "[" * 100_000, '{"learning_rate": 1}', "x"]
)
def test_a_search_that_is_none_is_refused(tmp_path, content):
    path = tmp_path / "8.searched"
    path.write_text(content)
    with pytest.raises(checks.UserError, match="`search` must be a whole file"):
        jobs._stored_search(path, jobs.SearchGrid((1e-3,), (4,)))
