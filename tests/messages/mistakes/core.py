"""Mistakes with matrices, the metrics of a ranking and paired comparisons."""

import numpy as np

from lensllm_jax import linalg, metrics
from lensllm_jax.paired import paired

LOSSES = [1.0, 2.0, 3.0]


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    (
        "matrix",
        "finite ... got nan at index (0, 0)",
        lambda tmp: linalg.symmetric_eigen(np.array([[np.nan]])),
    ),
    (
        "matrix",
        "symmetric ... got 1.0e+00",
        lambda tmp: linalg.symmetric_eigen(np.array([[1.0, 2.0], [0.0, 1.0]])),
    ),
    (
        "losses",
        "have shape ... got (1, 3)",
        lambda tmp: metrics.pearson_correlation(LOSSES, [LOSSES]),
    ),
    (
        "scores",
        "have shape ... got (2,)",
        lambda tmp: metrics.pearson_correlation(LOSSES[:2], LOSSES),
    ),
    (
        "scores",
        "finite ... got nan at index (1,)",
        lambda tmp: metrics.pearson_correlation([1.0, np.nan, 2.0], LOSSES),
    ),
    ("scores", "name two or more ... got 1", lambda tmp: metrics.pearson_correlation([1.0], [1.0])),
    (
        "scores",
        "vary over candidates ... got a constant",
        lambda tmp: metrics.pearson_correlation([1.0, 1.0], [1.0, 2.0]),
    ),
    (
        "losses",
        "finite ... got inf at index (1,)",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, np.inf]),
    ),
    (
        "losses",
        "hold two different values ... got only 1.0",
        lambda tmp: metrics.relative_accuracy(1.0, [1.0, 1.0]),
    ),
    (
        "selected_loss",
        "one of `losses` ... got 4.0",
        lambda tmp: metrics.relative_accuracy(4.0, LOSSES),
    ),
    (
        "differences",
        "finite ... got nan at index (0, 0)",
        lambda tmp: paired(np.array([[np.nan, 1.0]])),
    ),
    ("differences", "have two or more ... got 1", lambda tmp: paired(np.array([[1.0]]))),
]
