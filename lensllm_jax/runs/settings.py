"""Settings of a run, by the names of the binaries' flags, and the inputs that they name.

Example:
    >>> given = {"candidates": "zoo/gpt2-xs", "output_dir": "out", "max_epochs": 2}
    >>> run, _ = read_settings(NoSettings, given)
    >>> run.names, run.measurement.max_epochs
    (('zoo/gpt2-xs',), 2)
"""

import dataclasses
import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import CandidateSummary
from lensllm_jax.checkpoints.zoo import list_zoo
from lensllm_jax.data.catalogue import load_task
from lensllm_jax.data.lengths import with_mean_length
from lensllm_jax.data.task import Task
from lensllm_jax.finetune.compute import ComputeConfig, keep_compiled
from lensllm_jax.finetune.rates import AUTO
from lensllm_jax.measurement.measurement import MeasurementConfig
from lensllm_jax.measurement.memory import (
    LargestStep,
    check_memory,
    fewest_passes,
    free_now,
    is_large,
    tight_step,
)
from lensllm_jax.measurement.pool import NUM_CHECKED, altered_targets, check_tuning, shared_task
from lensllm_jax.measurement.winner import Winner
from lensllm_jax.runs import terminal
from lensllm_jax.runs.progress import Progress
from lensllm_jax.runs.run_folder import RunFolder
from lensllm_jax.runs.values import as_declared

_SPLITS = ("train", "validation", "test")
_PASSES = "micro_batches.json"  # of the run folder: candidate -> passes of a step
# names of flags that are not those of the fields
_COMPUTE = {"compute_dtype": "dtype"}

Settings = TypeVar("Settings")


@dataclasses.dataclass(frozen=True)
class RunSettings:
    """What every run of a pool on a task takes."""

    candidates: str | Sequence[str]  # as ``load_candidate`` takes them; "zoo": all bundled
    output_dir: str | Path  # of the run: the same settings resume in it
    task: str | Path | Task = "pydoc"  # as ``load_task`` takes it
    prompt_field: str | None = "prompt"  # column of a file's prompts; empty: targets alone
    target_field: str = "target"  # column of a file's targets
    task_folder: str | Path | None = None  # copy of the hub's repository of the task
    mean_length: float | None = None  # average input, tokens of the first candidate
    max_bytes: int | None = None  # of prompt and target; 99 % of the records stay whole
    num_test_examples: int = 512  # the first test records, at most, which are evaluated
    measurement: MeasurementConfig = dataclasses.field(default_factory=MeasurementConfig)
    checkpoint_seconds: float = 60.0  # between writings of an unfinished fine-tune
    compiled_dir: str | Path | None = None  # keeps compiled steps: in the user's cache
    quiet: bool = False  # show no progress
    on_progress: Callable[[float, str], object] | None = None  # share done, message; no bar then
    command: str = ""  # what a reader repeats to make the run again

    def __post_init__(self):
        checks.not_negative("checkpoint_seconds", self.checkpoint_seconds)
        checks.path("output_dir", self.output_dir)
        if not self.names or len(set(self.names)) < len(self.names):
            raise checks.UserError(
                f"`candidates` must be one or more distinct names, got {self.candidates!r}"
            )
        if self.compiled_dir and Path(self.compiled_dir).is_file():
            raise checks.UserError(
                f"`compiled_dir` must be a folder, got the file {self.compiled_dir}"
            )
        keep_compiled(self.compiled_dir or None)

    @property
    def names(self) -> tuple[str, ...]:
        """The candidates, in order."""
        if self.candidates == "zoo":
            return list_zoo()
        several = isinstance(self.candidates, Iterable) and not isinstance(self.candidates, str)
        names = self.candidates if several else [self.candidates]
        return tuple(str(checks.path("candidates", name)) for name in names)

    def load_task(self, pool: Mapping[str, CandidateSummary]) -> Task:
        """The task as the candidates of the pool can be compared on it.

        Raises:
            UserError: if there is no such task or field, or a candidate cannot be tuned so.
        """
        check_memory({name: summary.num_params for name, summary in pool.items()})
        check_tuning(pool, self.measurement.compute)
        task = self.task
        if not isinstance(task, Task):
            task = load_task(
                task, prompt_field=self.prompt_field, target_field=self.target_field,
                folder=Path(self.task_folder) if self.task_folder else None,
            )  # fmt: skip
        if self.mean_length is not None:
            checks.positive("mean_length", self.mean_length)
            tokenizer = next(iter(pool.values())).tokenizer
            task = with_mean_length(task, tokenizer, mean=self.mean_length)
        template = self.measurement.chat_template
        task = shared_task(task, pool, max_bytes=self.max_bytes, chat_template=template)
        return task.with_test_examples(self.num_test_examples)

    def open_folder(
        self, settings: Mapping[str, Any], task: Task, pool: Mapping[str, CandidateSummary], *,
        shared: bool = False, growing: Sequence[str] = (),
    ) -> RunFolder:  # fmt: skip
        """The run's folder; what a reader wants to know of task and candidates is noted and shown.

        Args:
            settings: JSON values that decide all results.
            task: as the pool reads it.
            pool: candidates by name.
            shared: for all processes that open it so.
            growing: as in ``RunFolder.open``.

        Raises:
            UserError: as ``RunFolder.open``; nothing was shown then.
        """
        checkpoints = {name: list(s.notes) for name, s in pool.items() if s.notes}
        altered = altered_targets(task, pool)
        notes = {
            "command": self.command,
            "examples": {split: len(getattr(task, split)) for split in _SPLITS},
            "left_out": dict(task.removed),  # by reason: empty, repeated between splits, ...
            "max_bytes": task.max_bytes,  # of a record's prompt and target
            "cut": dict(task.cut),  # records that lost a part of one
            "divided": task.num_divided,  # records whose first words became their prompt
            "altered_targets": altered,  # of the first test records, for the candidates with any
            "checkpoints": checkpoints,
        }
        folder = RunFolder.open(self.output_dir, settings, shared=shared, growing=growing, **notes)
        if not self.quiet:
            for name, lines in (*checkpoints.items(), (task.name, task.notes())):
                for line in lines:
                    terminal.show(f"{name}: {line}")
            for name, count in altered.items():
                terminal.show(
                    f"{name}: its tokenizer alters {count} of {len(task.test[:NUM_CHECKED])} test "
                    "targets, whose loss is then too low"
                )
        return folder

    def fitted(
        self, task: Task, pool: Mapping[str, CandidateSummary], folder: RunFolder, *,
        at_a_time: int = 1, batch_sizes: Sequence[int] = (),
    ) -> dict[str, MeasurementConfig]:  # fmt: skip
        """The settings of each candidate: where they leave it open, in as many passes as fit.

        Their numbers are kept in the run folder: a resumed run has the same, whatever is free then.

        Args:
            task: as the pool reads it.
            pool: candidates by name.
            folder: of the run.
            at_a_time: fine-tunes that share this machine.
            batch_sizes: those that are searched.
        """
        config, free = self.measurement, free_now() / at_a_time
        steps = {
            name: LargestStep.of(one, task, config, batch_sizes=batch_sizes)
            for name, one in pool.items()
            if is_large(one)
        }
        passes: dict[str, int] = {}
        if config.compute.micro_batches is None and steps:
            passes = folder.read_piece(_PASSES)["passes"] if folder.has(_PASSES) else {}
            if missing := steps.keys() - passes.keys():
                passes |= {
                    name: fewest_passes(steps[name], compute=config.compute, free=free)
                    for name in missing
                }
                folder.write_piece(_PASSES, {"passes": passes})
        fitted = {name: self._in_passes(passes.get(name, config.compute.passes)) for name in pool}
        if not self.quiet:
            self._tell_of_memory(steps, fitted, free)
        return fitted

    def _in_passes(self, passes: int) -> MeasurementConfig:
        """The settings, with so many micro-batches."""
        compute = dataclasses.replace(self.measurement.compute, micro_batches=passes)
        return dataclasses.replace(self.measurement, compute=compute)

    def _tell_of_memory(
        self, steps: Mapping[str, LargestStep], fitted: Mapping[str, MeasurementConfig], free: float
    ) -> None:
        """Says which steps are made in several passes, and which may not fit even so."""
        for name, step in steps.items():
            compute = fitted[name].compute
            if compute.passes > 1 and self.measurement.compute.micro_batches is None:
                gigabytes = step.num_bytes(compute) / 1e9
                terminal.warn(
                    f"{name}: each step in {compute.passes} passes of "
                    f"{step.batch_size // compute.passes} examples, about {gigabytes:.1f} GB"
                )
            if (line := tight_step(step, compute, free=free)) is not None:
                terminal.warn(line)

    def progress(self, *, total: float) -> Progress:
        """Shows how far the run is, of ``total`` work."""
        return Progress(total=total, quiet=self.quiet, on_progress=self.on_progress)


@dataclasses.dataclass(frozen=True)
class WinnerSettings:
    """Of a kind of run that may save the best candidate."""

    save_winner: str | Path | None = None  # folder for the best one's fine-tuned weights
    save_adapter: bool = False  # with ``tune="lora"``: as an adapter in PEFT's format

    def winner(
        self, decided: Mapping[str, Any], pool: Mapping[str, CandidateSummary], run: RunSettings
    ) -> Winner | None:
        """Where the winner goes, if it is to be saved.

        Args:
            decided: settings of the run, as its folder records them.
            pool: candidates by name.
            run: with the folder.

        Raises:
            UserError: naming the setting at fault.
        """
        if self.save_winner is None:
            if self.save_adapter:
                raise checks.UserError("`save_adapter` must go with `save_winner`, got no folder")
            return None
        winner = Winner(Path(self.save_winner), decided, adapter=self.save_adapter)
        num_params = {name: one.num_params for name, one in pool.items()}
        winner.check(num_params, run.measurement.compute, Path(run.output_dir))
        return winner


@dataclasses.dataclass(frozen=True)
class NoSettings:
    """Of a kind of run that takes none beside the others."""


def read_settings(
    kind: type[Settings], given: Mapping[str, Any], *, call: str = ""
) -> tuple[RunSettings, Settings]:
    """Sorts settings into those of every run, of its measurements, and of one kind of run.

    Args:
        kind: a dataclass of the settings that the others do not know.
        given: settings by the names of flags.
        call: the function to which they were given, for a reader who wants to repeat the run.

    Raises:
        UserError: if no setting has one of the names, or a value is of another type or cannot be.
    """
    known: dict[str, tuple[type, str]] = {}
    for group in (RunSettings, MeasurementConfig, ComputeConfig, kind):
        known |= {field.name: (group, field.name) for field in dataclasses.fields(group)}  # type: ignore[arg-type]
    known |= {flag: (ComputeConfig, field) for flag, field in _COMPUTE.items()}
    for name in ("measurement", "compute", *_COMPUTE.values()):
        del known[name]
    declared = {group: get_type_hints(group) for group, _ in known.values()}
    values: dict[type, dict[str, Any]] = {kind: {}, RunSettings: {}}
    values |= {MeasurementConfig: {}, ComputeConfig: {}}
    for name, value in given.items():
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            meant = f"take {close[0]!r}" if close else "see the flags of the binary"
            raise checks.UserError(f"`settings` must have names of flags, got {name!r}: {meant}")
        group, field = known[name]
        values[group][field] = as_declared(name, value, declared[group][field])
    values[RunSettings].setdefault("command", call and _call(call, given))
    values[MeasurementConfig].setdefault("learning_rate", AUTO)
    measurement = MeasurementConfig(
        **values[MeasurementConfig], compute=ComputeConfig(**values[ComputeConfig])
    )
    return RunSettings(**values[RunSettings], measurement=measurement), kind(**values[kind])


def _call(function: str, given: Mapping[str, Any]) -> str:
    """A call as it can be repeated."""
    shown = {k: v for k, v in given.items() if v is not None and k != "on_progress"}
    return f"{function}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"
