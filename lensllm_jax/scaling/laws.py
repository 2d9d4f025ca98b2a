r"""Scaling laws of fine-tuning: test loss (nats per byte) against training-set size.

.. math::
    \text{power (Eq 2, } \alpha = 1) \quad & L(D) = B / D^{\beta} + E \\
    \text{vanilla (Eq 2)} \quad & L(D) = (B / D^{\beta} + E)^{\alpha} \\
    \text{rectified} \quad & L(D) = B / (D_l + D^{\beta}) + E \\
    \text{LensLLM (Eq 10)} \quad & L(D) = B / (F(\Theta, t) + D^{\beta}) + E \\
    \text{Kaplan (Eq 1)} \quad & L(N, D) = (A / N^{\alpha_N} + B / D^{\alpha_D})^{\alpha}

``D`` counts examples, ``N`` parameters.  ``E`` is the loss at infinite data (for ``vanilla``
to the power alpha), ``beta`` the learning difficulty, and ``D_l`` the data equivalent of
pretraining in units of :math:`D^{\beta}`; the slope turns at :math:`D^* = D_l^{1/\beta}`.
Eq 10 is LensLLM's (arXiv 2505.03793), with :math:`F(\Theta, t)` the kernel loss of Eq 9;
the rectified law is Lin et al. 2024 (arXiv 2402.02314).

**With one free t for all sizes, Eq 10 is the rectified law with the bound**
:math:`D_l \le \|f_0 - y\|^2`: F enters as one number, and t only names it.  So it cannot fit
better in sample.  Only a t, hence an F, that differs from size to size is another law.

Example:
    >>> import numpy as np
    >>> sizes = np.array([0.0, 100.0, 10000.0])
    >>> [round(float(x), 4) for x in rectified_law(sizes, B=30.0, D_l=10.0, beta=0.5, E=1.0)]
    [4.0, 2.5, 1.2727]
"""

import enum

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

Sizes = Float[Array, "*sizes"] | Float[np.ndarray, "*sizes"]


class Law(enum.Enum):
    """The laws in one training-set size; the value is the name used at flags."""

    POWER = "power"
    VANILLA = "vanilla"
    RECTIFIED = "rectified"
    LENSLLM = "lensllm"

    @property
    def parameters(self) -> tuple[str, ...]:
        """The names of its free parameters; F is fixed where it is measured."""
        extra = {Law.VANILLA: ("alpha",), Law.RECTIFIED: ("D_l",), Law.LENSLLM: ("F",)}
        return ("B", "beta", "E", *extra.get(self, ()))


# parameter -> its unit; L is the unit of the losses (nats per byte), D a number of examples
UNITS = {
    "A": "L^(1/alpha) N^alpha_N",
    "B": "L D^beta",
    "beta": "1",
    "E": "L",
    "D_l": "D^beta",
    "F": "D^beta",
    "scale": "D^beta / outputs^2",
    "alpha": "1",
    "alpha_N": "1",
    "alpha_D": "1",
    "t": "optimizer steps",
}


def power_law(size: Sizes, *, B: float, beta: float, E: float) -> Float[Array, "*sizes"]:
    r"""Eq 2 with :math:`\alpha = 1`; infinite at D = 0."""
    return B / jnp.asarray(size) ** beta + E


def vanilla_law(
    size: Sizes, *, B: float, beta: float, E: float, alpha: float
) -> Float[Array, "*sizes"]:
    r"""Eq 2; infinite at D = 0, and :math:`E^{\alpha}` at infinite data."""
    return jnp.asarray(power_law(size, B=B, beta=beta, E=E)) ** alpha


def lensllm_law(
    size: Sizes, ntk_loss: Sizes | float, *, B: float, beta: float, E: float
) -> Float[Array, "*sizes"]:
    """Eq 10; F is one number for all sizes (t free) or one per size (t observed)."""
    return B / (jnp.asarray(ntk_loss) + jnp.asarray(size) ** beta) + E


def rectified_law(
    size: Sizes, *, B: float, D_l: float, beta: float, E: float
) -> Float[Array, "*sizes"]:
    """Eq 10 with a constant for F."""
    return lensllm_law(size, D_l, B=B, beta=beta, E=E)


def kaplan_law(
    num_params: Sizes,
    size: Sizes,
    *,
    A: float,
    B: float,
    alpha_N: float,
    alpha_D: float,
    alpha: float,
) -> Float[Array, "*sizes"]:
    """Eq 1; ``num_params`` and ``size`` have one shape."""
    model_term = A / jnp.asarray(num_params) ** alpha_N
    return (model_term + B / jnp.asarray(size) ** alpha_D) ** alpha
