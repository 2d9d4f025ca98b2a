r"""Kernel velocity: how far, and how fast, the kernel moves while a model is fine-tuned.

The NTK loss assumes a constant kernel.  Two numbers compare the kernels :math:`\Theta_0` and
:math:`\Theta_t` of the same examples, with the Frobenius norm and inner product over all entries:

.. math:: \rho = \frac{\|\Theta_t - \Theta_0\|}{\|\Theta_0\|}, \qquad
          A = \frac{\langle \Theta_t, \Theta_0 \rangle}{\|\Theta_t\| \, \|\Theta_0\|} .

:math:`\rho` sees growth; the alignment :math:`A` sees change of direction alone.  The velocity is
the kernel distance :math:`1 - A` of two states over the steps between them (Fort et al. 2020,
arXiv 2010.15110, section 3).  Centred alignment is A of :math:`H \Theta H` with
:math:`H = I - 1 1^\top / n`, which leaves out what the gradients of all examples have in common
(Cortes et al. 2012, arXiv 1203.0550).

Example:
    >>> import numpy as np
    >>> theta = np.diag([1.0, 2.0])
    >>> relative_change(3 * theta, theta), kernel_alignment(3 * theta, theta)  # growth alone
    (2.0, 1.0)
"""

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.ntk.gram import NtkMethod, empirical_ntk
from lensllm_jax.ntk.loss import Steps, flat_kernel
from lensllm_jax.typing import ApplyFn, Array, Params


class KernelVelocity(NamedTuple):
    """How the kernel moved over s + 1 states of the parameters, the first at ``steps[0]``."""

    steps: Float[np.ndarray, " s1"]  # optimizer steps at which each state was taken
    relative_change: Float[np.ndarray, " s1"]  # ρ against the first state; 0 there
    alignment: Float[np.ndarray, " s1"]  # A against the first state; 1 there
    centred_alignment: Float[np.ndarray, " s1"]  # the same after centring; 1 there
    velocity: Float[np.ndarray, " s"]  # (1 - A) of neighbouring states, per step between them


def relative_change(theta: Array, theta_0: Array) -> float:
    r""":math:`\rho`, zero or above, of two kernels (n, m) or (n, m, k, k).

    Raises:
        UserError: if the shapes differ, an entry is not finite, or ``theta_0`` is zero.
    """
    later, earlier = _pair(theta, theta_0)
    return float(np.linalg.norm(later - earlier) / np.linalg.norm(earlier))


def kernel_alignment(theta: Array, theta_0: Array, *, centred: bool = False) -> float:
    r""":math:`A`, from -1 to 1, of two kernels (n, m) or (n, m, k, k).

    ``centred`` removes the mean of the features over examples, of each output.

    Raises:
        UserError: if the shapes differ, an entry is not finite, or a kernel is zero (or, to
            be centred, has equal rows).
    """
    later, earlier = _pair(*(_centred(theta), _centred(theta_0)) if centred else (theta, theta_0))
    norms = np.linalg.norm(later) * np.linalg.norm(earlier)
    return float(np.clip(np.sum(later * earlier) / norms, -1.0, 1.0))


def kernel_velocity(
    f: ApplyFn,
    params_sequence: Iterable[Params],
    x: Any,
    *,
    steps: Steps,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    block_size: int | None = None,
) -> KernelVelocity:
    """How the kernel of ``f`` moves over the states that training went through.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).
        params_sequence: two or more states, in order; a generator may load one at a time, since
            only three kernels are in memory.
        x: the examples, the same at every state.
        steps: the optimizer step of each state, ascending.
        method: as for ``empirical_ntk``.
        block_size: as for ``empirical_ntk``.

    Returns:
        Change since the first state, and velocity between neighbours.

    Raises:
        UserError: if steps do not ascend or do not fit the states; and as ``empirical_ntk``.

    Example:
        >>> f = lambda w, x: w * w * x  # df/dw = 2 w x
        >>> import jax.numpy as jnp
        >>> moved = kernel_velocity(
        ...     f, [jnp.float32(1.0), jnp.float32(2.0)], jnp.arange(3.0), steps=[0, 10])
        >>> moved.relative_change.tolist(), moved.alignment.tolist()
        ([0.0, 3.0], [1.0, 1.0])
    """
    times = checks.finite("steps", checks.real("steps", steps))
    if times.ndim != 1 or len(times) < 2 or np.any(np.diff(times) <= 0):
        raise checks.UserError(f"`steps` must be two or more ascending numbers, got {steps}")
    first = previous = None
    against_first: list[tuple[float, float, float]] = []
    distances: list[float] = []
    for params in params_sequence:
        theta = empirical_ntk(f, params, x, method=method, block_size=block_size)
        if first is None or previous is None:
            first = theta
        else:
            distances.append(1.0 - kernel_alignment(theta, previous))
        against_first.append(
            (
                relative_change(theta, first),
                kernel_alignment(theta, first),
                kernel_alignment(theta, first, centred=True),
            )
        )
        previous = theta
    if len(against_first) != len(times):
        raise checks.UserError(
            f"`params_sequence` must hold one state for each of the {len(times)} `steps`, got "
            f"{len(against_first)}"
        )
    change, alignment, centred = np.array(against_first).T
    velocity = np.array(distances) / np.diff(times)
    return KernelVelocity(times, change, alignment, centred, velocity)


def _pair(theta: Array, theta_0: Array) -> tuple[np.ndarray, np.ndarray]:
    """Both in float64, of one shape, neither of them zero."""
    later, earlier = (
        checks.finite(name, checks.real(name, kernel).astype(np.float64))
        for name, kernel in (("theta", theta), ("theta_0", theta_0))
    )
    checks.shape("theta", later, earlier.shape)
    for name, kernel in (("theta", later), ("theta_0", earlier)):
        if not np.any(kernel):
            raise checks.UserError(f"`{name}` must not be zero, got a kernel without direction")
    return later, earlier


def _centred(theta: Array) -> np.ndarray:
    """H Θ H, rows and columns of each pair of outputs on their own; 0 where rounding is all."""
    kernel = np.asarray(theta, np.float64)
    flat_kernel(kernel)  # its check of the number of axes
    by_row = kernel - kernel.mean(axis=0, keepdims=True)
    centred = by_row - by_row.mean(axis=1, keepdims=True)
    rounding = 10 * float(np.finfo(np.asarray(theta).dtype).eps) * np.abs(kernel).max()
    return centred if np.abs(centred).max() > rounding else np.zeros_like(centred)
