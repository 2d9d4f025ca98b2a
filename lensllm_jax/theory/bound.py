r"""Theorem 2: the PAC-Bayes bound on the loss after fine-tuning, term by term.

For any :math:`\epsilon \in (0, 1)`, with probability at least :math:`1 - \delta`,

.. math:: L(f_{\hat w}) \le
    \underbrace{(1+\epsilon) \hat L(f_{\hat w})}_{empirical} +
    \underbrace{\frac{(1+\epsilon)\sqrt C \sum_i \sqrt{h_i}}{\sqrt n}}_{curvature} +
    \underbrace{\frac{(1+\epsilon)^2 C \log(1/\delta)}{2 \epsilon n}}_{confidence} +
    \underbrace{K n^{-3/4}}_{remainder},

:math:`h_i = \max_{(x,y)} v_i^\top H_i^+ v_i` (``hessian.py``), C a bound of the loss, n training
examples, :math:`\hat L` the *training* loss.  The confidence term is smaller than the remainder's
order and is usually hidden in it; here it stands alone.  K is not known: the proof only says that
it does not grow with n.  Without it the sum of the other terms is *not* a bound, and ``total``
says so by being None.

The bound is Eq 14 at the best covariance: with :math:`\beta = 1/(1+\epsilon)`,
:math:`a = (1-\beta)/\beta` and :math:`b = C / (4 \beta (1-\beta) n)`,

.. math:: \inf_{\Sigma \succ 0} a \langle \Sigma, H \rangle + b\, v^\top \Sigma^{-1} v
    = 2 \sqrt{a b} \sqrt{v^\top H v}.

The infimum is not attained: the best :math:`\Sigma` has rank one.

Example:
    >>> bound = theorem_2(1.2, np.array([0.04, 0.09]), num_examples=10_000, epsilon=0.1,
    ...                   loss_bound=4.0)
    >>> round(bound.empirical, 4), round(bound.curvature, 4), round(bound.confidence, 4)
    (1.32, 0.011, 0.0111)
    >>> bound.total is None
    True
"""

import dataclasses
import math

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.theory.kl import Covariance, Vector, check_covariance

Matrix = Float[np.ndarray, "d d"]
ORDER = 0.75  # of the remainder in 1 / n


@dataclasses.dataclass(frozen=True)
class Theorem2:
    """Every term of the bound, in the unit of the loss."""

    empirical: float  # (1 + epsilon) times the training loss
    curvature: float  # (1 + epsilon) sqrt(C / n) times the sum of sqrt(h_i)
    confidence: float  # what 1 - delta costs
    remainder: float | None  # K n^(-3/4); None where K is not known

    @property
    def known(self) -> float:
        """Sum of the terms that do not need K; a bound only up to the remainder."""
        return self.empirical + self.curvature + self.confidence

    @property
    def total(self) -> float | None:
        """The bound; None where K is not known."""
        return None if self.remainder is None else self.known + self.remainder


def theorem_2(
    training_loss: float,
    h: Float[np.ndarray, " l"],
    *,
    num_examples: int,
    epsilon: float,
    loss_bound: float = math.inf,
    delta: float = 0.01,
    remainder_constant: float | None = None,
) -> Theorem2:
    """The terms of Theorem 2.

    Args:
        training_loss: mean over the training examples, between 0 and ``loss_bound``.
        h: one curvature form per weight tensor, not negative.
        num_examples: n.
        epsilon: in (0, 1).
        loss_bound: C; cross entropy has none of its own, so without one there is no bound.
        delta: 1 - the probability; the paper has 0.01.
        remainder_constant: K, if one is assumed.

    Raises:
        UserError: where a condition of these does not hold.
    """
    share("epsilon", epsilon)
    share("delta", delta)
    _check_loss_bound(loss_bound, training_loss)
    checks.positive("num_examples", num_examples)
    checks.finite("h", h)
    if np.any(h < 0):
        raise checks.UserError(
            f"`h` must not be negative, got {h.min()}: use the positive part of the Hessian"
        )
    scale = 1.0 + epsilon
    if remainder_constant is not None:
        checks.not_negative("remainder_constant", remainder_constant)
    return Theorem2(
        empirical=scale * training_loss,
        curvature=scale * math.sqrt(loss_bound / num_examples) * float(np.sqrt(h).sum()),
        confidence=scale**2 * loss_bound * math.log(1 / delta) / (2 * epsilon * num_examples),
        remainder=None if remainder_constant is None else remainder_constant * num_examples**-ORDER,
    )


def share(name: str, value: float) -> float:
    """``value``, if it lies strictly between 0 and 1."""
    if not 0.0 < value < 1.0:
        raise checks.UserError(f"`{name}` must lie between 0 and 1, got {value}")
    return value


def _check_loss_bound(loss_bound: float, largest_loss: float) -> float:
    """``loss_bound``, if it is finite and bounds the losses seen."""
    if not (math.isfinite(loss_bound) and loss_bound > 0):
        raise checks.UserError(
            f"`loss_bound` must be positive and finite, got {loss_bound}: the theorem needs a "
            "bounded loss; clip the loss, or pass the largest one that was seen and say so"
        )
    if not 0.0 <= largest_loss <= loss_bound:
        raise checks.UserError(
            f"`loss_bound` must be at least the loss seen ({largest_loss}, which must not be "
            f"negative), got {loss_bound}"
        )
    return loss_bound


def noise_stability(
    covariance: Covariance, hessian: Matrix, *, constant: float, taylor: bool = False
) -> tuple[float, float]:
    r"""How much the expected loss rises under weight noise: Ju et al. 2022, Lemma 2.3.

    .. math:: E_{Z \sim N(w, \Sigma)} \ell(Z) - \ell(w) \le
        \langle \Sigma, H \rangle + C_1 \|\Sigma\|_F^{3/2}

    Both terms, in the unit of the loss; ``constant`` is C_1, from the Lipschitz constants of the
    second derivatives.  ``taylor`` halves the first, as Taylor's formula but not the lemma does.
    """
    check_covariance(covariance, len(hessian))
    # an isotropic covariance has the variance d times on its diagonal
    times = math.sqrt(len(hessian)) if covariance.ndim == 0 else 1.0
    norm = times * float(np.linalg.norm(covariance))
    first = _inner_product(covariance, hessian) * (0.5 if taylor else 1.0)
    return first, constant * norm**1.5


def _inner_product(covariance: Covariance, hessian: Matrix) -> float:
    """<Sigma, H> for a full, diagonal or isotropic covariance."""
    if covariance.ndim == 2:
        return float(np.sum(covariance * hessian))
    return float(np.sum(covariance * np.diag(hessian)))


def eq_14(
    training_loss: float,
    inner: float,
    kl: float,
    *,
    num_examples: int,
    epsilon: float,
    loss_bound: float,
    delta: float = 0.01,
) -> Float[np.ndarray, "3"]:
    r"""The bound's three terms before the covariance is chosen, without its remainder (Eq 14).

    .. math:: \tfrac1\beta \hat L + \tfrac{1-\beta}\beta \sum_i \langle \Sigma_i, H_i \rangle +
        \frac{C (\mathrm{KL} + \log(1/\delta))}{2 \beta (1-\beta) n}, \quad
        \beta = \frac1{1+\epsilon}

    ``inner`` is the sum of the inner products, ``kl`` Eq 11 at the same covariances.
    """
    beta = 1.0 / (1.0 + share("epsilon", epsilon))
    share("delta", delta)
    _check_loss_bound(loss_bound, training_loss)
    price = loss_bound * (kl + math.log(1 / delta)) / (2 * beta * (1 - beta) * num_examples)
    return np.array([training_loss / beta, (1 - beta) / beta * inner, price])


def weights_of_eq_14(
    *, num_examples: int, epsilon: float, loss_bound: float
) -> tuple[float, float]:
    """The weights a and b of the objective that the best covariance minimises."""
    beta = 1.0 / (1.0 + epsilon)
    return (1 - beta) / beta, loss_bound / (4 * beta * (1 - beta) * num_examples)


def optimal_covariance(
    displacement: Vector, hessian: Matrix, *, a: float, b: float, ridge: float = 1e-3
) -> tuple[Matrix, float]:
    r"""A covariance within reach of the infimum of Eq 14's objective, and that infimum.

    With :math:`u = H^{1/2} v` it is approached by
    :math:`\Sigma = \sqrt{b/a}\, H^{-1/2} (u u^\top / |u| + \rho |u| I) H^{-1/2}` as the ridge
    :math:`\rho \to 0`; the value there is :math:`\sqrt{ab}\, |u| (2 + \rho d - \rho/(1 + \rho))`.

    Raises:
        UserError: if the Hessian is not positive definite, or the displacement is zero.
    """
    check_covariance(hessian, len(displacement))
    values, vectors = np.linalg.eigh(hessian)
    u = (vectors * np.sqrt(values)) @ (vectors.T @ displacement)
    length = float(np.linalg.norm(u))
    if length == 0:
        raise checks.UserError("`displacement` must not be zero, got zeros: no weight moved")
    inverse = (vectors / np.sqrt(values)) @ vectors.T
    middle = np.outer(u, u) / length + ridge * length * np.eye(len(u))
    covariance = math.sqrt(b / a) * inverse @ middle @ inverse
    return 0.5 * (covariance + covariance.T), 2.0 * math.sqrt(a * b) * length
