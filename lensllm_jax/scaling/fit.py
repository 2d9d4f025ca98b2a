r"""Fits of a scaling law to measured losses: one curve, or thousands in one compiled call.

The objective is the LSE form in log space, squared by default, Huber on request:

.. math::
    \min_{B, E, \beta, t} \sum_i \rho\big(\mathrm{LSE}(\log B - \log(F(\Theta, t) + D_i^{\beta}),
    \ \log E) - \log L(D_i)\big).

Where F of ``lensllm`` comes from is one argument, ``ntk``: a ``Measured``, a ``Spectrum`` or a
``Bounded`` of ``kernel.py``.  The last two are the rectified law with a bound on D_l: fit
``"rectified"`` as the control.  Computations are in float64 whatever JAX's global setting, and
nothing is random.

Example:
    >>> import numpy as np
    >>> sizes = np.array([0.0, 100.0, 400.0, 1600.0, 6400.0, 25600.0])
    >>> losses = 40.0 / (20.0 + sizes**0.5) + 1.0
    >>> fit = fit_law("rectified", sizes, losses)
    >>> {name: round(value, 3) for name, value in fit.params.items()}
    {'B': 40.0, 'beta': 0.5, 'E': 1.0, 'D_l': 20.0}
"""

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.scaling.kernel import KernelLoss
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.problem import FitProblem
from lensllm_jax.scaling.result import LawFit, LawFits
from lensllm_jax.scaling.solution import solve

SizeVector = Float[np.ndarray, " num_sizes"] | Int[np.ndarray, " num_sizes"]


def fit_law(
    law: str | Law,
    sizes: SizeVector,
    losses: Float[np.ndarray, " num_sizes"],
    *,
    ntk: KernelLoss | None = None,
    weights: Float[np.ndarray, " num_sizes"] | None = None,
    huber_delta: float | None = None,
) -> LawFit:
    r"""Fits one curve.

    Args:
        law: "power", "vanilla", "rectified" or "lensllm".
        sizes: training examples, ascending, 0 allowed; Lin et al.'s code has 1e-10 for 0, with
            which objectives can be compared with theirs, but L(0) is no longer B / D_l + E.
        losses: test losses, nats per byte.
        ntk: for "lensllm": where F comes from; default ``Bounded`` by the largest size.
        weights: of the squared log residuals, 0 leaves a size out; default 1.
        huber_delta: where the loss of a log residual turns linear; default never.

    Returns:
        A :class:`LawFit`: ``params``, ``predict``, ``interval``, ``log_rmse``, ``status``,
        ``message``, ``warnings``.

    Raises:
        UserError: for sizes or losses that no law can mean, naming the entry.

    Example:
        >>> sizes = np.array([1.0, 4.0, 16.0, 64.0])
        >>> fit_law("power", sizes, 2.0 / sizes).predict(np.array([100.0])).round(6)
        array([0.02])
    """
    fits = fit_laws(
        law,
        sizes,
        checks.shape("losses", np.asarray(losses), (None,))[None],
        ntk=None if ntk is None else ntk.batched(),
        weights=None if weights is None else np.asarray(weights, np.float64)[None],
        huber_delta=huber_delta,
    )
    return fits[0]


def fit_laws(
    law: str | Law,
    sizes: SizeVector,
    losses: Float[np.ndarray, "num_curves num_sizes"],
    *,
    ntk: KernelLoss | None = None,
    weights: Float[np.ndarray, "num_curves num_sizes"] | None = None,
    huber_delta: float | None = None,
    zero_floor: Bool[np.ndarray, " num_curves"] | None = None,
) -> LawFits:
    """Fits every row of ``losses`` in one compiled call; arguments as :func:`fit_law`.

    Args:
        law: which law, of all curves.
        sizes: training examples, shared by all curves.
        losses: test losses, one row per curve; entries of weight 0 are not read.
        ntk: for "lensllm": F at each size of each curve, one spectrum per curve, or a bound.
        weights: one row per curve.
        huber_delta: of all curves.
        zero_floor: which curves have E fixed at 0, a free parameter fewer; default none.

    Returns:
        A :class:`LawFits`; ``fits[i]`` is the fit of row i.

    Raises:
        UserError: for sizes or losses that no law can mean, naming the entry.
    """
    solution = solve(
        FitProblem.checked(
            law,
            sizes,
            losses,
            ntk=ntk,
            weights=weights,
            huber_delta=huber_delta,
            zero_floor=zero_floor,
        )
    )
    return LawFits(solution.problem, solution.theta, solution.objective, solution.statuses)
