r"""KL divergence of the fine-tuned posterior from the pretrained prior (Eq 11 and 12).

Prior :math:`P = N(\hat W^{(s)}, \Sigma)` at the pretrained weights, posterior
:math:`Q = N(\hat W, \Sigma)` at the fine-tuned ones, the same covariance, block-diagonal over
weight tensors.  With :math:`v_i = \mathrm{vec}(\hat W_i - \hat W_i^{(s)})`,

.. math:: \mathrm{KL}(Q \| P) = \tfrac12 \sum_i v_i^\top \Sigma_i^{-1} v_i \quad (11), \qquad
    \Sigma_i = \sigma_i^2 I: \ \mathrm{KL} = \sum_i \frac{\|v_i\|^2}{2 \sigma_i^2} \quad (12).

A covariance is full (a matrix), diagonal (a vector of variances) or isotropic (one variance):
the rank of the array says which.

Example:
    >>> v = np.array([3.0, 4.0])
    >>> gaussian_kl(v, np.array(0.5)), gaussian_kl(v, np.array([0.5, 1.0]))
    (25.0, 17.0)
    >>> gaussian_kl(v, np.diag([0.5, 1.0]))
    17.0
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
from jaxtyping import Float

from lensllm_jax import checks

Vector = Float[np.ndarray, " d"]
Covariance = Float[np.ndarray, "..."]  # (d, d), (d,) or (): check_covariance looks


def check_covariance(covariance: Covariance, dimension: int) -> Covariance:
    """``covariance`` (full, diagonal or isotropic) of a tensor of ``dimension`` weights.

    Raises:
        UserError: if its shape does not fit, or it is not finite, symmetric and positive definite.
    """
    checks.shape("covariance", covariance, (dimension,) * min(covariance.ndim, 2))
    checks.finite("covariance", covariance)
    if covariance.ndim < 2:
        if np.any(covariance <= 0):
            raise checks.UserError(f"`covariance` must be positive, got {covariance.min()}")
        return covariance
    if not np.allclose(covariance, covariance.T, rtol=1e-10, atol=0.0):
        raise checks.UserError("`covariance` must be symmetric, got an asymmetric matrix")
    smallest = float(np.linalg.eigvalsh(covariance)[0])
    if smallest <= 0:
        raise checks.UserError(
            f"`covariance` must be positive definite, got smallest eigenvalue {smallest:.3g}; "
            "add a ridge"
        )
    return covariance


def gaussian_kl(displacement: Vector, covariance: Covariance) -> float:
    """One summand of Eq 11 (or, for one variance, of Eq 12), in nats.

    Raises:
        UserError: for a covariance that is not positive definite, or of another size.
    """
    checks.finite("displacement", displacement)
    check_covariance(covariance, len(displacement))
    if covariance.ndim < 2:
        return 0.5 * float(np.sum(displacement**2 / covariance))
    factor = scipy.linalg.cho_factor(covariance, lower=True)
    return 0.5 * float(displacement @ scipy.linalg.cho_solve(factor, displacement))


def block_kl(
    displacements: Sequence[Float[np.ndarray, " _"]], covariances: Sequence[Covariance]
) -> float:
    """Eq 11: the sum over weight tensors, one displacement and covariance each, in nats.

    Raises:
        UserError: if the two differ in number, or a covariance does not fit.
    """
    if len(displacements) != len(covariances):
        raise checks.UserError(
            f"`covariances` must be one per weight tensor ({len(displacements)}), "
            f"got {len(covariances)}"
        )
    return sum(gaussian_kl(v, s) for v, s in zip(displacements, covariances, strict=True))
