"""Results of runs: short as text, a table and a figure in a notebook, whole in the run's folder."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Float

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.report.html import notebook
from lensllm_jax.report.measured import measured_losses
from lensllm_jax.report.sections import Block, Drawing, Report, Table
from lensllm_jax.selection.answer import Answer
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.selection import Selection

Losses: TypeAlias = Mapping[int, Mapping[str, Mapping[int, float]]]  # seed -> candidate -> size


@dataclasses.dataclass(frozen=True, repr=False)
class ModelSelection:
    """Which candidate to fine-tune, and all that this comes from."""

    selection: Selection  # losses, ranking, laws, cost
    folder: Path  # of the run, with report.html
    report: Report

    @property
    def answer(self) -> Answer:
        """What to fine-tune, how sure that is, what it cost."""
        return self.selection.answer

    @property
    def candidate(self) -> str:
        """The name of the candidate to fine-tune."""
        return self.answer.candidate

    def __repr__(self) -> str:
        return str(self.answer)

    def _repr_html_(self) -> str:
        return notebook(_shown(self.report.sections[0].blocks), card=self.report.card)


@dataclasses.dataclass(frozen=True, repr=False)
class FinetuneGrid:
    """Losses after fine-tuning on subsets of several sizes."""

    task: str
    names: tuple[str, ...]  # of the candidates
    sizes: tuple[int, ...]  # training examples, ascending
    by_seed: Losses  # nats per byte of what was measured
    losses: LossTable | None  # means over the seeds; None where all failed
    ledger: tuple[Mapping[str, Any], ...]  # a row per measured loss: errors and cost
    failures: tuple[Mapping[str, Any], ...]  # a row per loss that failed, with the reason
    folder: Path  # of the run, with losses.csv and ledger.csv

    def __repr__(self) -> str:
        measured = sum(len(by_size) for rows in self.by_seed.values() for by_size in rows.values())
        failed = f", {len(self.failures)} failed" if self.failures else ""
        return f"{self.task}: {measured} losses of {len(self.names)} candidates{failed}"

    def _repr_html_(self) -> str:
        return notebook(measured_losses(self.losses) if self.losses else [], card=repr(self))


@dataclasses.dataclass(frozen=True, repr=False)
class ComputedKernel:
    """The exact kernel of a candidate at its pretrained weights."""

    candidate: str
    theta: Float[np.ndarray, "n n"]  # inner products of gradients
    spectrum: NtkSpectrum  # eigenvalues, and F(t)
    summary: Mapping[str, Any]  # content of ntk.json
    folder: Path  # of the run, with ntk.npy and ntk.json
    report: Report

    def __repr__(self) -> str:
        largest = float(self.spectrum.eigenvalues.max())
        return (
            f"Kernel of {self.candidate}: {len(self.theta)} examples, largest eigenvalue "
            f"{largest:.4g}, of {self.summary['readout']}"
        )

    def _repr_html_(self) -> str:
        return notebook(_shown(self.report.sections[1].blocks)[:1], card=repr(self))


def _shown(blocks: Sequence[Block]) -> list[Block]:
    """Tables and figures."""
    return [block for block in blocks if isinstance(block, Table | Drawing)]
