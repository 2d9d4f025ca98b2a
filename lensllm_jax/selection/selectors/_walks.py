r"""How far a fine-tuning curve may stray from its straight line: slopes that walk.

In the time :math:`w = (e^{r x} - 1)/r` of `pooled`, x = log2 D, in which a bend shared by the task
is straight, a candidate's log loss minus the pool's mean is

.. math:: z_i(w) = a_i + b_i w + q \int_0^w W_i(u)\,du + \epsilon, \qquad
    b_i \sim N(0, s^2), \quad \epsilon \sim N(0, n^2),

with :math:`W_i` a Wiener process and a free level :math:`a_i`: a Gaussian process with covariance
:math:`q^2 \min^2(3\max - \min)/6 + s^2 w w' + n^2 \delta`.  The pool's mean curve is one more
curve of the same kind with a free slope.  (q, n, s, r) lie on a grid, weighted by the marginal
likelihood of all candidates and log-normal priors; what one candidate's curve cannot show, the
pool's curves do.
"""

import itertools
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax.selection.selectors.pooled import warped_octaves

_WALKS = np.geomspace(3e-4, 0.03, 9)  # q: log loss per octave^1.5
_NOISES = np.geomspace(5e-4, 0.03, 7)  # n: log loss
_SLOPES = np.geomspace(0.003, 0.06, 5)  # s: log loss per octave
_GROWTHS = np.linspace(0.0, 0.24, 5)  # r: per octave
_PRIORS = ((0.003, 1.0), (0.004, 0.8), (0.02, 0.8))  # median and log-std of q, n, s
_GROWTH_STD = 0.1
_LEVEL_VARIANCE = 25.0  # of a log loss: free
_MEAN_SLOPE_VARIANCE = 1.0  # of the pool's mean slope, per octave: free
_MAX_PATTERNS = 32  # of measured sizes, the commonest, that weight the grid
_MASS = 0.999  # of the grid's weights that predictions use


class _Model(NamedTuple):
    """One growth r and every (q, n, s): covariances of the curve at the sizes and the target."""

    log_prior: Float[np.ndarray, " g"]
    sizes: Float[np.ndarray, "g m m"]
    cross: Float[np.ndarray, "g m"]
    target: Float[np.ndarray, " g"]
    clock: Float[np.ndarray, " m"]


def _models(octaves: Float[np.ndarray, " m"], target: float) -> Iterator[_Model]:
    walk, noise, slope = np.array([*itertools.product(_WALKS, _NOISES, _SLOPES)]).T
    prior = sum(
        -0.5 * (np.log(values / median) / width) ** 2
        for values, (median, width) in zip((walk, noise, slope), _PRIORS, strict=True)
    )
    for growth in _GROWTHS:
        w = warped_octaves(np.append(octaves, target), growth)
        w = w - w[0]
        low, high = np.minimum(w[:, None], w), np.maximum(w[:, None], w)
        walks, slopes = low**2 * (3.0 * high - low) / 6.0, np.outer(w, w)
        both = (
            walk[:, None, None] ** 2 * walks + slope[:, None, None] ** 2 * slopes + _LEVEL_VARIANCE
        )
        noises = noise[:, None, None] ** 2 * np.eye(len(octaves))
        yield _Model(
            prior - 0.5 * (growth / _GROWTH_STD) ** 2,
            both[:, :-1, :-1] + noises,
            both[:, :-1, -1],
            both[:, -1, -1],
            w[:-1],
        )


def _log_likelihood(
    covariance: Float[np.ndarray, "g m m"], scatter: Float[np.ndarray, "m m"], count: float
) -> Float[np.ndarray, " g"]:
    """Of ``count`` curves whose outer products sum to ``scatter``, up to a constant."""
    log_det = np.linalg.slogdet(covariance)[1]
    return -0.5 * (np.einsum("gij,ij->g", np.linalg.inv(covariance), scatter) + count * log_det)


def log_std_of_walks(
    octaves: Float[np.ndarray, " m"],
    log_losses: Float[np.ndarray, "num_candidates m"],
    mean: Float[np.ndarray, " m"],
    target: float,
) -> Float[np.ndarray, " num_candidates"]:
    """Standard deviation of each candidate's log loss at the target, relative to the pool's.

    Args:
        octaves: log2 of the sizes minus that of the budget, ascending.
        log_losses: NaN where not measured.
        mean: the pool's mean curve, its level of no meaning.
        target: octaves from the budget to the target.
    """
    contrasts = log_losses - mean
    levels = [row[np.isfinite(row)].mean() if np.isfinite(row).any() else 0.0 for row in contrasts]
    contrasts = contrasts - np.array(levels)[:, None]
    patterns, pattern_of = np.unique(np.isfinite(log_losses), axis=0, return_inverse=True)
    pattern_of = pattern_of.reshape(-1)
    members = [np.flatnonzero(pattern_of == k) for k in range(len(patterns))]
    commonest = sorted(range(len(patterns)), key=lambda k: -len(members[k]))[:_MAX_PATTERNS]
    free = 1.0 - 1.0 / len(log_losses)  # the pool's mean is taken from the candidates
    models = [*_models(octaves, target)]
    log_weights = []
    for model in models:
        mean_curve = model.sizes + _MEAN_SLOPE_VARIANCE * np.outer(model.clock, model.clock)
        centered = mean - mean.mean()
        total = model.log_prior + _log_likelihood(mean_curve, np.outer(centered, centered), 1.0)
        for k in commonest:
            total = total + _pattern_likelihood(model, patterns[k], contrasts[members[k]], free)
        log_weights.append(total)
    kept, weights = _heaviest(np.concatenate(log_weights))
    sizes, cross, targets = (
        np.concatenate([getattr(m, part) for m in models])[kept]
        for part in ("sizes", "cross", "target")
    )
    variance = np.empty(len(log_losses))
    for pattern, rows in zip(patterns, members, strict=True):
        inverse = np.linalg.inv(sizes[:, pattern][:, :, pattern])
        gain = np.einsum("gij,gj->gi", inverse, cross[:, pattern])
        own = np.maximum(targets - (gain * cross[:, pattern]).sum(1), 0.0)
        if not pattern.any():  # nothing measured: the slope's and the walk's own spread
            own = own - _LEVEL_VARIANCE
        off = gain - weights @ gain
        between = np.einsum("g,gi,gj->ij", weights, off, off)
        z = contrasts[rows][:, pattern]
        variance[rows] = weights @ own + np.einsum("ni,ij,nj->n", z, between, z)
    return np.sqrt(variance)


def _pattern_likelihood(
    model: _Model, pattern: Bool[np.ndarray, " m"], contrasts: Float[np.ndarray, "n m"], free: float
) -> Float[np.ndarray, " g"] | float:
    """Of the candidates with one pattern of measured sizes, a ``free`` part of each counting."""
    if not pattern.any():
        return 0.0
    z = contrasts[:, pattern]
    return _log_likelihood(model.sizes[:, pattern][:, :, pattern], z.T @ z, free * len(z))


def _heaviest(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of the grid points that hold nearly all of the weight."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    order = np.argsort(-weights)
    order = order[: int(np.searchsorted(np.cumsum(weights[order]), _MASS)) + 1]
    return order, weights[order] / weights[order].sum()
