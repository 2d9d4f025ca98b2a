"""The winner's folder: the weights of the best step, loadable, of this run, with room for them."""

import dataclasses
import json
import types

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.data.task import Example, build_task
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.measurement import winner as winners
from lensllm_jax.measurement.jobs import ADAPTER, NOTE, RECORDS, UNFINISHED, WHOLE, Job, Measurer
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.winner import Winner, forget
from tests.checkpoints.adapter_folders import write_adapter
from tests.checkpoints.gguf_files import byte_level, write_gguf

TEXTS = [Example(f"what of {n}", f"the king {n} of stone") for n in range(40)]
TASK = build_task("kings", "a toy", train=TEXTS[:24], validation=TEXTS[24:32], test=TEXTS[32:])
CONFIG = MeasurementConfig(batch_size=4, max_epochs=3, learning_rate=3e-3, warmup_steps=1)
LORA = ComputeConfig(tune="lora", lora_rank=4)
RUN = {"seed": 0}


def job_of(name, folder, compute, keep):
    config = dataclasses.replace(CONFIG, compute=compute)
    return Job(str(name), 1, 24, config, path=folder / "24.json", keep=keep)


def losses_of(name):
    """Of a candidate as it is, by the path of every measurement."""
    measurement = Measurement(lens.load_candidate(name), TASK, config=CONFIG)
    return measurement.zero_shot()


@pytest.fixture(scope="module")
def before():
    return losses_of("zoo/gpt2-xs")


@pytest.mark.parametrize(
    ("compute", "keep"),
    [
        (ComputeConfig(), WHOLE),
        (LORA, ADAPTER),
        (dataclasses.replace(LORA, frozen_dtype="bfloat16"), WHOLE),
    ],
)
def test_the_folder_has_the_losses_of_the_cell(compute, keep, before, tmp_path):
    job, measurer = job_of("zoo/gpt2-xs", tmp_path, compute, keep), Measurer(TASK)

    def until_killed(now):
        if now.share > 0.6:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        measurer.measure(job._replace(checkpoint_seconds=0), on_progress=until_killed)
    assert job.path.with_suffix(UNFINISHED).exists()
    cell = measurer.measure(job)  # from the checkpoint
    winner = Winner(tmp_path / "model", RUN, adapter=keep == ADAPTER)
    assert winner.moved(job)
    assert not job.kept.exists()
    saved = losses_of(tmp_path / "model")
    np.testing.assert_allclose(saved.nats, cell[RECORDS][0], rtol=2e-5)
    # the control: tuning changed them
    assert np.abs(before.nats / cell[RECORDS][0] - 1).max() > 1e-2
    note = json.loads((tmp_path / "model" / NOTE).read_text())
    assert (note["candidate"], note["examples"]) == ("zoo/gpt2-xs", 24)
    assert note["result"]["test_loss"] == cell["test_loss"]
    assert note["task_sha256"] == TASK.fingerprint


def tuned(name, folder):
    """A candidate whose weights are kept as they are saved, moved far from the checkpoint's."""
    candidate = lens.load_candidate(name)
    params = candidate.params
    params = {**params, "embed": {"embedding": params["embed"]["embedding"] * 1.5}}
    measurement = Measurement(candidate, TASK, config=CONFIG)
    measurement.save(params, folder)
    return candidate, params


IDS = np.arange(1, 19, dtype=np.int32).reshape(2, 9)
BATCH = {"input_ids": IDS, "attention_mask": np.ones_like(IDS)}


@pytest.mark.torch
@pytest.mark.parametrize("which", ["zoo", "gguf", "adapter"])
def test_hugging_face_loads_it_with_equal_logits(which, tmp_path):
    import torch
    import transformers

    name = "zoo/llama-xs"
    if which == "gguf":  # a file that has no config of Hugging Face's
        name = write_gguf(tmp_path, "llama", kind="Q8_0", metadata=byte_level().items())[1]
    if which == "adapter":
        name = write_adapter(tmp_path, "llama")[1]
    candidate, params = tuned(name, tmp_path / "model")
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", dtype=torch.float32
    ).eval()
    inputs = {key: torch.tensor(array, dtype=torch.long) for key, array in BATCH.items()}
    with torch.no_grad():
        logits = theirs(**inputs).logits.numpy()
    ours, before = (np.asarray(candidate.apply_fn(p, BATCH)) for p in (params, candidate.params))
    assert np.abs(logits - ours).max() < 1e-5 * np.abs(ours).max()
    assert np.abs(before - ours).max() > 1e-2 * np.abs(ours).max()  # control: tuned weights
    if which == "zoo":
        tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "model")
        text = "the kings of the land"
        assert tokenizer(text)["input_ids"] == candidate.tokenizer(text)["input_ids"]


def kept(folder, name="a", size=8, text="weights"):
    """A job whose weights are there."""
    job = Job(name, 1, size, CONFIG, path=folder / "cells" / name / f"{size}.json", keep=WHOLE)
    job.kept.mkdir(parents=True)
    (job.kept / "model").write_text(text)
    (job.kept / NOTE).write_text(json.dumps({"candidate": name}))
    return job


def test_it_is_moved_once_and_is_that_of_one_run(tmp_path):
    winner = Winner(tmp_path / "out" / "model", RUN)
    job, other = kept(tmp_path), kept(tmp_path, "b")
    assert winner.moved(job)
    assert (tmp_path / "out" / "model" / "model").read_text() == "weights"
    assert winner.moved(job)  # the same command again
    winner.check({"a": 1}, ComputeConfig(), tmp_path / "run")
    with pytest.raises(checks.UserError, match="hold the winner of this run"):
        dataclasses.replace(winner, run={"seed": 1}).check(
            {"a": 1}, ComputeConfig(), tmp_path / "run"
        )
    forget(other)
    assert not other.kept.exists()
    assert not Winner(tmp_path / "another", RUN).moved(other)  # nothing is there


def test_room_is_that_of_all_who_may_win_and_what_is_kept_counts(tmp_path, monkeypatch):
    winner, counts = Winner(tmp_path / "model", RUN), {"a": 1000, "b": 500}
    assert winner.bytes_needed(counts, ComputeConfig()) == 4 * 1500 + 4 * 1000 + 16 * 1000
    assert winner.bytes_needed(counts, LORA) == 4 * 1500 + 4 * 1000

    def check(free):
        usage = types.SimpleNamespace(free=free)
        monkeypatch.setattr(winners.shutil, "disk_usage", lambda _: usage)
        winner.check(counts, ComputeConfig(), tmp_path)

    check(26_000)
    with pytest.raises(checks.UserError, match=r"`output_dir` must have room .* GB free"):
        check(25_999)
    job = kept(tmp_path, text="1234")
    check(26_000 - sum(file.stat().st_size for file in job.kept.iterdir()))
