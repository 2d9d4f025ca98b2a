r"""Evaluation: the loss by which candidates are compared, in nats per byte of target text.

Record i has a target of :math:`b_i` bytes (UTF-8), on whose tokens a candidate spends
:math:`x_i` nats.  Over n records

.. math::
    L = \frac{\sum_i x_i}{\sum_i b_i}, \qquad
    C_{cd} = \frac{n}{n - 1} \frac{\sum_i e_{ci} e_{di}}{(\sum_i b_i)^2}, \quad
    e_{ci} = x_{ci} - L_c b_i,

where C is the covariance over independent records (ratio estimator) of the losses of candidates
c and d: the standard error of :math:`L_c` is :math:`\sqrt{C_{cc}}`, that of :math:`L_c - L_d` is
:math:`\sqrt{C_{cc} + C_{dd} - 2 C_{cd}}`.  The end token is no text: its nats per record are a
number of their own.  Nats per token would favour a small vocabulary.

A candidate c that is far behind a rival r need not be evaluated on all n records.  From its first
k its loss is

.. math:: L_c = L_r + (L_c^{(k)} - L_r^{(k)}),

with the rival as control variate.  Its pseudo-values, :math:`x_{ci} = L_c b_i + e_{ri}` and for
:math:`i \le k` another :math:`(e^{(k)}_{ci} - e^{(k)}_{ri}) \sum_j b_j / \sum_{j \le k} b_j`, give
this loss and its covariances by the formulas above.

Example:
    >>> test = Evaluation(np.array([3.0, 1.0]), np.array([0.5, 0.7]), np.array([4, 4]), 2)
    >>> test.loss, test.loss_se, test.end_loss
    (0.5, 0.25, 0.6)
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int, Shaped

from lensllm_jax import checks
from lensllm_jax.data.buckets import bucket_of, row_lengths, smallest_bucket, truncated
from lensllm_jax.typing import IGNORE, Batch

ROWS = 16  # examples of a batch: few, or padding would fill that of a short validation
_FAR = 10.0  # standard errors: what is left of the gap is a tenth of it at most
SCORED = ("is_end", "num_target_bytes")  # what an evaluation needs besides the model's inputs


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Losses of n records, in the task's order."""

    nats: Float[np.ndarray, " n"]  # of the tokens of the target text
    end_nats: Float[np.ndarray, " n"]  # of the end token; 0 where it was cut off
    num_bytes: Int[np.ndarray, " n"]  # of the target text
    num_ends: int  # records with an end token
    num_evaluated: int | None = None  # where nats are pseudo-values: records behind them

    @property
    def loss(self) -> float:
        """Nats per byte of target text."""
        return float(self.nats.sum() / self.num_bytes.sum())

    @property
    def loss_se(self) -> float:
        """Standard error of ``loss`` over records, nats per byte; NaN for one record."""
        return math.sqrt(loss_covariance(self.nats[None], self.num_bytes[None])[0, 0])

    @property
    def end_loss(self) -> float:
        """Nats per record that has an end token; NaN if none has."""
        return float(self.end_nats.sum() / self.num_ends) if self.num_ends else math.nan


def loss_covariance(
    nats: Float[np.ndarray, "c n"], num_bytes: Shaped[np.ndarray, "c n"]
) -> Float[np.ndarray, "c c"]:
    """C of the losses of c candidates on the same n records, squared nats per byte.

    Args:
        nats: a row per candidate.
        num_bytes: of each record's target text.

    Returns:
        C; NaN for one record.
    """
    count, total = nats.shape[1], num_bytes.sum(1, keepdims=True)
    if count < 2:
        return np.full((len(nats), len(nats)), math.nan)
    errors = (nats - nats.sum(1, keepdims=True) / total * num_bytes) / total
    return count / (count - 1) * (errors @ errors.T)


def concatenated(parts: Sequence[Evaluation]) -> Evaluation:
    """The losses of records that were evaluated in several parts."""
    nats, end_nats, num_bytes = (
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("nats", "end_nats", "num_bytes")
    )
    return Evaluation(nats, end_nats, num_bytes, sum(part.num_ends for part in parts))


def is_far_behind(test: Evaluation, rival: Float[np.ndarray, "2 n"]) -> bool:
    """Whether a loss on the first k records is above the rival's by ten standard errors or more.

    Args:
        test: of these records.
        rival: nats and bytes of all n.
    """
    nats, num_bytes = rival[:, : len(test.nats)]
    both = loss_covariance(np.stack([test.nats, nats]), np.stack([num_bytes, num_bytes]))
    variance = max(0.0, both[0, 0] + both[1, 1] - 2 * both[0, 1])
    return bool(test.loss - nats.sum() / num_bytes.sum() > _FAR * math.sqrt(variance))


def completed(test: Evaluation, rival: Float[np.ndarray, "2 n"]) -> Evaluation:
    """The pseudo-values of all n records, from the losses of the first k and a rival's.

    Args:
        test: of the first k.
        rival: nats and bytes of all n.
    """
    count, (nats, num_bytes) = len(test.nats), rival
    part = nats[:count].sum() / num_bytes[:count].sum()
    pseudo = nats + (test.loss - part) * num_bytes
    errors = test.nats - nats[:count] - (test.loss - part) * num_bytes[:count]
    pseudo[:count] += errors * num_bytes.sum() / num_bytes[:count].sum()
    return Evaluation(
        pseudo, np.pad(test.end_nats, (0, len(nats) - count)), num_bytes.astype(np.int64),
        test.num_ends, num_evaluated=count,
    )  # fmt: skip


@dataclasses.dataclass(frozen=True)
class EvaluationBatches:
    """Records in batches of one number of rows; rows that fill the last one have no target.

    Attributes:
        batches: arrays (b, s), one row's texts and masks each.
        order: record of each row, padding rows left out.
        num_bytes: of each record's target text.
        num_ends: records with an end token.
    """

    batches: tuple[Batch, ...]
    order: Int[np.ndarray, " n"]
    num_bytes: Int[np.ndarray, " n"]
    num_ends: int

    @classmethod
    def of(cls, data: Batch, *, buckets: tuple[int, ...] = ()) -> "EvaluationBatches":
        """The batches of ``data`` (n, s).

        With ``buckets`` (ascending lengths, tokens) the records are sorted by bucket, and each
        batch is truncated to the smallest bucket that holds it.

        Args:
            data: as ``EncodedExamples.scored_batch`` returns it.
            buckets: lengths to truncate to.
        """
        lengths = row_lengths(data)
        count = len(lengths)
        # by bucket, not by length: batches of one bucket have as many targets
        order = np.argsort(bucket_of(lengths, buckets), kind="stable")
        missing = -count % ROWS
        filled = {name: _filled(name, np.asarray(v)[order], missing) for name, v in data.items()}
        batches = tuple(
            truncated(
                {k: v[i : i + ROWS] for k, v in filled.items()},
                smallest_bucket(lengths[order[i : i + ROWS]], buckets),
            )
            for i in range(0, count, ROWS)
        )
        return cls(
            batches, order, np.asarray(data["num_target_bytes"], np.int64),
            int(np.asarray(data["is_end"]).any(1).sum()),
        )  # fmt: skip

    def evaluation(
        self, nats: Float[np.ndarray, " rows"], end_nats: Float[np.ndarray, " rows"]
    ) -> Evaluation:
        """The evaluation, from what each row of the batches cost.

        Raises:
            FloatingPointError: if a loss is not finite.
        """
        if not np.isfinite(nats.sum() + end_nats.sum()):
            raise FloatingPointError(f"evaluation loss must be finite, got {nats.sum()}")
        sides = np.zeros((2, len(self.order)))
        sides[:, self.order] = np.stack([nats, end_nats])[:, : len(self.order)]
        return Evaluation(sides[0], sides[1], self.num_bytes, self.num_ends)


def _filled(name: str, values: np.ndarray, missing: int) -> np.ndarray:
    """With rows behind that have no target, no end and no byte."""
    filling = {"labels": IGNORE, "is_end": 0, "num_target_bytes": 0}.get(name, 1)
    widths = [(0, missing)] + [(0, 0)] * (values.ndim - 1)
    return np.pad(values, widths, constant_values=filling)


def check_text(name: str, data: Batch) -> None:
    """Refuses a split without a byte of target text, whose loss would be 0 / 0.

    Raises:
        UserError: if it is one, or holds nothing that says so.
    """
    missing = [key for key in SCORED if key not in data]
    if missing:
        raise checks.UserError(
            f"`{name}` must hold {' and '.join(missing)}, got {', '.join(data)}: take it from "
            "EncodedExamples.scored_batch"
        )
    if not np.asarray(data["num_target_bytes"]).any():
        raise checks.UserError(
            f"`{name}` must hold a byte of target text, got none in "
            f"{len(data['num_target_bytes'])} examples: keep more of each"
        )
