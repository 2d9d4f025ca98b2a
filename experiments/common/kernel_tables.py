r"""F from committed tables: kernels of a pool, measured once, as numbers that a law can read.

X is the same n examples for every training-set size D, so that F(0) = |f0 - y|^2 is one number per
candidate; a sum over the D examples of each subset would be 0 at D = 0 and Eq 10 infinite there.
The time of a size is the step at which its fine-tune was best; sizes beyond the budget have none
yet and take the last one's in proportion to D, as steps at a fixed number of passes are.  Eta is
no property of AdamW, so several are tried (:class:`Rate`).

Example:
    >>> kernel = Kernel(np.array([2.0]), np.array([5.0]), mean_gradient_squared=2.0,
    ...                 scaled_times=np.array([0.0, 1.0]), test_mean_square=np.array([4.0, 1.0]),
    ...                 elementwise_log_loss=np.zeros(2), num_examples=1, flops=1.0,
    ...                 flops_with_test=2.0)
    >>> kernel.loss(Form.MATRIX, np.array([0.0, 0.25])).round(6)
    array([5.      , 1.839397])
    >>> kernel.loss(Form.TEST, np.array([0.0, 0.5]))
    array([4., 1.])
"""

import dataclasses
import enum
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.runs.run_folder import read_rows, sha256_of
from lensllm_jax.selection.loss_table import LossTable, read_loss_table

TABLES = ("losses", "ledger", "spectra", "flow", "kernels")  # of a pool, <task>_<name>.csv
MIN_F = 1e-300  # what underflows counts as this: no pre-power phase at any scale
MAX_F = 1e300  # what overflows, as an elementwise exponential of negative entries does, as this


class Form(enum.Enum):
    """What stands in the place of F."""

    MATRIX = "matrix"  # Eq 9: the matrix exponential
    TEST = "test"  # n times the mean square of the kernel's residual on test examples
    ELEMENTWISE = "elementwise"  # the exponential of each entry, as the released code takes it
    SCALAR = "scalar"  # one number for the kernel, |mean gradient|^2, as the released code has it


class Rate(enum.Enum):
    """What eta is."""

    ADAMW = "adamw"  # the fine-tune's learning rate over n: gradient flow on the mean
    RELEASED = "released"  # 0.01 on the sum, the released code's constant
    FASTEST = "fastest"  # 1 / lambda_max: time counts in units of the fastest mode
    FITTED = "fitted"  # a multiple of 1 / lambda_max, one for the pool, chosen below the budget


RELEASED_RATE = 0.01
MULTIPLES = 10.0 ** np.arange(-4.0, 1.01, 0.5)  # of 1 / lambda_max, for Rate.FITTED


@dataclasses.dataclass(frozen=True)
class Kernel:
    """One candidate's kernel on n examples, as far as F needs it."""

    eigenvalues: Float[np.ndarray, " j"]  # of Theta
    projections: Float[np.ndarray, " j"]  # (u_j . (f0 - y))^2
    mean_gradient_squared: float  # 1' Theta 1 / n^2
    scaled_times: Float[np.ndarray, " s"]  # lambda_max eta t of the next two, ascending from 0
    test_mean_square: Float[np.ndarray, " s"]  # of the residual on the test examples
    elementwise_log_loss: Float[np.ndarray, " s"]  # log F with an elementwise exponential
    num_examples: int  # n
    flops: float  # what it cost
    flops_with_test: float  # and with the columns of the test examples

    @property
    def largest(self) -> float:
        """lambda_max."""
        return float(self.eigenvalues.max())

    def loss(self, form: Form, time: Float[np.ndarray, " m"]) -> Float[np.ndarray, " m"]:
        """F, or what stands in its place, at each ``time`` eta t >= 0; positive."""
        if form is Form.MATRIX:
            value = np.exp(-2.0 * np.multiply.outer(time, self.eigenvalues)) @ self.projections
        elif form is Form.SCALAR:
            value = np.exp(-2.0 * self.mean_gradient_squared * time) * self.projections.sum()
        else:
            logs = self.elementwise_log_loss
            if form is Form.TEST:
                logs = np.log(self.test_mean_square * self.num_examples)
            # between the tabulated times in log s; beyond the last one it stays
            s = np.maximum(self.scaled_times, self.scaled_times[1] / 10.0)
            at = np.interp(np.log(np.maximum(time * self.largest, s[0])), np.log(s), logs)
            value = np.exp(np.minimum(at, np.log(MAX_F)))
        return np.maximum(value, MIN_F)


@dataclasses.dataclass(frozen=True)
class Pool:
    """Losses, steps and kernels of one pool on one task."""

    table: LossTable
    steps: Float[np.ndarray, "num_candidates num_sizes"]  # of the best checkpoint; 0 at D = 0
    learning_rate: float  # of every fine-tune
    fine_tune_flops: Float[np.ndarray, "num_candidates num_sizes"]
    kernels: dict[tuple[str, int], tuple[Kernel, ...]]  # read-out, n -> one per candidate

    def within_budget(self, budget_size: int) -> Float[np.ndarray, "num_candidates num_sizes"]:
        """Weight 1 for losses that a budget measures, 0 for the rest."""
        known = ~np.isnan(self.table.losses) & (self.table.sizes <= budget_size)[None]
        return known.astype(np.float64)

    def known_steps(self, budget_size: int) -> Float[np.ndarray, "num_candidates num_sizes"]:
        """Steps as they are known at a budget: beyond it, the last one's in proportion to D."""
        sizes = self.table.sizes
        last = int(np.flatnonzero(sizes <= budget_size)[-1])
        beyond = self.steps[:, last, None] * sizes[None] / max(int(sizes[last]), 1)
        return np.where((sizes <= budget_size)[None], self.steps, beyond)

    def ntk_loss(
        self,
        form: Form,
        key: tuple[str, int],
        rate: Rate,
        *,
        budget_size: int,
        multiple: float = 1.0,
    ) -> Float[np.ndarray, "num_candidates num_sizes"]:
        """F of every candidate at every size, as it is known at a budget.

        Args:
            form: what stands in the place of F.
            key: read-out and n.
            rate: what eta is.
            budget_size: the largest size within the budget, examples.
            multiple: of 1 / lambda_max, for ``Rate.FITTED``.

        Returns:
            Positive numbers, in the square of the read-out's unit.
        """
        steps = self.known_steps(budget_size)
        rows = []
        for kernel, t in zip(self.kernels[key], steps, strict=True):
            eta = {
                Rate.ADAMW: self.learning_rate / kernel.num_examples,
                Rate.RELEASED: RELEASED_RATE,
                Rate.FASTEST: 1.0 / kernel.largest,
                Rate.FITTED: multiple / kernel.largest,
            }[rate]
            rows.append(kernel.loss(form, eta * t))
        return np.stack(rows)

    def kernel_share(
        self, key: tuple[str, int], budget_size: int, *, with_test: bool = False
    ) -> float:
        """FLOPs of the pool's kernels over those of its fine-tunes up to ``budget_size``.

        ``key`` is read-out and n; ``with_test`` counts the columns of the test examples too.
        """
        fine_tunes = self.fine_tune_flops[:, self.table.sizes <= budget_size].sum()
        kernels = sum(k.flops_with_test if with_test else k.flops for k in self.kernels[key])
        return kernels / float(fine_tunes)


def pool_digests(folder: str | Path, task: str) -> dict[str, str]:
    """SHA-256 of each table of a pool: what results that read them depend on."""
    return {name: sha256_of(Path(folder) / f"{task}_{name}.csv") for name in TABLES}


def read_pool(folder: str | Path, task: str) -> Pool:
    """The tables <task>_losses, _ledger, _spectra, _flow and _kernels (CSV) of a folder.

    Raises:
        UserError: naming the table and what it lacks, or if learning rates differ.
    """
    stem = Path(folder) / task
    table = read_loss_table(f"{stem}_losses.csv", task=task)
    ledger = {(row["candidate"], int(row["size"])): row for row in read_rows(f"{stem}_ledger.csv")}
    steps, flops = np.zeros_like(table.losses), np.zeros_like(table.losses)
    rates = set()
    for i, j in np.argwhere(~np.isnan(table.losses) & (table.sizes > 0)[None]):
        cell = (table.names[i], int(table.sizes[j]))
        if cell not in ledger:
            raise checks.UserError(f"{stem}_ledger.csv must hold a row for {cell}, got none")
        steps[i, j], flops[i, j] = (float(ledger[cell][k]) for k in ("best_step", "flops"))
        rates.add(float(ledger[cell]["learning_rate"]))
    if len(rates) != 1:
        raise checks.UserError(
            f"`learning_rate` of {stem}_ledger.csv must be the same everywhere, got {sorted(rates)}"
        )
    return Pool(table, steps, rates.pop(), flops, _read_kernels(stem, table.names))


def _read_kernels(stem: Path, names: Sequence[str]) -> dict[tuple[str, int], tuple[Kernel, ...]]:
    flow: dict[tuple[str, str, int], list[dict[str, str]]] = {}
    for row in read_rows(f"{stem}_flow.csv"):
        flow.setdefault(_key(row), []).append(row)
    summary = {_key(row): row for row in read_rows(f"{stem}_kernels.csv")}
    kernels = {}
    for row in read_rows(f"{stem}_spectra.csv"):
        key = _key(row)
        columns = {
            name: np.array([float(at[name]) for at in flow[key]])
            for name in ("scaled_time", "test_mean_square", "elementwise_log_loss")
        }
        kernels[key] = Kernel(
            eigenvalues=np.array(row["eigenvalues"].split(), np.float64),
            projections=np.array(row["projections"].split(), np.float64),
            mean_gradient_squared=float(summary[key]["mean_gradient_squared"]),
            scaled_times=columns["scaled_time"],
            test_mean_square=columns["test_mean_square"],
            elementwise_log_loss=columns["elementwise_log_loss"],
            num_examples=key[2],
            flops=float(summary[key]["flops"]),
            flops_with_test=float(summary[key]["flops_with_test"]),
        )
    kinds = sorted({key[1:] for key in kernels}, key=lambda kind: (kind[0] == "label_logits", kind))
    for kind in kinds:
        for name in names:
            if (name, *kind) not in kernels:
                raise checks.UserError(
                    f"{stem}_spectra.csv must hold a kernel of every candidate, got none of "
                    f"{name} for {kind[0]}, n = {kind[1]}"
                )
    return {kind: tuple(kernels[(name, *kind)] for name in names) for kind in kinds}


def _key(row: dict[str, str]) -> tuple[str, str, int]:
    return row["candidate"], row["readout"], int(row["num_examples"])
