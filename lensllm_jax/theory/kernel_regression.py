r"""Kernel regression's learning curve, estimated from the kernel of one sample.

Regression with ridge :math:`\delta` on D samples predicts
:math:`\Theta(x, X) (\Theta + \delta I)^{-1} r`; its error E(D) is the mean square of what it misses
of r on other examples, in the square of r's unit.  Let n samples have the kernel's eigenvalues
:math:`\lambda_j` and :math:`c_j = (u_j^\top r)^2`.  Generalised cross-validation estimates E(n)
(Golub, Heath and Wahba 1979; for neural kernels Wei, Hu and Steinhardt 2022, arXiv 2203.06176):

.. math:: E(n) \approx \frac{\tfrac1n \sum_j c_j / (\lambda_j + \delta)^2}
                            {\big(\tfrac1n \sum_j 1 / (\lambda_j + \delta)\big)^2} .

The replica estimate (Canatar, Bordelon and Pehlevan 2021; as "eigenlearning" Simon et al. 2023,
arXiv 2110.03922) takes the n samples for the population that D are drawn from:

.. math:: E(D) \approx \frac{D}{D - \sum_j L_j^2}\, \frac1n \sum_j (1 - L_j)^2 c_j, \qquad
          L_j = \frac{\lambda_j}{\lambda_j + n \kappa}, \qquad
          \sum_j L_j + \frac{\delta}{\kappa} = D .

It knows no population beyond the n samples, so that it is too low where D nears n.

Example:
    >>> same = NtkSpectrum(np.ones(8), np.full(8, 2.0))  # what is not drawn is not learnt
    >>> cross_validation_error(same), [replica_error(same, d) for d in (2, 4)]
    (2.0, [1.5, 1.0])
"""

import numpy as np
import scipy.optimize
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum

# of the mean eigenvalue: from interpolation to a constant
RIDGES = tuple(10.0**power for power in range(-4, 3))


def cross_validation_error(spectrum: NtkSpectrum, *, ridge: float = 0.0) -> float:
    """E(n) by generalised cross-validation on the n samples of ``spectrum``.

    Raises:
        UserError: if the ridge is negative, or 0 with a kernel that is singular.
    """
    checks.not_negative("ridge", ridge)
    if not (shifted := spectrum.eigenvalues + ridge).min() > 0:
        raise checks.UserError("`ridge` must be above 0 for a singular kernel, got 0")
    missed = np.mean(spectrum.squared_projections / shifted**2)
    return float(missed / np.mean(1.0 / shifted) ** 2)


def replica_error(spectrum: NtkSpectrum, num_samples: int, *, ridge: float = 0.0) -> float:
    """E(D) of ``num_samples`` drawn from those of ``spectrum``, by the replica estimate.

    Raises:
        UserError: if there is no sample, the ridge is negative, or it is 0 and the kernel's rank
            not above ``num_samples``.
    """
    checks.positive("num_samples", num_samples)
    checks.not_negative("ridge", ridge)
    learned = _learnabilities(spectrum.eigenvalues / len(spectrum.eigenvalues), num_samples, ridge)
    missed = np.mean((1.0 - learned) ** 2 * spectrum.squared_projections)
    return float(missed * num_samples / (num_samples - np.sum(learned**2)))


def _learnabilities(values: Float[np.ndarray, " n"], count: int, ridge: float) -> np.ndarray:
    """The L_j, between 0 and 1, of the population's eigenvalues."""
    positive = values[values > 0]
    if ridge == 0.0 and len(positive) <= count:
        raise checks.UserError(
            f"`num_samples` must be below the kernel's rank {len(positive)} where `ridge` is 0, "
            f"got {count}"
        )
    # both are below the root: each keeps one of the two terms
    low = ridge / count
    if len(positive) > count:
        low = max(low, positive.min() * (len(positive) - count) / count)
    high = (positive.sum() + ridge) / count

    def excess(log_kappa: float) -> float:
        kappa = np.exp(log_kappa)
        return np.sum(values / (values + kappa)) + ridge / kappa - count

    ends = np.log(low) - 1e-9, np.log(high) + 1e-9
    return values / (values + np.exp(scipy.optimize.brentq(excess, *ends, xtol=1e-13)))


def holdout_error(
    kernel: Float[np.ndarray, "n n"], residual: Float[np.ndarray, " n"], num_samples: int,
    *, num_test: int, ridge: float,
) -> float:  # fmt: skip
    """Error on the last ``num_test`` samples of the regression on the first ``num_samples``.

    Raises:
        UserError: if the two overlap, or the ridge is not above 0.
    """
    checks.positive("ridge", ridge)
    if not (num_samples > 0 and num_test > 0 and num_samples + num_test <= len(kernel)):
        raise checks.UserError(
            f"`num_samples` and `num_test` must be positive and at most {len(kernel)} together, "
            f"got {num_samples} and {num_test}"
        )
    block = np.asarray(kernel[:num_samples, :num_samples], np.float64)
    weights = np.linalg.solve(block + ridge * np.eye(num_samples), residual[:num_samples])
    missed = residual[-num_test:] - kernel[-num_test:, :num_samples] @ weights
    return float(np.mean(missed**2))


def best_ridge(spectrum: NtkSpectrum) -> float:
    """The member of ``RIDGES``, times the mean eigenvalue, of the least cross-validation error."""
    mean = float(np.mean(spectrum.eigenvalues))
    ridges = [mean * share for share in RIDGES]
    return min(ridges, key=lambda ridge: cross_validation_error(spectrum, ridge=ridge))
