"""Mistakes with the measurements of one candidate on one task."""

import dataclasses
import types

import numpy as np

from lensllm_jax.data.task import Example, Task
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.measurement import features, jobs
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from lensllm_jax.measurement.memory import check_memory
from lensllm_jax.measurement.pool import check_kernel_examples, describe_pool, shared_task
from lensllm_jax.measurement.rates import search_rate
from lensllm_jax.measurement.winner import Winner

TASK = Task("toy", "", (Example("", "a"),), (Example("", "b"),), (Example("", "c"),), {}, "")


def subset(size):
    candidate = types.SimpleNamespace(is_encoder_decoder=False)
    return Measurement(candidate, TASK, config=MeasurementConfig()).subset(size)


def damaged_search(folder):
    """A cell whose search was cut off while it was written."""
    job = types.SimpleNamespace(path=folder / "200.json")
    job.path.with_suffix(jobs.SEARCHED).write_text("{")
    return jobs._searched(job, None, None, print)


def damaged_rates(folder):
    """The trials of a rate, of which a part is missing."""
    (folder / "rates.json").write_text("[[1, 2]]")
    measurement = Measurement.__new__(Measurement)
    return search_rate(measurement, folder / "rates.json", on_progress=print)


def pool():
    return describe_pool(["zoo/gpt2-xs"])


def beyond_the_embedding():
    """A task whose texts hold a token for which a candidate has no row."""
    summary = pool()["zoo/gpt2-xs"]
    summary.tokenizer.add_tokens(["<new>"])
    task = dataclasses.replace(TASK, test=(Example("", "a <new>"),))
    return shared_task(task, {"zoo/gpt2-xs": summary})


def save(output_dir, folder, *, room=0, **options):
    """What is said of a winner before any work."""
    winner = Winner(folder, {"seed": 0}, **options)
    return winner.check({"a": room}, ComputeConfig(), output_dir)


def file_in(folder):
    (folder / "letter.txt").write_text("dear")
    return folder


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("candidates", "fit into memory ... got a", lambda tmp: check_memory({"a": 10**9}, free=2**31)),
    (
        "max_bytes",
        "few enough for the 128 positions of zoo/gpt2-xs ... got 400 ... 202 tokens: pass about",
        lambda tmp: shared_task(
            dataclasses.replace(TASK, test=(Example("", "a b" * 100),)), pool(), max_bytes=400
        ),
    ),
    ("num_kernel_examples", "at most 1 ... got 64", lambda tmp: check_kernel_examples(TASK, 64)),
    ("task", "hold texts ... got '<new>' with id 2048", lambda tmp: beyond_the_embedding()),
    (
        "chat_template",
        "one of auto, none ... got 'chat'",
        lambda tmp: MeasurementConfig(chat_template="chat"),
    ),
    (
        "num_kernel_examples",
        "positive ... got 0",
        lambda tmp: MeasurementConfig(num_kernel_examples=0),
    ),
    (
        "num_validation_examples",
        "positive ... got 0",
        lambda tmp: MeasurementConfig(num_validation_examples=0),
    ),
    ("learning_rate", "a whole file ... to search again", damaged_rates),
    ("learning_rate", "or auto, got 'fast'", lambda tmp: MeasurementConfig(learning_rate="fast")),
    (
        "micro_batches",
        "divide the batch size ... got 3",
        lambda tmp: MeasurementConfig(compute=ComputeConfig(micro_batches=3)),
    ),
    ("size", "at most 1 ... got 2", lambda tmp: subset(2)),
    (
        "count",
        "positive ... got 0",
        lambda tmp: features.first_target_states(None, {"labels": np.ones((0, 2))}),
    ),
    (
        "block_size",
        "positive ... got 0",
        lambda tmp: features.first_target_states(None, {"labels": np.ones((2, 2))}, block_size=0),
    ),
    (
        "num_words",
        "positive ... got 0",
        lambda tmp: features.first_word_classes(TASK.train, num_words=0),
    ),
    (
        "save_adapter",
        "go with `tune` lora, got full",
        lambda tmp: save(tmp, tmp / "model", adapter=True),
    ),
    (
        "save_winner",
        "not be `output_dir` ... or hold it, got DIR",
        lambda tmp: save(tmp / "run", tmp),
    ),
    (
        "save_winner",
        "new or an empty folder ... got DIR: name another",
        lambda tmp: save(tmp.parent / "run", file_in(tmp)),
    ),
    (
        "output_dir",
        "have room ... 24000000.0 GB, got ... GB free on the disk",
        lambda tmp: save(tmp / "run", tmp / "model", room=10**15),
    ),
    ("search", "whole file ... got 200.searched", lambda tmp: damaged_search(tmp)),
]
