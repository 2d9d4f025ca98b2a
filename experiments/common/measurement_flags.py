"""Flags of every binary that measures candidates: the pool and its text, the settings, the folder.

A binary takes all of them with ``FLAGS = measurement_flags()``, or one that fine-tunes nothing
those that it needs with ``FLAGS = pretrained_flags()``, and gives their values on; two binaries in
one process share them.
"""

import functools
from typing import Any, Protocol

from absl import flags

from experiments.common import cli
from experiments.common.flags import (
    define_candidates,
    define_compute_dtype,
    define_devices,
    define_lora_rank,
    define_output_dir,
    define_quiet,
)
from lensllm_jax import checks
from lensllm_jax.finetune.compute import FULL, TUNES, ComputeConfig
from lensllm_jax.finetune.loop import ALL_STEPS, MOMENTS_DTYPES
from lensllm_jax.finetune.rates import AUTO
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.ntk.gram import NtkMethod
from lensllm_jax.ntk.readout import Readout
from lensllm_jax.runs.run_folder import command
from lensllm_jax.runs.settings import NoSettings, RunSettings, read_settings

flags.disclaim_key_flags()  # each counts as the binary's own: its --help shows it

_ONE_OUTPUT = (Readout.LOSS, Readout.TARGET_LOGPROB)  # read-outs with one output per example


class _Flags(Protocol):
    """Flags, defined; their values once absl has read them."""

    def values(self) -> dict[str, Any]: ...


class MeasurementFlags:
    """The values of the flags, once absl has read them."""

    def __init__(self, *groups: _Flags) -> None:
        self._groups = groups

    def values(self) -> dict[str, Any]:
        """All of them, as the functions that the binaries call take them.

        Raises:
            UserError: naming a flag whose text does not read.
        """
        values: dict[str, Any] = {"command": command()}
        for group in self._groups:
            values |= group.values()
        return values

    def run(self) -> RunSettings:
        """The settings of every run.

        Raises:
            UserError: naming the flag at fault.
        """
        return read_settings(NoSettings, self.values())[0]


@functools.cache
def pretrained_flags() -> MeasurementFlags:
    """Defines the flags of measurements at pretrained weights, once per process."""
    return MeasurementFlags(_FolderFlags(), _PoolFlags(), _PretrainedFlags())


@functools.cache
def measurement_flags() -> MeasurementFlags:
    """Defines all flags, once per process."""
    return MeasurementFlags(pretrained_flags(), _TuningFlags())


class _FolderFlags:
    """Where results go, and what is shown meanwhile."""

    def __init__(self) -> None:
        self._output_dir = define_output_dir()
        self._compiled_dir = flags.DEFINE_string(
            "compiled_dir", None,
            "Folder of compiled programs, so that later runs need not compile. Default: in the "
            "user's cache.",
        )  # fmt: skip
        self._quiet = define_quiet("Print no progress (and no table of a grid).")

    def values(self) -> dict[str, Any]:
        return {
            "output_dir": self._output_dir.value,
            "compiled_dir": self._compiled_dir.value,
            "quiet": self._quiet.value,
        }


class _PoolFlags:
    """Which candidates, on which text."""

    def __init__(self) -> None:
        self._candidates = define_candidates(
            "zoo",
            "zoo (all bundled ones), or names, folders, GGUF files and hub ids, comma-separated.",
        )
        self._task = flags.DEFINE_string(
            "task",
            "pydoc",
            "A built-in task (pydoc, sotu), or a .jsonl, .json, .csv, .tsv, .parquet or .txt file.",
        )
        self._prompt_field = flags.DEFINE_string(
            "prompt_field", "prompt", "Column of the prompts in a task file; empty: it has none."
        )
        self._target_field = flags.DEFINE_string(
            "target_field", "target", "Column of the targets in a task file."
        )
        self._task_folder = flags.DEFINE_string(
            "task_folder",
            None,
            "Folder with a copy of the hub's repository, for --task=flan, wikitext or gigaword.",
        )
        self._mean_length = flags.DEFINE_float(
            "mean_length", None,
            "Mean length of the inputs, in tokens of the first candidate: the longest (or "
            "shortest) records are left out until it is reached.",
        )  # fmt: skip
        self._max_bytes = flags.DEFINE_integer(
            "max_bytes", None,
            "Most bytes (UTF-8) of prompt and target; longer records are cut, once for all "
            "candidates. Default: 99 % of the records stay whole, or fewer if a candidate has too "
            "few positions for that.",
        )  # fmt: skip

    def values(self) -> dict[str, Any]:
        text = self._candidates.value
        return {
            "candidates": text if text == "zoo" else cli.names(text),
            "task": self._task.value,
            "prompt_field": self._prompt_field.value,
            "target_field": self._target_field.value,
            "task_folder": self._task_folder.value,
            "mean_length": self._mean_length.value,
            "max_bytes": self._max_bytes.value,
        }


class _PretrainedFlags:
    """What candidates read, and what their kernels are of."""

    def __init__(self) -> None:
        default = MeasurementConfig()
        self._fields = {name: _define_number(name, help) for name, help in _PRETRAINED.items()}
        self._chat_template = flags.DEFINE_enum(
            "chat_template", default.chat_template, ["none", "auto"],
            "auto: decoders that have a chat template read prompt and target as a conversation.",
        )  # fmt: skip
        self._readout = flags.DEFINE_enum(
            "readout", default.readout, [r.value for r in _ONE_OUTPUT],
            "Output per example whose gradients make the kernel.",
        )  # fmt: skip
        self._method = flags.DEFINE_enum(
            "method", default.method, [m.value for m in NtkMethod], "How the kernel is computed."
        )

    def values(self) -> dict[str, Any]:
        return {
            **{name: flag.value for name, flag in self._fields.items()},
            "chat_template": self._chat_template.value,
            "readout": self._readout.value,
            "method": self._method.value,
        }


class _TuningFlags:
    """How candidates are fine-tuned."""

    def __init__(self) -> None:
        self._fields = {name: _define_number(name, help) for name, help in _TUNING.items()}
        self._learning_rate = flags.DEFINE_string(
            "learning_rate",
            AUTO,
            "Learning rate of AdamW; auto: searched for each candidate by three or four fine-tunes "
            "on 100 examples.",
        )
        self._validation_examples = flags.DEFINE_integer(
            "num_validation_examples", None,
            "Records whose loss decides when to stop. Default: 1/8 of the subset, 64 or more.",
        )  # fmt: skip
        self._num_test_examples = flags.DEFINE_integer(
            "num_test_examples", RunSettings.num_test_examples,
            "The first test records, at most, which are evaluated.",
        )  # fmt: skip
        self._decay_steps = flags.DEFINE_string(
            "decay_steps",
            None,
            "Step at which the cosine decay of the learning rate ends; all: the last one. Default: "
            "no decay.",
        )
        self._buckets = flags.DEFINE_string(
            "buckets", AUTO,
            "Ascending lengths, tokens: training batches of short examples are cut to them; auto: "
            "to what holds half, nine tenths and all of a candidate's test records, and others "
            "a quarter apart behind them; empty: none.",
        )  # fmt: skip
        self._compute_dtype = define_compute_dtype()
        self._micro_batches = flags.DEFINE_string(
            "micro_batches", AUTO,
            "Passes of one step: less memory; auto: as few as fit into what is free.",
        )  # fmt: skip
        self._remat = flags.DEFINE_bool(
            "remat", False, "Recompute activations in the backward pass: less memory, more time."
        )
        self._tune = flags.DEFINE_enum(
            "tune",
            FULL,
            TUNES,
            "What is trained: all weights, or low-rank updates of their matrices.",
        )
        self._lora_rank = define_lora_rank()
        self._frozen_dtype = flags.DEFINE_enum(
            "frozen_dtype",
            None,
            ["bfloat16", "float32"],
            "Type of the weights that --tune=lora freezes.",
        )
        self._moments_dtype = flags.DEFINE_enum(
            "moments_dtype", ComputeConfig.moments_dtype, MOMENTS_DTYPES, "Type of AdamW's moments."
        )
        self._devices = define_devices(
            "1", "Number of devices that share weights, moments and batches."
        )
        self._checkpoint_seconds = flags.DEFINE_float(
            "checkpoint_seconds",
            60.0,
            "Seconds between checkpoints of an unfinished fine-tune, more where writing one takes "
            "above a twentieth of them; 0: after every compiled call.",
        )

    def values(self) -> dict[str, Any]:
        return {
            **{name: flag.value for name, flag in self._fields.items()},
            "learning_rate": _rate_or_auto(self._learning_rate.value),
            "num_validation_examples": self._validation_examples.value,
            "num_test_examples": self._num_test_examples.value,
            "decay_steps": _steps_or_all(self._decay_steps.value),
            "buckets": _lengths_or_auto(self._buckets.value),
            "compute_dtype": self._compute_dtype.value,
            "remat": self._remat.value,
            "micro_batches": _number_or_auto("micro_batches", self._micro_batches.value),
            "tune": self._tune.value,
            "lora_rank": self._lora_rank.value,
            "frozen_dtype": self._frozen_dtype.value,
            "moments_dtype": self._moments_dtype.value,
            "devices": _one_number("devices", self._devices.value),
            "checkpoint_seconds": self._checkpoint_seconds.value,
        }


# flags with the name and the default of a field of MeasurementConfig
_PRETRAINED = {
    "num_kernel_examples": "Examples whose kernel is computed.",
    "seed": "Seed of the subsets and of the order of training.",
}
_TUNING = {
    "weight_decay": "Weight decay of AdamW.",
    "batch_size": "Examples per step.",
    "warmup_steps": "Steps over which the learning rate rises to its value.",
    "clip_norm": "Gradients are scaled down to this norm.",
    "max_epochs": "Most passes over a subset, rounded up to whole calls of 8 steps.",
    "patience": "Evaluations without a lower validation loss after which a fine-tune stops.",
}


def _define_number(name: str, help: str) -> flags.FlagHolder:
    default = getattr(MeasurementConfig(), name)
    define = flags.DEFINE_float if isinstance(default, float) else flags.DEFINE_integer
    return define(name, default, help)


def _one_number(name: str, text: str) -> int:
    numbers = cli.whole_numbers(name, text)
    if len(numbers) != 1:
        raise checks.UserError(f"`{name}` must be one whole number, got {text!r}")
    return numbers[0]


def _number_or_auto(name: str, text: str) -> int | None:
    """What a flag says; None is auto."""
    return None if text == AUTO else _one_number(name, text)


def _lengths_or_auto(text: str) -> tuple[int, ...] | None:
    """What --buckets says; None is auto."""
    return None if text == AUTO else cli.whole_numbers("buckets", text)


def _rate_or_auto(text: str) -> float | str:
    """What --learning_rate says."""
    if text == AUTO:
        return AUTO
    rates = cli.numbers("learning_rate", text)
    if len(rates) != 1:
        raise checks.UserError(f"`learning_rate` must be one rate or {AUTO}, got {text!r}")
    return rates[0]


def _steps_or_all(text: str | None) -> int | str | None:
    """Where --decay_steps says that the decay ends."""
    if text in (None, ALL_STEPS):
        return text
    if not (text.isascii() and text.isdigit()):
        raise checks.UserError(f"`decay_steps` must be a step or {ALL_STEPS}, got {text!r}")
    return int(text)
