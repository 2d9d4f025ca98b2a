r"""Scaling laws of fine-tuning: test loss (nats per token) against training-set size.

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


# parameter -> its unit; L is a loss in nats per token, D a number of examples
UNITS = {
    "A": "L^(1/alpha) N^alpha_N",
    "B": "L D^beta",
    "beta": "1",
    "E": "nats per token",
    "D_l": "D^beta",
    "F": "D^beta",
    "scale": "D^beta / outputs^2",
    "alpha": "1",
    "alpha_N": "1",
    "alpha_D": "1",
    "t": "optimizer steps",
}


def power_law(size: Sizes, *, B: float, beta: float, E: float) -> Float[Array, "*sizes"]:
    r"""Eq 2 with :math:`\alpha = 1`: :math:`L(D) = B / D^{\beta} + E`.

    Args:
        size: training examples, any shape; infinite loss at 0.
        B: loss scale, loss times :math:`D^{\beta}`.
        beta: decay exponent.
        E: loss at infinite data, nats per token.

    Returns:
        Test losses, the shape of ``size``.

    Example:
        >>> float(power_law(np.array(4.0), B=2.0, beta=0.5, E=1.0))
        2.0
    """
    return B / jnp.asarray(size) ** beta + E


def vanilla_law(
    size: Sizes, *, B: float, beta: float, E: float, alpha: float
) -> Float[Array, "*sizes"]:
    r"""Eq 2: :math:`L(D) = (B / D^{\beta} + E)^{\alpha}`.

    Args:
        size: training examples, any shape; infinite loss at 0.
        B: scale of the decaying term.
        beta: decay exponent inside the bracket.
        E: floor inside the bracket; the loss at infinite data is :math:`E^{\alpha}`.
        alpha: outer exponent.

    Returns:
        Test losses, the shape of ``size``.

    Example:
        >>> float(vanilla_law(np.array(4.0), B=2.0, beta=0.5, E=1.0, alpha=2.0))
        4.0
    """
    return jnp.asarray(power_law(size, B=B, beta=beta, E=E)) ** alpha


def lensllm_law(
    size: Sizes, ntk_loss: Sizes | float, *, B: float, beta: float, E: float
) -> Float[Array, "*sizes"]:
    r"""Eq 10: :math:`L(D) = B / (F(\Theta, t) + D^{\beta}) + E`.

    Args:
        size: training examples, any shape.
        ntk_loss: F, one number for all sizes (t free) or one a size (t observed).
        B: loss scale, loss times :math:`D^{\beta}`.
        beta: learning difficulty.
        E: loss at infinite data, nats per token.

    Returns:
        Test losses, the shape of ``size``.

    Example:
        >>> float(lensllm_law(np.array(4.0), 3.0, B=10.0, beta=0.5, E=1.0))
        3.0
    """
    return B / (jnp.asarray(ntk_loss) + jnp.asarray(size) ** beta) + E


def rectified_law(
    size: Sizes, *, B: float, D_l: float, beta: float, E: float
) -> Float[Array, "*sizes"]:
    r"""The rectified law :math:`L(D) = B / (D_l + D^{\beta}) + E`.

    Args:
        size: training examples, any shape.
        B: loss scale, loss times :math:`D^{\beta}`.
        D_l: what pretraining is worth, in units of :math:`D^{\beta}`.
        beta: learning difficulty.
        E: loss at infinite data, nats per token.

    Returns:
        Test losses, the shape of ``size``.

    Example:
        >>> float(rectified_law(np.array(0.0), B=6.0, D_l=3.0, beta=0.5, E=1.0))
        3.0
    """
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
    r"""Eq 1: :math:`L(N, D) = (A / N^{\alpha_N} + B / D^{\alpha_D})^{\alpha}`.

    Args:
        num_params: model sizes N, parameters.
        size: training examples D, the shape of ``num_params``.
        A: scale of the model-size term.
        B: scale of the data term.
        alpha_N: exponent of the model size.
        alpha_D: exponent of the data.
        alpha: outer exponent.

    Returns:
        Test losses, the shape of ``size``.

    Example:
        >>> float(kaplan_law(np.array(4.0), np.array(4.0), A=2.0, B=1.0, alpha_N=0.5,
        ...                  alpha_D=0.5, alpha=2.0))
        2.25
    """
    model_term = A / jnp.asarray(num_params) ** alpha_N
    return (model_term + B / jnp.asarray(size) ** alpha_D) ** alpha


def log_loss(
    theta: Float[Array, "5"],
    log_size: Float[Array, ""],
    log_reference: Float[Array, ""],
    log_offset: Float[Array, ""],
    log_offset_reference: Float[Array, ""],
) -> Float[Array, ""]:
    r"""Logarithm of every law in one size, for one example size, in the LSE form of the objective.

    .. math::
        \log L(D) = \alpha\,\mathrm{LSE}(\log B - \log(F + D^{\beta}),\ \log E),
        \qquad \log F = \delta + o .

    B enters through :math:`a = \log B - \log(F + D_{ref}^{\beta})`, the logarithm of the
    reducible loss at a reference size, because B alone and beta trade against each other
    over tens of orders of magnitude.  E is kept linear, so that E = 0 is an ordinary bound.

    Args:
        theta: :math:`(a, \delta, \beta, E, \alpha)`.
        log_size: :math:`\log D`; minus infinity at D = 0, where :math:`D^{\beta}` vanishes.
        log_reference: :math:`\log D_{ref}`.
        log_offset: o at this size: the logarithm of a measured F, or 0.
        log_offset_reference: o at the reference size.

    Returns:
        The logarithm of the test loss.

    Example:
        >>> theta = jnp.array([0.0, -30.0, 0.5, 1.0, 1.0])
        >>> zero = jnp.array(0.0)
        >>> float(jnp.exp(log_loss(theta, jnp.log(4.0), zero, zero, zero)))
        1.5
    """
    a, delta, beta, E, alpha = theta
    denominator = _log_denominator(delta + log_offset, beta, log_size)
    reference = _log_denominator(delta + log_offset_reference, beta, log_reference)
    return alpha * jnp.log(jnp.exp(a + reference - denominator) + E)


def log_loss_gradient(
    theta: Float[Array, "5"],
    log_size: Float[Array, ""],
    log_reference: Float[Array, ""],
    log_offset: Float[Array, ""],
    log_offset_reference: Float[Array, ""],
) -> tuple[Float[Array, ""], Float[Array, "5"]]:
    r"""``log_loss`` with its derivative in theta, by hand because this is the inner loop.

    With :math:`m = e^{a + d_{ref} - d} + E`, u its first term and
    :math:`\sigma = F / (F + D^{\beta})`,

    .. math:: \nabla \log L = \alpha \Big(\tfrac{u}{m},\
        \tfrac{u}{m}(\sigma_{ref} - \sigma),\
        \tfrac{u}{m}\big((1 - \sigma_{ref}) x_{ref} - (1 - \sigma) x\big),\
        \tfrac1m,\ \tfrac{\log m}{\alpha}\Big).

    Args:
        theta: as :func:`log_loss`, and so are the others.
        log_size: x.
        log_reference: :math:`x_{ref}`.
        log_offset: o at this size.
        log_offset_reference: o at the reference size.

    Returns:
        The log loss and its gradient, (5,).
    """
    a, delta, beta, E, alpha = theta
    no_data = jnp.isneginf(log_size)
    x = jnp.where(no_data, 0.0, log_size)
    log_f, log_f_reference = delta + log_offset, delta + log_offset_reference
    denominator = _log_denominator(log_f, beta, log_size)
    reference = _log_denominator(log_f_reference, beta, log_reference)
    share, share_reference = jnp.exp(log_f - denominator), jnp.exp(log_f_reference - reference)
    u = jnp.exp(a + reference - denominator)
    inside = u + E
    log_inside = jnp.log(inside)
    pull = alpha * u / inside
    by_beta = (1.0 - share_reference) * log_reference - (1.0 - share) * x
    by_theta = [pull, pull * (share_reference - share), pull * by_beta, alpha / inside, log_inside]
    return alpha * log_inside, jnp.stack(by_theta)


def _log_denominator(log_f, beta, log_size):
    """log(F + D^beta); the double where keeps the derivative finite at D = 0."""
    no_data = jnp.isneginf(log_size)
    safe = jnp.where(no_data, 0.0, log_size)
    return jnp.where(no_data, log_f, jnp.logaddexp(log_f, beta * safe))
