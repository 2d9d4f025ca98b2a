"""The grid in this process: seeds, searches, the ledger, what fails alone and what is refused."""

import csv
import dataclasses
import json
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from absl import flags
from absl.testing import flagsaver

import lensllm_jax as lens
from experiments import finetune_grid as grid
from lensllm_jax import checks, durable
from lensllm_jax.checkpoints.summary import describe_candidate
from lensllm_jax.checkpoints.zoo import folder_of
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.measurement import jobs
from lensllm_jax.measurement.jobs import Measurer
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.runs.resume import task_settings
from tests.data.test_hub import gigaword_copy

FLAGS = {
    "candidates": "zoo/gpt2-xs", "sizes": "0,8,16", "max_epochs": 2, "batch_size": 4,
    "learning_rate": 1e-3,
}  # fmt: skip


def written(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    records = [
        {"prompt": f"What{' then' * (n % 4)} of {n}?", "target": f"the king {n} of stone"}
        for n in range(120)
    ]
    records += records[:3]  # wherever the copies end up, each is left out
    return written(tmp_path_factory.mktemp("task") / "facts.jsonl", records)


def run(task, out, **changes):
    """The exit code of the binary."""
    settings = {**FLAGS, "task": task, "output_dir": out, **changes}
    with flagsaver.flagsaver():
        flags.FLAGS(["finetune_grid", *(f"--{name}={value}" for name, value in settings.items())])
        return grid.main([])


def rows(path):
    return list(csv.DictReader(path.read_text().splitlines()))


def cell(folder, piece):
    return json.loads((folder / "cells" / "zoo--gpt2-xs" / f"{piece}.json").read_text())


@pytest.fixture(scope="module")
def plain(task, tmp_path_factory):
    """One seed, nothing searched."""
    folder = tmp_path_factory.mktemp("grid") / "plain"
    assert run(task, folder, quiet=True, save_winner=f"{folder}-model") == 0
    return folder


@pytest.fixture(scope="module")
def searched(task, tmp_path_factory):
    """Two seeds, two rates and two batch sizes."""
    folder = tmp_path_factory.mktemp("grid") / "searched"
    chosen = {"learning_rates": "1e-5,1e-3", "batch_sizes": "4,8", "seeds": "0,1"}
    model = f"{folder}-model"
    assert run(task, folder, quiet=True, sizes="0,8", save_winner=model, **chosen) == 0
    return folder


def test_a_folder_records_every_setting(plain):
    settings = json.loads((plain / "run.json").read_text())["settings"]
    fields = {field.name for field in dataclasses.fields(MeasurementConfig)}
    assert set(settings) == fields | {
        "candidates", "candidates_sha256", "task", "task_sha256", "sizes", "threads",
    }  # fmt: skip
    assert (settings["seed"], settings["batch_size"], settings["threads"]) == ([0], [4], None)
    assert settings["compute"] == dataclasses.asdict(ComputeConfig(micro_batches=None))


@pytest.mark.parametrize(("grid_of", "piece"), [("plain", "16"), ("searched", "seed-0/8")])
def test_the_best_of_the_largest_size_is_saved_with_the_settings_it_chose(grid_of, piece, request):
    folder = request.getfixturevalue(grid_of)
    found, saved = cell(folder, piece), Path(f"{folder}-model")
    note = json.loads((saved / "fine_tuning.json").read_text())
    assert (note["candidate"], note["result"]["test_loss"]) == ("zoo/gpt2-xs", found["test_loss"])
    assert (note["learning_rate"], note["batch_size"]) == (
        found["learning_rate"], found["batch_size"]
    )  # fmt: skip
    before, after = (lens.load_candidate(name).params for name in ("zoo/gpt2-xs", str(saved)))
    assert np.abs(before["embed"]["embedding"] - after["embed"]["embedding"]).max() > 1e-4
    assert not list(folder.glob("cells/**/*weights*"))


def test_copies_between_splits_are_left_out_and_counted(plain):
    record = json.loads((plain / "run.json").read_text())
    assert sum(record["examples"].values()) == 120
    assert sum(record["left_out"].values()) == 3
    assert all("repeats" in reason for reason in record["left_out"])


def test_what_is_known_of_a_checkpoint_is_shown_and_recorded(task, tmp_path, capsys):
    names = "zoo/gpt2-xs,zoo/t5-xs"  # only the second one's config has keys that nobody reads
    assert run(task, tmp_path / "noted", candidates=names, sizes="0") == 0
    (note,) = describe_candidate("zoo/t5-xs").notes
    assert note.endswith("ignored, as by Hugging Face's t5 model")
    shown = capsys.readouterr()
    assert (shown.out + shown.err).count(f"zoo/t5-xs: {note}\n") == 1
    record = json.loads((tmp_path / "noted" / "run.json").read_text())
    assert record["checkpoints"] == {"zoo/t5-xs": [note]}


def test_the_ledger_says_what_each_fine_tune_took(plain):
    ledger = rows(plain / "ledger.csv")
    assert [row["size"] for row in ledger] == ["0", "8", "16"]
    assert (ledger[0]["flops"], ledger[0]["num_tokens"], ledger[0]["best_step"]) == ("0", "0", "")
    params = lens.load_candidate("zoo/gpt2-xs").num_params
    for row in ledger[1:]:
        assert (row["seed"], row["learning_rate"], row["batch_size"]) == ("0", "0.001", "4")
        assert int(row["flops"]) == 6 * params * int(row["num_tokens"])
        assert 0 < int(row["best_step"]) <= int(row["num_steps"])
        assert float(row["tokens_per_second"]) > 0
        assert (row["search_tokens"], row["search_flops"]) == ("0", "0")
    assert ledger[1]["data_order_sha256"] != ledger[2]["data_order_sha256"]


def test_losses_are_nats_per_byte_with_their_errors(plain, task):
    """From the targets' text alone, without any token."""
    measurement = Measurer(lens.load_task(task)).measurement("zoo/gpt2-xs", MeasurementConfig())
    num_bytes = [len(example.target.encode()) for example in measurement.task.test]
    for row in rows(plain / "ledger.csv"):
        records = np.load(plain / "cells" / "zoo--gpt2-xs" / f"{row['size']}.npy")
        assert records[1].tolist() == num_bytes
        assert float(row["test_loss"]) == records[0].sum() / sum(num_bytes)
        assert 0 < float(row["loss_se"]) < float(row["test_loss"])
        assert float(row["difference_se"]) == 0  # it is the only candidate, and the best
    before = measurement.zero_shot()
    assert float(rows(plain / "ledger.csv")[0]["end_loss"]) == before.end_loss
    per_token = measurement.objective(measurement.candidate.params)
    assert per_token > 2 * before.loss  # control: the unit makes a difference


def test_a_difference_on_the_same_records_is_surer_than_two_losses(task, tmp_path):
    candidates = "zoo/gpt2-xs,zoo/opt-xs"
    assert run(task, tmp_path / "out", quiet=True, candidates=candidates, sizes="0") == 0
    best, other = sorted(rows(tmp_path / "out/ledger.csv"), key=lambda r: float(r["test_loss"]))
    names = [row["candidate"].replace("/", "--") for row in (best, other)]
    records = [np.load(tmp_path / "out" / "cells" / name / "0.npy") for name in names]
    nats, num_bytes = records[1][0] - records[0][0], records[0][1]
    residuals = nats - nats.sum() / num_bytes.sum() * num_bytes
    n = len(nats)
    expected = np.sqrt(n / (n - 1) * (residuals**2).sum()) / num_bytes.sum()
    assert float(other["difference_se"]) == pytest.approx(expected, rel=1e-9)
    assert float(best["difference_se"]) == 0


def test_losses_are_means_over_seeds_and_each_seed_has_its_table(searched):
    names = ("losses", "losses-seed-0", "losses-seed-1")
    mean, zero, one = (lens.read_loss_table(searched / f"{name}.csv") for name in names)
    assert mean.sizes.tolist() == [0, 8]
    assert np.array_equal(mean.losses, (zero.losses + one.losses) / 2)
    assert zero.losses[0, 0] == one.losses[0, 0]  # no seed before fine-tuning
    assert zero.losses[0, 1] != one.losses[0, 1]
    settings = json.loads((searched / "run.json").read_text())["settings"]
    assert settings["seed"] == [0, 1]
    assert (settings["learning_rate"], settings["batch_size"]) == ([1e-5, 1e-3], [4, 8])
    ledger = rows(searched / "ledger.csv")
    assert [(row["size"], row["seed"]) for row in ledger] == [("0", "0"), ("8", "0"), ("8", "1")]
    assert ledger[1]["data_order_sha256"] != ledger[2]["data_order_sha256"]


def test_the_lowest_validation_loss_chooses(searched):
    for seed in (0, 1):
        found = cell(searched, f"seed-{seed}/8")
        search, losses = found["search"], np.array(found["search"]["validation_losses"])
        row, column = np.unravel_index(np.argmin(losses), losses.shape)
        assert found["batch_size"] == search["batch_sizes"][row] == search["batch_size"]
        assert found["learning_rate"] == search["learning_rates"][column] == 1e-3
        # all rates in one program: another order of sums than alone
        assert found["validation_loss"] == pytest.approx(losses.min(), rel=1e-4)
        assert losses.max() > losses.min() + 1e-3  # control: the settings differ
    params = lens.load_candidate("zoo/gpt2-xs").num_params
    for row in rows(searched / "ledger.csv")[1:]:
        assert int(row["search_tokens"]) > int(row["num_tokens"])
        assert int(row["search_flops"]) == 6 * params * int(row["search_tokens"])


def test_a_killed_cell_does_not_search_again(searched, task, tmp_path, monkeypatch):
    folder = tmp_path / "copy"
    shutil.copytree(searched, folder)
    before, ours = (folder / "losses.csv").read_bytes(), folder / "cells/zoo--gpt2-xs/seed-1/8.json"
    search = json.loads(ours.read_text())["search"]
    ours.unlink()
    ours.with_suffix(jobs.SEARCHED).write_text(json.dumps(search))

    def again(*_, **__):
        raise AssertionError("searched twice")

    monkeypatch.setattr(Measurement, "search", again)
    chosen = {"learning_rates": "1e-5,1e-3", "batch_sizes": "4,8", "seeds": "0,1"}
    assert run(task, folder, quiet=True, sizes="0,8", **chosen) == 0
    assert (folder / "losses.csv").read_bytes() == before
    assert not ours.with_suffix(jobs.SEARCHED).exists()
    ours.unlink()
    with pytest.raises(AssertionError, match="searched twice"):  # control: without the result
        run(task, folder, quiet=True, sizes="0,8", **chosen)


def test_flags_reach_the_loop(task, tmp_path):
    settings = {
        "compute_dtype": "bfloat16", "micro_batches": 2, "remat": True, "buckets": "8,16",
        "warmup_steps": 3, "decay_steps": "all", "clip_norm": 0.5, "output_dir": tmp_path,
        "batch_size": 4,
    }  # fmt: skip
    with flagsaver.flagsaver():
        flags.FLAGS(["finetune_grid", *(f"--{name}={value}" for name, value in settings.items())])
        config = grid.FLAGS.run().measurement
    compute = ComputeConfig(dtype="bfloat16", remat=True, micro_batches=2)
    assert config.compute == compute
    measurement = Measurer(lens.load_task(task)).measurement("zoo/gpt2-xs", config)
    assert measurement.loop.micro_batches == 2
    optimizer = measurement.loop.config
    assert (optimizer.warmup_steps, optimizer.decay_steps, optimizer.clip_norm) == (3, "all", 0.5)
    assert config.fine_tuning().buckets == (8, 16)
    recorded = task_settings({}, lens.load_task(task), config)
    assert recorded["clip_norm"] == 0.5
    assert recorded["compute"]["dtype"] == "bfloat16"


def test_a_cell_whose_loss_is_not_finite_fails_alone(task, tmp_path, capsys):
    assert run(task, tmp_path / "out", sizes="0,8", learning_rate=1e30) == 1
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert (failure["candidate"], failure["size"], failure["seed"]) == ("zoo/gpt2-xs", "8", "0")
    assert "lower `learning_rate`" in failure["reason"]
    assert failure["reason"] in capsys.readouterr().err
    assert lens.read_loss_table(tmp_path / "out" / "losses.csv").sizes.tolist() == [0]


def test_a_full_disk_fails_its_cell_and_the_rest_is_measured(task, plain, tmp_path, monkeypatch):
    whole, replace = (plain / "losses.csv").read_bytes(), durable.replace

    def full(target, content):
        if target.name == "8.json":
            raise OSError(28, "No space left on device")
        replace(target, content)

    with monkeypatch.context() as patch:
        patch.setattr(durable, "replace", full)
        assert run(task, tmp_path / "out", quiet=True) == 1
    (failure,) = rows(tmp_path / "out" / "failures.csv")
    assert failure["size"] == "8"
    assert "No space left" in failure["reason"]
    assert lens.read_loss_table(tmp_path / "out" / "losses.csv").sizes.tolist() == [0, 16]
    assert run(task, tmp_path / "out", quiet=True) == 0
    assert (tmp_path / "out" / "losses.csv").read_bytes() == whole
    assert not (tmp_path / "out" / "failures.csv").exists()


def test_a_line_a_cell_and_a_table_at_the_end(task, plain, tmp_path, capsys):
    shutil.copytree(plain, tmp_path / "out")
    (tmp_path / "out/cells/zoo--gpt2-xs/16.json").unlink()
    assert run(task, tmp_path / "out") == 0
    output = capsys.readouterr()
    (line,) = [line for line in output.err.splitlines() if "test loss" in line]
    assert "left          0 s" in line
    assert "16 examples" in line
    assert "tokens/s" in line
    loss = cell(plain, "16")["test_loss"]
    assert f"{loss:.4f}" in output.out
    assert output.out.isascii()
    assert "done in" in output.out
    assert run(task, tmp_path / "out", quiet=True) == 0
    assert tuple(capsys.readouterr()) == ("", "")


EMPTY = [{"prompt": "a", "target": " "}] * 30
REFUSED = [
    ({"learning_rates": "fast"}, "`learning_rates` must be numbers"),
    ({"learning_rates": "1e-3,-1"}, "`learning_rates` must be positive"),
    ({"batch_sizes": "0"}, "`batch_sizes` must be positive"),
    ({"seeds": "0,0"}, "`seeds` must be distinct"),
    ({"micro_batches": 3}, "`micro_batches` must divide the batch size 4"),
    ({"batch_sizes": "4,6", "micro_batches": 4}, "must divide the batch size 6"),
    ({"decay_steps": "half"}, "`decay_steps` must be"),
    ({"buckets": "16,8"}, "`buckets` must ascend"),
    ({"mean_length": 1000}, "`mean_length` must be"),
    ({"sizes": "8,1000"}, "`sizes` must be at most"),
    ({"sizes": ""}, "`sizes` must be one or more"),
    ({"max_bytes": 7}, "`max_bytes` must be at least 8"),
    ({"target_field": "answer"}, "text in field 'answer' of every record, got None in record 1"),
    ({"prompt_field": "question"}, "text in field 'question' of every record"),
    ({"executor": "ray", "ray_address": "127.0.0.1:1"}, "`ray_address` must be of a running Ray"),
    ({"compiled_dir": __file__}, "`compiled_dir` must be a folder, got the file"),
    ({"executor": "local", "processes": 4096}, "`processes` must be at most"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=lambda value: str(value)[:40])
def test_bad_input_is_refused_before_anything_is_written(changes, message, task, tmp_path):
    with pytest.raises(checks.UserError) as refused:
        run(task, tmp_path / "out", **changes)
    assert message in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_texts_that_are_all_empty_are_refused(tmp_path):
    records = written(tmp_path / "empty.jsonl", EMPTY)
    with pytest.raises(checks.UserError, match=r"must hold at least one record.*'empty'"):
        run(records, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_average_length_is_cut_before_anything_is_measured(task, tmp_path):
    settings = {"mean_length": 7, "output_dir": tmp_path, "task": task}
    with flagsaver.flagsaver():
        flags.FLAGS(["finetune_grid", *(f"--{name}={value}" for name, value in settings.items())])
        cut = grid.FLAGS.run().load_task({"zoo/gpt2-xs": describe_candidate("zoo/gpt2-xs")})
    assert cut.fingerprint != lens.load_task(task).fingerprint
    assert sum(count for why, count in cut.removed.items() if why.endswith("mean_length")) > 0


def test_a_copy_of_a_hub_task_is_read_where_a_flag_says(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    settings = {"task_folder": gigaword_copy(tmp_path / "copy"), "task": "gigaword"}
    with flagsaver.flagsaver():
        flags.FLAGS(
            ["grid", "--output_dir=a", *(f"--{n}={value}" for n, value in settings.items())]
        )
        task = grid.FLAGS.run().load_task({"zoo/gpt2-xs": describe_candidate("zoo/gpt2-xs")})
    assert all(example.prompt.endswith("\nSummary:") for example in task.train)


def test_a_candidate_that_was_replaced_gets_no_cell_of_the_one_before(task, tmp_path):
    folder = shutil.copytree(folder_of("zoo/gpt2-xs"), tmp_path / "mine")
    assert run(task, tmp_path / "out", candidates=str(folder), sizes="0") == 0
    before = rows(tmp_path / "out" / "losses.csv")
    shutil.copytree(folder_of("zoo/opt-xs"), folder, dirs_exist_ok=True)
    with pytest.raises(checks.UserError, match=f"candidates_sha256 of {folder}=.* another folder"):
        run(task, tmp_path / "out", candidates=str(folder), sizes="0")
    assert rows(tmp_path / "out" / "losses.csv") == before
