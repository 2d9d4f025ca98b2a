"""Mistakes with matrices and with the metrics of a ranking."""

import numpy as np

from lensllm_jax import linalg, metrics

LOSSES = [1.0, 2.0, 3.0]


# the message, and what brings it about in an empty folder
MISTAKES = [
    (
        "`matrix` must be finite, got nan at index (0, 0)",
        lambda tmp: linalg.symmetric_eigen(np.array([[np.nan]])),
    ),
    (
        (
            "`matrix` must be symmetric (max|A - A^T| / max|A| <= 1e-08), got 1.0e+00: symmetrise "
            "it yourself only if you know why it is not"
        ),
        lambda tmp: linalg.symmetric_eigen(np.array([[1.0, 2.0], [0.0, 1.0]])),
    ),
    (
        "`losses` must have shape (any,), got (1, 3)",
        lambda tmp: metrics.pearson_correlation(LOSSES, [LOSSES]),
    ),
    (
        "`scores` must have shape (3,), got (2,)",
        lambda tmp: metrics.pearson_correlation(LOSSES[:2], LOSSES),
    ),
    (
        "`scores` must be finite, got nan at index (1,)",
        lambda tmp: metrics.pearson_correlation([1.0, np.nan, 2.0], LOSSES),
    ),
    (
        "`scores` must name two or more candidates, got 1",
        lambda tmp: metrics.pearson_correlation([1.0], [1.0]),
    ),
    (
        "`scores` and `losses` must vary over candidates, got a constant",
        lambda tmp: metrics.pearson_correlation([1.0, 1.0], [1.0, 2.0]),
    ),
    (
        "`losses` must be finite, got inf at index (1,)",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, np.inf]),
    ),
    (
        "`losses` must hold two different values, got only 1.0",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, 1.0]),
    ),
    (
        "`selected_loss` must be one of `losses` (1.0 to 3.0), got 4.0",
        lambda tmp: metrics.relative_accuracy(4.0, LOSSES),
    ),
]
