r"""The slopes model: each curve's fall per octave, in a Bayesian model of the whole pool.

In octave k, at the middle :math:`t_k` of it (octaves from the budget), candidate i falls by

.. math:: s_{ik} = e^{g_k + b_{ik}}, \qquad
    \log L_i(x_k) - \log L_i(x_{k+1}) = s_{ik} \Delta_k + \epsilon_{ik},

* g, shared by the task: a level, a growth per octave and a random walk, all Gaussian;
* b, the candidate's own, of standard deviation .8 in the first octave:
  :math:`b_{i,k+1} = e^{R/x_{k+1} - R/x_k} b_{ik} + \xi_{ik}`, with :math:`x_k` the examples at the
  middle of octave k and R = 110.  Early slopes return to the task's level: of a difference at x
  examples the share :math:`e^{-R/x}` lasts, a third at 100 and nine tenths at 1,000.  Steps
  :math:`\xi` have standard deviation q per square root of an octave, those of an
  Ornstein-Uhlenbeck process of standard deviation .8, whose own decay takes many octaves;
* :math:`\epsilon`: Student t with four degrees of freedom (one octave's jump must not count) and
  scale :math:`n\,e^{-\lambda t_k}`, larger on smaller subsets.

Both are found at the posterior's mode, given (q, n); (q, n) lie on a grid, weighted by the marginal
likelihood (Laplace) times log-normal priors.  Candidates of one pool are not independent evidence
of (q, n), so that all of them together weigh as much as twenty.

From its last loss on, a candidate's log loss is that loss minus the sum of the :math:`s` still to
come: its mean and variance have a closed form where s is linearized.  The process is Markov, so
that every solve is tridiagonal and work is linear in candidates and in sizes.
"""

import itertools
import math
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float

from lensllm_jax.selection.loss_table import last_measured

_WALKS = (0.06, 0.1, 0.16, 0.25)  # q, of log slopes per square root of an octave
_NOISES = (0.0015, 0.003, 0.006, 0.012, 0.024)  # n, of slopes: log loss per octave, at the budget
_PRIORS = ((0.11, 0.5), (0.003, 0.6))  # median and log-std of q and n
_OWN_STD = 0.8  # of b
_FORGETTING = 110.0  # R, examples
_NOISE_DECAY = 0.25  # lambda, per octave
_NOISE_DOF = 4.0
_SHARED_WALK = 0.08  # of g, per square root of an octave
_GROWTH = (0.045, 0.06)  # of g per octave: mean and standard deviation
_LEVEL = (math.log(0.04), 1.0)  # of g at the budget: mean and standard deviation
_EVIDENCE = 20.0  # candidates
_MAX_SAMPLE = 200  # candidates that weight the grid
_MASS = 0.999  # of the grid's weights that predictions use
_NUM_STEPS = 12  # of Newton's method, each of at most _LONGEST in log slope
_LONGEST = 0.5
_LOG_SLOPES = (-9.0, 1.0)  # bounds
_LEAST_SLOPE = 2e-3  # at the start

_Grid = np.ndarray  # (g, n, m): each (q, n), candidate and octave


class _Octaves(NamedTuple):
    """Spans between sizes, past and future, and the slopes that were measured."""

    spans: Float[np.ndarray, " m+f"]  # octaves
    middles: Float[np.ndarray, " m+f"]  # octaves, 0 in the last octave before the budget
    slopes: Float[np.ndarray, "n m"]  # loss falling counts positive; 0 where not measured
    precision: Float[np.ndarray, "n m"]  # of the slope at unit noise; 0 where not measured
    kept: Float[np.ndarray, " m+f-1"]  # share of b that the next octave keeps


class _Mode(NamedTuple):
    """The posterior's mode given each (q, n), and its curvature."""

    own: _Grid  # b
    shared: Float[np.ndarray, "g m"]  # g
    curvature: _Grid  # of the slopes' likelihood in b
    log_evidence: Float[np.ndarray, " g"]


def predict(
    octaves: Float[np.ndarray, " num_sizes"],
    log_losses: Float[np.ndarray, "n num_sizes"],
    target: float,
    budget_size: int,
) -> tuple[Float[np.ndarray, " n"], Float[np.ndarray, " n"]]:
    """Log losses at the target and their standard deviations, relative to the pool's mean.

    Args:
        octaves: log2 of sizes, ascending, 0 at the budget.
        log_losses: NaN where not measured.
        target: octaves above the budget.
        budget_size: examples.

    Returns:
        Never NaN: without a slope the pool's counts, without a loss the pool's mean.
    """
    if len(octaves) == 1:  # an octave without a slope: the priors alone speak
        octaves = np.append(octaves[0] - 1.0, octaves)
        log_losses = np.insert(log_losses, 0, np.nan, axis=1)
    walk, noise = np.array([*itertools.product(_WALKS, _NOISES)]).T
    sample = log_losses[:: -(-len(log_losses) // _MAX_SAMPLE)]
    mode = _mode(_octaves_of(octaves, sample, target, budget_size), walk, noise)
    log_weights = mode.log_evidence * min(1.0, _EVIDENCE / len(sample))
    for values, (median, width) in zip((walk, noise), _PRIORS, strict=True):
        log_weights = log_weights - 0.5 * (np.log(values / median) / width) ** 2
    kept, weights = _heaviest(log_weights)
    walk, noise, octave = (
        walk[kept],
        noise[kept],
        _octaves_of(octaves, log_losses, target, budget_size),
    )
    if len(sample) < len(log_losses):
        mode = _mode(octave, walk, noise)
    else:
        mode = _Mode(*(part[kept] for part in mode))
    means, variances = _extrapolate(octave, walk, noise, mode, log_losses)
    center, variance = weights @ means, weights @ variances
    off = without_shift(means - center, variance)
    return center, np.sqrt(variance + weights @ off**2)


def without_shift(
    errors: Float[np.ndarray, "k n"], variance: Float[np.ndarray, " n"]
) -> Float[np.ndarray, "k n"]:
    """Errors of a pool minus their mean, in which those count whose variance is small.

    A shift of all candidates changes no order; one that is known does not move with the others.
    """
    weights = 1.0 / np.maximum(variance, 1e-12)
    return errors - (errors @ weights / weights.sum())[:, None]


def _heaviest(log_weights: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Indices and weights of the grid points that hold nearly all of the weight."""
    weights = np.exp(log_weights - log_weights.max())
    weights /= weights.sum()
    order = np.argsort(-weights)
    order = order[: int(np.searchsorted(np.cumsum(weights[order]), _MASS)) + 1]
    return order, weights[order] / weights[order].sum()


def _octaves_of(
    octaves: np.ndarray, log_losses: np.ndarray, target: float, budget_size: int
) -> _Octaves:
    """A slope over several octaves, where a size was left out, counts once, in all of them."""
    spans = np.concatenate([np.diff(octaves), _spans_to(target)])
    ends = np.concatenate([[0.0], np.cumsum(spans)])
    middles = 0.5 * (ends[1:] + ends[:-1])
    columns, rows = np.arange(len(octaves)), np.arange(len(log_losses))[:, None]
    is_measured = np.isfinite(log_losses)
    before = np.maximum.accumulate(np.where(is_measured, columns, -1), 1)[:, :-1]
    after = np.where(is_measured, columns, len(octaves))[:, ::-1]
    after = np.minimum.accumulate(after, 1)[:, ::-1][:, 1:]
    is_known = (before >= 0) & (after < len(octaves))
    first, last = np.where(is_known, before, 0), np.where(is_known, after, 1)
    way = octaves[last] - octaves[first]
    falls = log_losses[rows, first] - log_losses[rows, last]
    return _Octaves(
        spans,
        middles - middles[len(octaves) - 2],
        np.where(is_known, falls / way, 0.0),
        np.where(is_known, way**2 / (last - first), 0.0),
        _kept(octaves[0] + middles, budget_size),
    )


def _spans_to(target: float) -> np.ndarray:
    """Octaves from the budget to the target; the last one may be shorter."""
    count = max(math.ceil(target - 1e-9), 1)
    return np.append(np.ones(count - 1), target - (count - 1))


def _kept(octaves: np.ndarray, budget_size: int) -> np.ndarray:
    """Share of b that is not forgotten from each of the octaves to the next one."""
    return np.exp(_FORGETTING * np.diff(np.exp2(-octaves)) / budget_size)


def lasting_share(octaves: float, size: int) -> float:
    """Share of the differences of slopes at a size that lasts, mean of the way to the target.

    Args:
        octaves: from the size to the target; at the target, nothing is left to forget.
        size: examples.
    """
    if octaves <= 0.0:
        return 1.0
    spans = _spans_to(octaves)
    middles = np.append(-0.5, np.cumsum(spans) - 0.5 * spans)
    return float(np.cumprod(_kept(middles, size)) @ spans / spans.sum())


def _shared_prior(middles: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and covariance of g."""
    same_side = middles[:, None] * middles > 0
    walk = np.where(same_side, np.minimum(np.abs(middles)[:, None], np.abs(middles)), 0.0)
    covariance = (
        _LEVEL[1] ** 2 + _SHARED_WALK**2 * walk + _GROWTH[1] ** 2 * np.outer(middles, middles)
    )
    return _LEVEL[0] + _GROWTH[0] * middles, covariance + 1e-8 * np.eye(len(middles))


def _steps(walk: np.ndarray, middles: np.ndarray, kept: np.ndarray) -> tuple[np.ndarray, ...]:
    """From each octave to the next one: the share of b that is left, and the variance added."""
    decay = np.exp(-np.diff(middles) * walk[:, None] ** 2 / (2.0 * _OWN_STD**2))
    return decay * kept, _OWN_STD**2 * (1.0 - decay**2)  # g m-1


class _Chain:
    """Precision of b at neighbouring octaves: tridiagonal, for every q."""

    def __init__(self, walk: np.ndarray, middles: np.ndarray, kept: np.ndarray):
        left, added = _steps(walk, middles, kept)
        first = np.full((len(walk), 1), _OWN_STD**2)
        precision = 1.0 / np.concatenate([first, added], 1)
        self.log_det = np.log(precision).sum(1)
        self.beside = (-left / added)[:, None]  # g 1 m-1
        precision[:, :-1] += left**2 / added
        self.diagonal = precision[:, None]  # g 1 m

    def times(self, values: _Grid) -> _Grid:
        """The precision times ``values``."""
        product = self.diagonal * values
        product[..., 1:] += self.beside * values[..., :-1]
        product[..., :-1] += self.beside * values[..., 1:]
        return product

    def solve(self, curvature: _Grid, right: _Grid) -> tuple[_Grid, _Grid]:
        """``(precision + diag(curvature))^-1 right``, and the pivots of the elimination."""
        pivots, solution = self.diagonal + curvature, right.copy()
        for k in range(1, pivots.shape[-1]):
            factor = self.beside[..., k - 1] / pivots[..., k - 1]
            pivots[..., k] -= factor * self.beside[..., k - 1]
            solution[..., k] -= factor * solution[..., k - 1]
        solution[..., -1] /= pivots[..., -1]
        for k in range(pivots.shape[-1] - 2, -1, -1):
            solution[..., k] -= self.beside[..., k] * solution[..., k + 1]
            solution[..., k] /= pivots[..., k]
        return solution, pivots


def _slopes_of(log_slopes: np.ndarray) -> np.ndarray:
    return np.exp(np.clip(log_slopes, *_LOG_SLOPES))


def _mode(octave: _Octaves, walk: np.ndarray, noise: np.ndarray) -> _Mode:
    """Newton's method in b and in g by turns, with the weights of Student t."""
    count = octave.slopes.shape[1]
    middles, is_known = octave.middles[:count], octave.precision > 0
    chain = _Chain(walk, middles, octave.kept[: count - 1])
    mean, covariance = _shared_prior(middles)
    inverse = np.linalg.inv(covariance)
    precision = octave.precision * np.exp(2.0 * _NOISE_DECAY * middles) / noise[:, None, None] ** 2

    def pull(own: _Grid, shared: np.ndarray) -> tuple[_Grid, _Grid, _Grid]:
        """Gradient and curvature of the slopes' log likelihood, and its Student t terms."""
        slopes = _slopes_of(own + shared[:, None])
        error = np.where(is_known, octave.slopes - slopes, 0.0)
        squares = error**2 * precision / _NOISE_DOF
        weights = precision * (1.0 + 1.0 / _NOISE_DOF) / (1.0 + squares) * slopes
        return weights * error, weights * slopes, squares

    shared = np.tile(_typical(octave.slopes, is_known), (len(walk), 1))
    own = np.zeros((len(walk), *octave.slopes.shape))
    for _ in range(_NUM_STEPS):
        gradient, curvature, _ = pull(own, shared)
        step, _ = chain.solve(curvature, gradient - chain.times(own))
        own = own + np.clip(step, -_LONGEST, _LONGEST)
        gradient, curvature, _ = pull(own, shared)
        both = inverse + curvature.sum(1)[..., None] * np.eye(count)
        ascent = gradient.sum(1) - (shared - mean) @ inverse
        step = np.linalg.solve(both, ascent[..., None])[..., 0]
        shared = shared + np.clip(step, -_LONGEST, _LONGEST)
    _, curvature, squares = pull(own, shared)
    pivots = chain.solve(curvature, np.zeros_like(own))[1]
    off = shared - mean
    evidence = -0.5 * (
        (_NOISE_DOF + 1.0) * np.log1p(squares).sum((1, 2))
        - np.log(np.where(is_known, precision, 1.0)).sum((1, 2))
        + (own * chain.times(own)).sum((1, 2))
        + np.log(pivots).sum((1, 2))
        - len(octave.slopes) * chain.log_det
        + np.einsum("gi,ij,gj->g", off, inverse, off)
    )
    return _Mode(own, shared, curvature, evidence)


def _typical(
    slopes: Float[np.ndarray, "n m"], is_known: Bool[np.ndarray, "n m"]
) -> Float[np.ndarray, " m"]:
    """Log of the pool's median slope in each octave, where g starts."""
    medians = [
        float(np.median(column[known])) if known.any() else math.exp(_LEVEL[0])
        for column, known in zip(slopes.T, is_known.T, strict=True)
    ]
    return np.log(np.maximum(medians, _LEAST_SLOPE))


def _ahead(left: np.ndarray, added: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Share of today's b that is left in each octave to come, and the covariance added by then."""
    fresh = np.zeros((*added.shape, added.shape[1]))  # g f f
    for k in range(added.shape[1]):
        fresh[:, k, :k] = fresh[:, :k, k] = left[:, k, None] * fresh[:, k - 1, :k]
        fresh[:, k, k] = added[:, k] + left[:, k] ** 2 * fresh[:, k - 1, k - 1]
    return np.cumprod(left, 1), fresh


def _extrapolate(
    octave: _Octaves,
    walk: np.ndarray,
    noise: np.ndarray,
    mode: _Mode,
    log_losses: Float[np.ndarray, "n num_sizes"],
) -> tuple[Float[np.ndarray, "g n"], Float[np.ndarray, "g n"]]:
    """Means and variances of log losses at the target, given each (q, n)."""
    count = mode.own.shape[-1]
    chain = _Chain(walk, octave.middles[:count], octave.kept[: count - 1])
    unit = np.zeros_like(mode.own)
    unit[..., -1] = 1.0
    last_variance = chain.solve(mode.curvature, unit)[0][..., -1]
    decay, fresh = _ahead(*_steps(walk, octave.middles[count - 1 :], octave.kept[count - 1 :]))
    mean, covariance = _shared_prior(octave.middles)
    weight = np.linalg.solve(covariance[:count, :count], covariance[:count, count:])
    shared = mean[count:] + (mode.shared - mean[:count]) @ weight
    shared_left = covariance[count:, count:] - covariance[count:, :count] @ weight
    variance = np.diagonal(fresh, axis1=1, axis2=2)[:, None] + (
        decay[:, None] ** 2 * last_variance[..., None]
    )
    log_falls = mode.own[..., -1:] * decay[:, None] + shared[:, None] + 0.5 * variance
    falls = _slopes_of(log_falls) * octave.spans[count:]  # g n f

    is_measured = np.isfinite(log_losses)
    is_seen = is_measured.any(1)
    last = last_measured(is_measured)
    is_after = (np.arange(count) >= last[:, None]) & is_seen[:, None]
    until_budget = np.where(
        is_after, _slopes_of(mode.own + mode.shared[:, None]) * octave.spans[:count], 0.0
    )
    levels = log_losses[np.arange(len(last)), last] - until_budget.sum(2)  # g n, at the budget
    known = levels[:, is_seen]
    means = np.where(is_seen, levels, known.mean(1, keepdims=True)) - falls.sum(2)

    slope = until_budget
    slope[..., -1] += (falls * decay[:, None]).sum(2)
    own = (slope * chain.solve(mode.curvature, slope)[0]).sum(2)
    ahead = np.einsum("gnf,gfe,gne->gn", falls, fresh, falls)
    apart = falls - falls.mean(1, keepdims=True)
    together = np.einsum("gnf,fe,gne->gn", apart, shared_left, apart)
    unseen = np.where(is_seen, 0.0, known.var(1, keepdims=True) + 1e-4)
    left = octave.spans[count:].sum() + np.where(is_after, octave.spans[:count], 0.0).sum(1)
    measured = noise[:, None] ** 2 * np.minimum(left, 1.0)  # a loss at the target is the loss
    return means, own + ahead + together + measured + unseen
