r"""How good a ranking of candidates was, once every candidate is fine-tuned in full.

With full-data losses :math:`L_i` (nats per byte) and a selector's scores :math:`s_i`:

.. math::
    \mathrm{PearCorr} = 100\,\rho(s, L), \qquad
    \mathrm{RelAcc} = 100\,\frac{L_{worst} - L_{selected}}{L_{worst} - L_{best}}.

Sign: scores are predicted losses, so a good selector has a positive PearCorr; ``model_size``
scores by log N, so a negative value means that bigger is better.  Both follow Lin et al.
2024 (arXiv 2402.02314), "Selecting Large Language Model to Fine-tune via Rectified Scaling Law".

Example:
    >>> pearson_correlation([1.0, 2.0, 3.0], [1.1, 1.9, 3.2])
    99.06...
    >>> relative_accuracy(1.9, [1.1, 1.9, 3.1])
    60.0
    >>> round(root_mean_square_error([1.0, 2.0], [1.0, 2.5]), 6)
    0.353553
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks

Numbers = Sequence[float] | Float[np.ndarray, " num_candidates"]


def _paired(scores: Numbers, losses: Numbers) -> tuple[np.ndarray, np.ndarray]:
    first, second = np.asarray(scores, np.float64), np.asarray(losses, np.float64)
    checks.shape("losses", second, (None,))
    checks.shape("scores", first, second.shape)
    return checks.finite("scores", first), checks.finite("losses", second)


def pearson_correlation(scores: Numbers, losses: Numbers) -> float:
    """PearCorr of predicted ``scores`` and full-data ``losses`` per candidate, in [-100, 100].

    Raises:
        UserError: with fewer than two candidates, or if either side is constant.
    """
    first, second = _paired(scores, losses)
    if len(first) < 2:
        raise checks.UserError(f"`scores` must name two or more candidates, got {len(first)}")
    a, b = first - first.mean(), second - second.mean()
    if not (a.any() and b.any()):
        raise checks.UserError("`scores` and `losses` must vary over candidates, got a constant")
    return float(np.clip(100.0 * (a @ b) / np.sqrt((a @ a) * (b @ b)), -100.0, 100.0))


def relative_accuracy(selected_loss: float, losses: Numbers) -> float:
    """RelAcc of ``selected_loss`` among all full-data ``losses``: 0 worst, 100 best.

    Raises:
        UserError: if all losses are equal, or the selected one lies outside them.
    """
    values = checks.finite("losses", np.asarray(losses, np.float64))
    best, worst = float(values.min()), float(values.max())
    if best == worst:
        raise checks.UserError(f"`losses` must hold two different values, got only {best}")
    if not best <= selected_loss <= worst:
        raise checks.UserError(
            f"`selected_loss` must be one of `losses` ({best} to {worst}), got {selected_loss}"
        )
    return 100.0 * (worst - float(selected_loss)) / (worst - best)


def root_mean_square_error(predicted: Numbers, measured: Numbers) -> float:
    r""":math:`\sqrt{\frac1m\sum_i (\hat L_i - L_i)^2}`, in the unit of the losses."""
    first, second = _paired(predicted, measured)
    return float(np.sqrt(np.mean((first - second) ** 2)))
