r"""Fits of a scaling law to measured losses: one curve, or thousands in one compiled call.

The objective is the LSE form in log space, squared by default, Huber on request:

.. math::
    \min_{B, E, \beta, t} \sum_i \rho\big(\mathrm{LSE}(\log B - \log(F(\Theta, t) + D_i^{\beta}),
    \ \log E) - \log L(D_i)\big).

Three ways to supply F to ``lensllm`` (the result says which was used):

* ``ntk_loss``: F measured at each size's own early-stop step (phase fitting), in the unit of
  :math:`D^\beta` as it stands or, with ``free_scale``, up to one fitted factor;
* ``spectrum``: F(t) of a measured kernel with one free t (prediction);
* neither: F is a free number in (0, ``max_ntk_loss``].

The last two are the rectified law with a bound on D_l: fit ``"rectified"`` beside them as the
control.  Computations are in float64 whatever JAX's global setting, and nothing is random.

Example:
    >>> import numpy as np
    >>> sizes = np.array([0.0, 100.0, 400.0, 1600.0, 6400.0, 25600.0])
    >>> losses = 40.0 / (20.0 + sizes**0.5) + 1.0
    >>> fit = fit_law("rectified", sizes, losses)
    >>> {name: round(value, 3) for name, value in fit.params.items()}
    {'B': 40.0, 'beta': 0.5, 'E': 1.0, 'D_l': 20.0}
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import FREE_PARAMETERS, FitStatus, LawFit, LawFits, NtkSource
from lensllm_jax.scaling.solve import solve_curves

MAX_STEPS_OF_KERNEL = 1e12  # F at this time is F's limit for every eigenvalue that matters

Curve = Float[np.ndarray, " num_sizes"]
Curves = Float[np.ndarray, "num_curves num_sizes"]
SizeVector = Float[np.ndarray, " num_sizes"] | Int[np.ndarray, " num_sizes"]


def fit_law(
    law: str | Law,
    sizes: SizeVector,
    losses: Curve,
    *,
    ntk_loss: Curve | None = None,
    free_scale: bool = False,
    spectrum: NtkSpectrum | None = None,
    max_ntk_loss: float | None = None,
    weights: Curve | None = None,
    huber_delta: float | None = None,
    zero_size: float = 0.0,
) -> LawFit:
    r"""Fits one curve.

    Args:
        law: "power", "vanilla", "rectified" or "lensllm".
        sizes: training examples, ascending, 0 allowed.
        losses: test losses, nats per token.
        ntk_loss: for "lensllm": F measured at each size.
        free_scale: whether ``ntk_loss`` counts up to one fitted factor, because its unit is that
            of a squared residual and not :math:`D^\beta`.
        spectrum: for "lensllm": the kernel's spectrum, with one free t.
        max_ntk_loss: for "lensllm" with neither: bound of F; default the largest size, which
            is :math:`|f_0 - y|^2` of one unit of squared residual an example.
        weights: of the squared log residuals, 0 leaves a size out; default 1.
        huber_delta: where the loss of a log residual turns linear; default never.
        zero_size: what D = 0 counts as; 1e-10 is the convention of Lin et al.'s code.

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

    def one(array):
        return None if array is None else np.asarray(array, np.float64)[None]

    fits = fit_laws(
        law,
        sizes,
        checks.shape("losses", np.asarray(losses), (None,))[None],
        ntk_loss=one(ntk_loss),
        free_scale=free_scale,
        spectra=None if spectrum is None else [spectrum],
        max_ntk_loss=max_ntk_loss,
        weights=one(weights),
        huber_delta=huber_delta,
        zero_size=zero_size,
    )
    return fits[0]


def fit_laws(
    law: str | Law,
    sizes: SizeVector,
    losses: Curves,
    *,
    ntk_loss: Curves | None = None,
    free_scale: bool = False,
    spectra: Sequence[NtkSpectrum] | None = None,
    max_ntk_loss: float | None = None,
    weights: Curves | None = None,
    huber_delta: float | None = None,
    zero_floor: Bool[np.ndarray, " num_curves"] | None = None,
    zero_size: float = 0.0,
    start: Float[np.ndarray, "num_curves 5"] | None = None,
) -> LawFits:
    """Fits every row of ``losses`` in one compiled call; arguments as :func:`fit_law`.

    Args:
        law: "power", "vanilla", "rectified" or "lensllm".
        sizes: training examples, shared by all curves.
        losses: test losses, one row a curve; entries of weight 0 are not read.
        ntk_loss: for "lensllm": F measured at each size of each curve.
        free_scale: whether ``ntk_loss`` counts up to one fitted factor a curve.
        spectra: for "lensllm": one kernel spectrum a curve, with one free t each.
        max_ntk_loss: for "lensllm" with neither: bound of F, all curves.
        weights: of the squared log residuals, 0 leaves a size out; default 1.
        huber_delta: where the loss of a log residual turns linear; default never.
        zero_floor: which curves hold E at 0, one parameter less; default none.
        zero_size: what D = 0 counts as; with 1e-10, the convention of Lin et al.'s code,
            objectives can be compared with theirs, but L(0) is no longer B / D_l + E.
        start: one more start a curve, in the solver's parameters.

    Returns:
        A :class:`LawFits`; ``fits[i]`` is the fit of row i.

    Raises:
        UserError: for sizes or losses that no law can mean, naming the entry.

    Example:
        >>> sizes = np.array([1.0, 4.0, 16.0, 64.0])
        >>> fits = fit_laws("power", sizes, np.stack([2.0 / sizes, 3.0 / sizes]))
        >>> fits.params["B"].round(6)
        array([2., 3.])
    """
    law = law if isinstance(law, Law) else Law(checks.one_of("law", law, [x.value for x in Law]))
    sizes = _checked_sizes(sizes)
    losses = checks.shape("losses", np.asarray(losses, np.float64), (None, len(sizes)))
    if weights is None:
        weights = np.ones_like(losses)
    weights = checks.shape("weights", np.asarray(weights, np.float64), losses.shape)
    if law in (Law.POWER, Law.VANILLA):
        weights = np.where(sizes[None] == 0, 0.0, weights)  # their loss at D = 0 is infinite
    losses = np.where(weights > 0, losses, 1.0)
    _check_positive("losses", losses)
    source = _ntk_source(law, ntk_loss, spectra, free_scale)
    if ntk_loss is not None:
        ntk_loss = np.asarray(ntk_loss, np.float64)
        checks.shape("ntk_loss", ntk_loss, losses.shape)
        ntk_loss = np.where(weights > 0, ntk_loss, 1.0)
        _check_positive("ntk_loss", ntk_loss)
    # the factor is looked for around that which makes a curve's F about 1
    centre = np.zeros(len(losses))
    if ntk_loss is not None and free_scale:
        centre = _log_centre(ntk_loss, weights)
    low, high = _free_f_bounds(source, sizes, len(losses), spectra, max_ntk_loss)
    delta = np.inf if huber_delta is None else checks.positive("huber_delta", huber_delta)
    checks.not_negative("zero_size", zero_size)
    solved = solve_curves(
        law,
        np.where(sizes == 0, zero_size, sizes),
        losses,
        weights=weights,
        ntk_loss=None if ntk_loss is None else ntk_loss / np.exp(centre)[:, None],
        free_scale=free_scale,
        max_ntk_loss=high,
        min_ntk_loss=low,
        huber_delta=delta,
        zero_floor=zero_floor,
        start=None if start is None else start + _as_delta(centre),
    )
    theta = solved.theta - _as_delta(centre)
    held = np.zeros(len(losses), bool) if zero_floor is None else zero_floor
    num_free = FREE_PARAMETERS[law] - (source is NtkSource.MEASURED) - held.astype(int)
    spare = (weights > 0).sum(1) - num_free
    statuses = tuple(
        _status(int(left), float(objective), bool(converged))
        for left, objective, converged in zip(
            spare, solved.objective, solved.converged, strict=True
        )
    )
    usable = np.array([status.usable for status in statuses])
    return LawFits(
        law=law,
        ntk_source=source,
        sizes=sizes,
        losses=losses,
        weights=weights,
        theta=np.where(usable[:, None], theta, np.nan),
        objective=np.where(usable, solved.objective, np.nan),
        statuses=statuses,
        huber_delta=float(delta),
        ntk_loss=ntk_loss,
        spectra=spectra,
        max_ntk_loss=high,
        zero_floor=zero_floor,
        zero_size=zero_size,
    )


def _log_centre(ntk_loss: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Mean log F over the sizes used; 0 where none is."""
    used = weights > 0
    return (np.log(ntk_loss) * used).sum(1) / np.maximum(used.sum(1), 1)


def _as_delta(log_scale: np.ndarray) -> np.ndarray:
    """A log factor of F in the solver's parameters (a, delta, beta, E, alpha)."""
    return np.eye(5)[1] * log_scale[:, None]


def _status(spare: int, objective: float, converged: bool) -> FitStatus:
    if spare < 0:
        return FitStatus.UNDERDETERMINED
    if not np.isfinite(objective):
        return FitStatus.FAILED
    return FitStatus.CONVERGED if converged else FitStatus.MAX_STEPS


def _checked_sizes(sizes) -> np.ndarray:
    array = checks.shape("sizes", np.asarray(sizes, np.float64), (None,))
    checks.finite("sizes", array)
    if len(array) == 0 or array[0] < 0 or array[-1] == 0 or np.any(np.diff(array) <= 0):
        raise checks.UserError(
            f"`sizes` must be ascending from 0 or more, the last above 0, got {array.tolist()}"
        )
    return array


def _check_positive(name: str, array: np.ndarray) -> None:
    bad = np.argwhere(~(np.isfinite(array) & (array > 0)))
    if len(bad):
        where = tuple(int(i) for i in bad[0])
        raise checks.UserError(
            f"`{name}` must be positive and finite, got {array[where]} at index {where}; "
            "leave that size out or give it weight 0"
        )


def _ntk_source(law: Law, ntk_loss, spectra, free_scale: bool) -> NtkSource:
    if free_scale and ntk_loss is None:
        raise checks.UserError(
            "`free_scale` must be False without `ntk_loss`, got True: it scales a measured F"
        )
    if law is not Law.LENSLLM:
        if ntk_loss is not None or spectra is not None:
            raise checks.UserError(
                f"`ntk_loss` and `spectrum` must be absent for law {law.value}, got one; "
                "use law lensllm"
            )
        return NtkSource.ABSENT
    if ntk_loss is not None and spectra is not None:
        raise checks.UserError(
            "`ntk_loss` and `spectrum` must not both be given, got both: F is either measured "
            "at each size or free in t"
        )
    if ntk_loss is not None:
        return NtkSource.SCALED if free_scale else NtkSource.MEASURED
    return NtkSource.PROFILED if spectra is None else NtkSource.SPECTRUM


def _free_f_bounds(source: NtkSource, sizes, num_curves, spectra, max_ntk_loss):
    """Lower and upper bound of a free F, one a curve; None where F is not free."""
    if max_ntk_loss is not None and source is not NtkSource.PROFILED:
        raise checks.UserError(
            "`max_ntk_loss` must be absent unless law is lensllm without a kernel, "
            f"got {max_ntk_loss}: a kernel brings its own bound"
        )
    if source is NtkSource.SPECTRUM:
        if len(spectra) != num_curves:
            raise checks.UserError(
                f"`spectra` must hold one spectrum a curve, got {len(spectra)} for {num_curves}"
            )
        ends = np.array([s.loss(np.array([MAX_STEPS_OF_KERNEL, 0.0])) for s in spectra])
        checks.positive("sum of squared projections", float(ends[:, 1].min()))
        return ends[:, 0], ends[:, 1]
    if source is NtkSource.PROFILED:
        bound = float(sizes[-1]) if max_ntk_loss is None else max_ntk_loss
        return None, np.full(num_curves, checks.positive("max_ntk_loss", bound))
    return None, None
