"""Winner: the fine-tuned weights of the chosen candidate, kept from the race on.

While any of several candidates may win, each keeps the weights of its largest fine-tune at the
best step, a whole model beside the cell, made in the process that trained them.  The winner's
folder is then moved to its place.  ``fine_tuning.json`` says what it comes from.

Example:
    >>> winner = Winner(Path("out/model"), run={"seed": 0})
    >>> winner.bytes_needed({"a": 10**9, "b": 10**8}, ComputeConfig()) / 1e9
    24.4
"""

import dataclasses
import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lensllm_jax import checks, durable
from lensllm_jax.finetune.compute import LORA, ComputeConfig
from lensllm_jax.measurement.jobs import ADAPTER, KEPT, NOTE, WHOLE, Job

_WEIGHT, _CHECKPOINT = 4, 16  # bytes a parameter: in float32; trained and best ones, two moments


@dataclasses.dataclass(frozen=True)
class Winner:
    """Where the winner goes, and as what.

    Attributes:
        folder: new or empty, or with the winner of the same run.
        run: settings of the run, as JSON values.
        adapter: whether as LoRA's updates in PEFT's format, and not merged into their base.
    """

    folder: Path
    run: Mapping[str, Any] = dataclasses.field(repr=False)
    adapter: bool = False

    @property
    def keep(self) -> str:
        """What jobs are to keep."""
        return ADAPTER if self.adapter else WHOLE

    def check(
        self, num_params: Mapping[str, int], compute: ComputeConfig, output_dir: Path
    ) -> None:
        """Refuses what cannot be saved, before any work.

        Args:
            num_params: candidate -> parameters.
            compute: how they are fine-tuned.
            output_dir: of the run.

        Raises:
            UserError: if full tuning is to give an adapter, the folder holds something else, or
                a disk has too little room.
        """
        if self.adapter and compute.tune != LORA:
            raise checks.UserError(
                f"`save_adapter` must go with `tune` {LORA}, got {compute.tune}: leave it out to "
                "save the whole model"
            )
        run = output_dir.resolve()
        if self.folder.resolve() in (run, *run.parents):
            raise checks.UserError(
                f"`save_winner` must not be `output_dir` {output_dir} or hold it, got "
                f"{self.folder}: name a new folder"
            )
        is_empty = not self.folder.exists() or (
            self.folder.is_dir() and not any(self.folder.iterdir())
        )
        if not is_empty and self._note().get("run_sha256") != self._run_sha256:
            raise checks.UserError(
                "`save_winner` must be a new or an empty folder, or hold the winner of this run, "
                f"got {self.folder}: name another one"
            )
        if not self.adapter:  # which is a per cent of the weights
            self._check_room(num_params, compute, output_dir)

    def bytes_needed(self, num_params: Mapping[str, int], compute: ComputeConfig) -> int:
        """Of the run's disk: each candidate's weights, the largest's next ones and checkpoint."""
        largest = max(num_params.values())
        checkpoint = 0 if compute.tune == LORA else _CHECKPOINT * largest
        return _WEIGHT * (sum(num_params.values()) + largest) + checkpoint

    def _check_room(
        self, num_params: Mapping[str, int], compute: ComputeConfig, output_dir: Path
    ) -> None:
        run, target = _existing(output_dir), _existing(self.folder)
        kept = (f for d in output_dir.glob(f"cells/**/*{KEPT}") for f in d.iterdir())
        there = sum(file.stat().st_size for file in kept)
        needed = {run: self.bytes_needed(num_params, compute) - there}
        if os.stat(run).st_dev != os.stat(target).st_dev:
            needed[target] = _WEIGHT * max(num_params.values())
        for (disk, count), name in zip(needed.items(), ("output_dir", "save_winner"), strict=False):
            if (free := shutil.disk_usage(disk).free) < count:
                raise checks.UserError(
                    f"`{name}` must have room for the weights of all that may win and for a "
                    f"checkpoint, {count / 1e9:.1f} GB, got {free / 1e9:.1f} GB free on the disk "
                    f"of {disk}: name a folder on another disk, or leave `save_winner` out"
                )

    def moved(self, job: Job) -> bool:
        """Whether the weights of a job lie in the folder; moved there now if they were kept."""
        if self._note().get("run_sha256") == self._run_sha256:
            return True
        if job.kept is None or not job.kept.is_dir():
            return False
        note = json.loads((job.kept / NOTE).read_bytes())
        whole = durable.json_bytes({**note, "run_sha256": self._run_sha256})
        durable.replace(job.kept / NOTE, whole)
        durable.move_folder(job.kept, self.folder)
        return True

    @property
    def _run_sha256(self) -> str:
        return hashlib.sha256(durable.json_bytes(self.run)).hexdigest()

    def _note(self) -> dict[str, Any]:
        """That in the folder, empty where there is none of ours."""
        try:
            note = json.loads((self.folder / NOTE).read_bytes())
        except (OSError, ValueError, RecursionError):
            return {}
        return note if isinstance(note, dict) else {}


def forget(job: Job) -> None:
    """Removes the weights that were kept of a job: its candidate will not win with them."""
    if job.kept is not None:
        shutil.rmtree(job.kept, ignore_errors=True)


def _existing(path: Path) -> Path:
    """The nearest folder around a path that is there."""
    path = path.resolve()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
