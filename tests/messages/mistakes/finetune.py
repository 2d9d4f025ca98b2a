"""Mistakes with the settings, the search and the checkpoints of a fine-tune."""

import dataclasses

import numpy as np
import pytest

from lensllm_jax.finetune import search
from lensllm_jax.finetune.compute import ComputeConfig
from lensllm_jax.finetune.fine_tune import FineTuneConfig, Splits, fine_tune
from lensllm_jax.finetune.loop import Loop, OptimizerConfig, TrainState
from lensllm_jax.finetune.lora import check_rank
from lensllm_jax.finetune.rates import LADDER, downhill
from lensllm_jax.finetune.resume import Checkpoint, Position
from lensllm_jax.finetune.sharding import shards_over

OPTIMIZER = OptimizerConfig(learning_rate=1e-3)


def optimizer(**changes):
    return dataclasses.replace(OPTIMIZER, **changes)


def loop(micro_batches=1):
    return Loop(lambda params, batch: None, OPTIMIZER, shift=True,
                micro_batches=micro_batches)  # fmt: skip


def searched(*rates):
    """A search in which every fine-tune diverges."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "_positions", lambda *_: iter(()))
        data = {"labels": np.zeros((2, 3)), **TEXT}
        return search.search_rates(
            loop(),
            {},
            Splits(data, data, data),
            search.SearchGrid(rates, (4,)),
            config=FineTuneConfig(),
        )


def checkpoint(folder, content=None):
    """A fine-tune of seed 0 stops, and one of seed 1 resumes from its file."""
    saved, start = (
        Checkpoint(folder / "a.safetensors"),
        Position.at_start(TrainState({"w": np.ones(2)}, ())),
    )
    saved.save(start, {"seed": 0})
    if content is not None:
        saved.path.write_bytes(content)
    return saved.load(start, {"seed": 1})


TEXT = {"is_end": np.zeros((2, 3), bool), "num_target_bytes": np.ones(2, int)}


def tuned(**data):
    """A fine-tune on two examples of three tokens."""
    splits = Splits(*[{"labels": np.zeros((2, 3)), **data}] * 3)
    return fine_tune(loop(), {}, splits, config=FineTuneConfig())


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("micro_batches", "positive ... got 0", lambda tmp: ComputeConfig(micro_batches=0)),
    ("lora_rank", "positive ... got 0", lambda tmp: ComputeConfig(lora_rank=0)),
    ("dtype", "one of ... got 'int8'", lambda tmp: ComputeConfig(dtype="int8")),
    ("tune", "one of full, lora, got 'all'", lambda tmp: ComputeConfig(tune="all")),
    ("moments_dtype", "one of ... got 'int8'", lambda tmp: ComputeConfig(moments_dtype="int8")),
    ("moments_dtype", "one of ... got 'int8'", lambda tmp: optimizer(moments_dtype="int8")),
    ("frozen_dtype", "lora ... got bfloat16", lambda tmp: ComputeConfig(frozen_dtype="bfloat16")),
    (
        "micro_batches",
        "divide the batch size 8 ... got 3",
        lambda tmp: ComputeConfig(micro_batches=3).check_batch(8),
    ),
    (
        "devices",
        "divide the 4 examples of a pass ... got 8 ... `batch_size`",
        lambda tmp: ComputeConfig(micro_batches=2, devices=8).check_batch(8),
    ),
    ("devices", "from 1 to ... got 4096", lambda tmp: shards_over(4096)),
    (
        "tune",
        "full for toy ... no attention or feed-forward matrix",
        lambda tmp: check_rank("toy", {"head/kernel": (4, 9)}, 2),
    ),
    (
        "lora_rank",
        "from 1 to 3 ... blocks/attention/key/kernel of toy ... got 4",
        lambda tmp: check_rank("toy", {"blocks/attention/key/kernel": (2, 9, 4)}, 4),
    ),
    ("seed", "zero or positive ... got -1", lambda tmp: FineTuneConfig(seed=-1)),
    ("patience", "positive ... got 0", lambda tmp: FineTuneConfig(patience=0)),
    ("learning_rate", "positive ... got 0.0", lambda tmp: optimizer(learning_rate=0.0)),
    (
        "learning_rate",
        "lower than 1e-05, got auto: all diverged",
        lambda tmp: downhill(lambda rate: np.inf, LADDER, start=0),
    ),
    ("clip_norm", "positive ... got inf", lambda tmp: optimizer(clip_norm=np.inf)),
    ("weight_decay", "zero or positive ... got -0.1", lambda tmp: optimizer(weight_decay=-0.1)),
    ("warmup_steps", "zero or positive ... got -1", lambda tmp: optimizer(warmup_steps=-1)),
    ("decay_steps", "one of ... got 'most'", lambda tmp: optimizer(decay_steps="most")),
    ("decay_steps", "above `warmup_steps` 10 ... got 10", lambda tmp: optimizer(decay_steps=10)),
    (
        "last_step",
        "given where `decay_steps` ... got None",
        lambda tmp: optimizer(decay_steps="all").schedule(),
    ),
    ("micro_batches", "positive ... got 0", lambda tmp: loop(micro_batches=0)),
    (
        "micro_batches",
        "divide the batch size ... got 4",
        lambda tmp: loop(micro_batches=4).train(None, {"labels": np.zeros((1, 6, 2))}),
    ),
    (
        "train",
        "hold a target token ... got none in 2 examples",
        lambda tmp: tuned(labels=np.full((2, 3), -100)),
    ),
    ("validation", "hold is_end and num_target_bytes ... got labels", lambda tmp: tuned()),
    (
        "validation",
        "hold a byte of target text ... got none in 2 examples",
        lambda tmp: tuned(**{**TEXT, "num_target_bytes": np.zeros(2, int)}),
    ),
    (
        "every_seconds",
        "zero or positive ... got -1",
        lambda tmp: Checkpoint(tmp / "a.safetensors", every_seconds=-1),
    ),
    ("checkpoint", "of this fine-tune ... got a.safetensors", lambda tmp: checkpoint(tmp)),
    ("checkpoint", "whole file ... got a.safetensors", lambda tmp: checkpoint(tmp, content=b"")),
    ("rates", "hold at least one ... got () and (4,)", lambda tmp: searched()),
    ("rates", "positive ... got 0.0", lambda tmp: searched(1e-3, 0.0)),
    ("rates", "lower ... got (0.001, 1e+38)", lambda tmp: searched(1e-3, 1e38)),
]
