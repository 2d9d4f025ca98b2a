r"""The five numbers in which every law is fitted, and the box that each law confines them to.

With :math:`x = \log D` and an offset o, the logarithm of a measured F or 0,

.. math:: \log L = \alpha \log\big(e^{a + d_{ref} - d} + E\big), \qquad
    d = \log(e^{\delta + o} + D^{\beta}) .

:math:`e^\delta` is :math:`D_l`, F, or the factor before a measured F.  B enters through
:math:`a = \log B - d_{ref}`, the logarithm of the reducible loss at a reference size, because B
alone and beta trade against each other over tens of orders of magnitude.  E is kept linear, so that
E = 0 is an ordinary bound.  A law is a box of :math:`\theta = (a, \delta, \beta, E, \alpha)`: the
parameters that it does not have are fixed.

Example:
    >>> import numpy as np
    >>> theta = Theta(a=0.0, delta=-30.0, beta=0.5, E=1.0, alpha=1.0)
    >>> np.exp(log_losses(theta.stack()[None], np.array([4.0]), np.ones(1)))  # 1 / 4^0.5 + 1
    array([[1.5]])
"""

from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

MIN_LOG_F = -30.0  # exp(-30) next to D^beta >= 1: no pre-power phase at all
NO_F = -700.0  # log F of the laws without F; exp(-700) is 0 next to any D^beta
MAX_LOG_F = 300.0
LOG_SCALE_BOUNDS = (-60.0, 30.0)
BETA_BOUNDS = (1e-4, 20.0)
ALPHA_BOUNDS = (0.02, 50.0)


class Theta(NamedTuple):
    """theta by name: numbers, or arrays of one shape.  As an array it is the last axis."""

    a: Any  # log of the reducible loss at the reference size
    delta: Any  # log of D_l, of F, or of the factor before a measured F
    beta: Any  # exponent
    E: Any  # floor
    alpha: Any  # outer exponent

    def stack(self) -> Float[np.ndarray, "... 5"]:
        """As one float64 array."""
        return np.stack(np.broadcast_arrays(*self), axis=-1).astype(np.float64)


NUM_THETA = len(Theta._fields)


class Box(NamedTuple):
    """Bounds of theta; equal where a law has no such parameter, or it is fixed."""

    lower: Theta  # each field (num_curves,)
    upper: Theta

    @property
    def free(self) -> Theta:
        """Which parameters are free, each field (num_curves,)."""
        return Theta(*(low < high for low, high in zip(self.lower, self.upper, strict=True)))


def log_loss(
    theta: Float[Array, "5"],
    log_size: Float[Array, ""],
    log_reference: Float[Array, ""],
    log_offset: Float[Array, ""],
    log_offset_reference: Float[Array, ""],
) -> Float[Array, ""]:
    """Logarithm of the test loss at one size.

    Args:
        theta: the parameters.
        log_size: x; minus infinity at D = 0, where the power of D vanishes.
        log_reference: x of the reference size.
        log_offset: o at this size.
        log_offset_reference: o at the reference size.
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
    r"""``log_loss`` and its derivative in theta, by hand because this is the inner loop.

    With :math:`m = u + E`, :math:`u = e^{a + d_{ref} - d}`, and the share
    :math:`\sigma = e^{\delta + o - d}` of F in the denominator,

    .. math:: \nabla \log L = \alpha \Big(\tfrac{u}{m},\
        \tfrac{u}{m}(\sigma_{ref} - \sigma),\
        \tfrac{u}{m}\big((1 - \sigma_{ref}) x_{ref} - (1 - \sigma) x\big),\
        \tfrac1m,\ \tfrac{\log m}{\alpha}\Big).
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


def log_losses(
    theta: Float[np.ndarray, "num_curves 5"],
    sizes: Float[np.ndarray, " num_sizes"],
    reference: Float[np.ndarray, " num_curves"],
    *,
    ntk_loss: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    ntk_loss_reference: Float[np.ndarray, " num_curves"] | None = None,
) -> Float[np.ndarray, "num_curves num_sizes"]:
    """``log_loss`` of many curves in numpy; a measured F at ``sizes`` and at ``reference``."""
    a, delta, beta, E, alpha = (column[:, None] for column in theta.T)
    offset = 0.0 if ntk_loss is None else np.log(ntk_loss)
    offset_reference = 0.0 if ntk_loss_reference is None else np.log(ntk_loss_reference)[:, None]
    with np.errstate(divide="ignore", over="ignore", invalid="ignore"):  # NaN: no fit; inf: too big
        denominator = np.logaddexp(delta + offset, beta * np.log(np.asarray(sizes, float))[None])
        top = np.logaddexp(delta + offset_reference, beta * np.log(reference)[:, None])
        return alpha * np.log(np.exp(a + top - denominator) + E)
