r"""`logme`: the evidence that a linear model on frozen features has for the labels.

You et al. 2021 (arXiv 2102.11005): with features F (n, d) and a target column y,
:math:`w \sim N(0, \alpha^{-1} I)` and :math:`y \mid w \sim N(F w, \beta^{-1} I)`, the log
evidence is

.. math::
    \mathcal L(\alpha, \beta) = \tfrac{d}{2}\log\alpha + \tfrac n2\log\beta - \tfrac n2\log 2\pi
    - \tfrac12\log|A| - \tfrac\beta2\|Fm - y\|^2 - \tfrac\alpha2\|m\|^2,

:math:`A = \alpha I + \beta F^\top F`, :math:`m = \beta A^{-1} F^\top y`.  LogME is the maximum over
alpha and beta, per example, averaged over columns (one indicator per class).  The fixed point
:math:`\alpha = \gamma / \|m\|^2`, :math:`\beta = (n - \gamma) / \|Fm - y\|^2`,
:math:`\gamma = \sum_i \beta\sigma_i^2 / (\alpha + \beta\sigma_i^2)`, is iterated in the singular
basis of F, where A is diagonal.  Bigger is better.

Example:
    >>> rng = np.random.default_rng(0)
    >>> labels = np.arange(60) % 2
    >>> noise = rng.standard_normal((60, 5))
    >>> informative = noise + labels[:, None] * np.array([3.0, 0, 0, 0, 0])
    >>> log_evidence(informative, labels) > log_evidence(noise, labels)
    True
"""

import numpy as np
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.selection.problem import Problem, Scores

_MAX_ITERATIONS = 1000
_TOLERANCE = 1e-10  # of alpha / beta, relative
_PRECISION_LIMIT = 1e12  # alpha or beta beyond it: no signal, or an exact fit


def log_evidence(features: Float[np.ndarray, "n d"], labels: Int[np.ndarray, " n"]) -> float:
    """LogME of one candidate: maximum log evidence, nats per example, mean over classes.

    Raises:
        UserError: with fewer than two classes, or features that are not finite.
    """
    checks.finite("features", features)
    checks.shape("labels", labels, (len(features),))
    classes = np.unique(labels)
    if len(classes) < 2:
        raise checks.UserError(f"`labels` must name two or more classes, got {len(classes)}")
    left, singular, _ = np.linalg.svd(np.asarray(features, np.float64), full_matrices=False)
    columns = (labels[:, None] == classes[None]).astype(np.float64)
    width = features.shape[1]
    return float(np.mean([_column_evidence(left, singular, y, width) for y in columns.T]))


def _column_evidence(left: np.ndarray, singular: np.ndarray, y: np.ndarray, width: int) -> float:
    """Maximum log evidence of one target column, per example."""
    n = len(y)
    squares = singular**2
    along = left.T @ y  # y in the singular basis
    outside = max(float(y @ y - along @ along), 0.0)  # what no weights can reach
    alpha = beta = 1.0
    for _ in range(_MAX_ITERATIONS):
        shrink = beta * squares / (alpha + beta * squares)
        weights = float((((beta * singular * along) / (alpha + beta * squares)) ** 2).sum())
        error = float((((1.0 - shrink) * along) ** 2).sum()) + outside
        gamma = float(shrink.sum())
        ratio = alpha / beta
        # features that are all zero have no weights, and any precision of them does
        alpha = min(max(gamma, 1e-300) / max(weights, 1e-300), _PRECISION_LIMIT)
        beta = min((n - gamma) / max(error, 1e-300), _PRECISION_LIMIT)
        if abs(alpha / beta / ratio - 1.0) < _TOLERANCE:
            break
    posterior = alpha + beta * squares
    weights = float((((beta * singular * along) / posterior) ** 2).sum())
    error = float((((alpha / posterior) * along) ** 2).sum()) + outside
    log_det = float(np.log(posterior).sum()) + (width - len(singular)) * np.log(alpha)
    evidence = (
        0.5 * width * np.log(alpha)
        + 0.5 * n * np.log(beta)
        - 0.5 * n * np.log(2.0 * np.pi)
        - 0.5 * log_det
        - 0.5 * beta * error
        - 0.5 * alpha * weights
    )
    return float(evidence) / n


def score(problem: Problem) -> Scores:
    """LogME of each candidate's features; bigger is better."""
    features = problem.evidence.of_each("features", problem.table.names)
    values = [log_evidence(*pair) for pair in features]
    return Scores(np.array(values), predicts=False, bigger_is_better=True, reads_losses=False)
