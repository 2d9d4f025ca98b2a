r"""Corollary 1 and Lemmas 2 to 4: quantities that should fall as powers of n.

The corollary says :math:`\sum_i h_i \le C_2 n^{-\beta_2}` (Eq 6), hence by Cauchy and Schwarz
(Proposition 1, :math:`\sum_i \sqrt{h_i} \le \sqrt{l \sum_i h_i}`, Eq 5)

.. math:: L \le (1 + \epsilon) \hat L + C_3 n^{-\beta_3} + O(n^{-3/4}), \qquad
    C_3 = \sqrt{C\, l\, C_2}, \quad \beta_3 = \tfrac12 (\beta_2 + 1) \quad (7).

Both are hypotheses about measurements: here they are fitted, with intervals.  The paper's phases
("first :math:`n^{-3/4}`, later :math:`n^{-\beta_3}`") need :math:`1/2 \le \beta_3 < 3/4`, that is
:math:`0 \le \beta_2 < 1/2`; the two terms then cross at
:math:`n^* = (K / C_3)^{1 / (3/4 - \beta_3)}`.

Example:
    >>> sizes = np.array([100.0, 200.0, 400.0, 800.0])
    >>> decay = fit_decay(sizes, 6.0 * sizes**-0.3)
    >>> round(decay.coefficient, 6), round(decay.exponent, 6)
    (6.0, 0.3)
    >>> corollary_1(decay, loss_bound=4.0, num_blocks=6).consistency.name
    'HOLDS'
"""

import dataclasses
import enum
import math

import numpy as np
import scipy.special
from jaxtyping import Float

from lensllm_jax import checks

_CRITICAL_BETA_2 = 0.5  # above it the power term falls faster than the remainder


@dataclasses.dataclass(frozen=True)
class Decay:
    """A fit of value = coefficient x n^(-exponent), by least squares on logarithms."""

    coefficient: float  # in the unit of the values; extrapolated to n = 1
    exponent: float  # positive where the values fall
    low: float  # lower end of the exponent's interval; minus infinity with two sizes
    high: float  # upper end
    level: float  # coverage of the interval, if log residuals are normal
    log_rmse: float  # root mean squared log residual

    def includes(self, exponent: float) -> bool:
        """Whether the interval holds ``exponent``."""
        return self.low <= exponent <= self.high


def fit_decay(
    sizes: Float[np.ndarray, " m"], values: Float[np.ndarray, " m"], *, level: float = 0.9
) -> Decay:
    """Fits a power of n, with Student's interval from m - 2 degrees of freedom.

    Raises:
        UserError: if a size or value is not positive and finite, or sizes do not differ.
    """
    checks.shape("values", values, sizes.shape)
    for name, array in (("sizes", sizes), ("values", values)):
        if not np.all(np.isfinite(array) & (array > 0)):
            raise checks.UserError(f"`{name}` must be positive and finite, got {array.tolist()}")
    if len(np.unique(sizes)) < 2:
        raise checks.UserError(
            f"`sizes` must hold two or more different ones, got {sizes.tolist()}"
        )
    x, y = np.log(sizes), np.log(values)
    dx = x - x.mean()
    slope = float(dx @ y / (dx @ dx))
    residuals = y - y.mean() - slope * dx
    degrees = len(x) - 2
    half = math.inf
    if degrees > 0:
        error = math.sqrt(float(residuals @ residuals) / degrees / float(dx @ dx))
        half = float(scipy.special.stdtrit(degrees, 0.5 + 0.5 * level)) * error
    return Decay(
        coefficient=float(np.exp(y.mean() - slope * x.mean())),
        exponent=-slope,
        low=-slope - half,
        high=-slope + half,
        level=level,
        log_rmse=float(np.sqrt(np.mean(residuals**2))),
    )


class Consistency(enum.Enum):
    """Whether the paper's order of phases can follow from the bound: 0 <= beta_2 < 1/2."""

    HOLDS = "0 < beta_2 < 1/2: the remainder dominates first, the power term later"
    FAILS = "beta_2 > 1/2: the power term falls faster than the remainder, and never dominates late"
    GROWS = "beta_2 < 0: the sum of h grows with n, so that Eq 6 does not hold"
    UNDECIDED = "the interval of beta_2 holds 0 or 1/2: measure more sizes"

    @classmethod
    def of(cls, beta_2: Decay) -> "Consistency":
        """What the interval of beta_2 allows to say."""
        if beta_2.high < 0:
            return cls.GROWS
        if beta_2.low > _CRITICAL_BETA_2:
            return cls.FAILS
        return cls.HOLDS if beta_2.low > 0 and beta_2.high < _CRITICAL_BETA_2 else cls.UNDECIDED


@dataclasses.dataclass(frozen=True)
class Corollary1:
    """Eq 7's constants."""

    beta_2: float  # exponent of the sum of h
    C_2: float  # its coefficient
    beta_3: float  # exponent of the power term
    C_3: float  # coefficient of the power term, in the unit of the loss
    consistency: Consistency  # of beta_2 with the order of phases
    crossing: float | None  # n*, examples; None where K is not known or they never cross

    def power_term(self, num_examples: float) -> float:
        """C_3 n^(-beta_3), in the unit of the loss."""
        return self.C_3 * num_examples**-self.beta_3


def corollary_1(
    sum_of_h: Decay,
    *,
    loss_bound: float,
    num_blocks: int,
    epsilon: float = 0.0,
    remainder_constant: float | None = None,
) -> Corollary1:
    """Eq 7 from a fitted Eq 6.

    Args:
        sum_of_h: the decay of the sum of h over weight tensors.
        loss_bound: C, positive.
        num_blocks: how many h are summed; the paper writes l, layers, where h_i is one per tensor.
        epsilon: keeps the factor (1 + epsilon) of Theorem 2, which the paper's C_3 lacks.
        remainder_constant: K, if one is assumed.
    """
    checks.positive("loss_bound", loss_bound)
    checks.positive("num_blocks", num_blocks)
    checks.not_negative("epsilon", epsilon)
    scale = (1 + epsilon) * math.sqrt(loss_bound * num_blocks * sum_of_h.coefficient)
    exponent = 0.5 * (sum_of_h.exponent + 1.0)
    crossing = None
    if remainder_constant is not None and exponent != 0.75:
        checks.positive("remainder_constant", remainder_constant)
        log_crossing = math.log(remainder_constant / scale) / (0.75 - exponent)
        crossing = math.exp(log_crossing) if log_crossing < 700 else None
    return Corollary1(
        sum_of_h.exponent,
        sum_of_h.coefficient,
        exponent,
        scale,
        Consistency.of(sum_of_h),
        crossing,
    )


def sum_of_roots_bound(h: Float[np.ndarray, " l"]) -> tuple[float, float]:
    """Both sides of Lemma 1: the sum of sqrt(h_i), and sqrt(l x sum of h).

    Raises:
        UserError: if an h is negative or not finite.
    """
    checks.finite("h", h)
    if np.any(h < 0):
        raise checks.UserError(f"`h` must not be negative, got {h.min()}")
    return float(np.sqrt(h).sum()), math.sqrt(len(h) * float(h.sum()))
