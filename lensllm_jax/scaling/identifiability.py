r"""Which parameters of a fit the measured sizes do not identify.

With log residuals' Jacobian J at the optimum and residual variance :math:`s^2` (from m - p
degrees of freedom), a parameter's standard error is
:math:`\sqrt{[s^2 (J^\top J)^{-1}]_{ii}}`.  A parameter is called not identified if it stands at
a bound, or if its standard error exceeds what would make it meaningful: a factor e for
:math:`D_l`, F (hence t) and B, the smallest loss for E, itself for beta and alpha.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = np.array([100.0, 200.0, 400.0, 800.0, 1600.0])
    >>> fit_law("rectified", sizes, 9.0 * sizes**-0.3).warnings[0]
    'D_l is not identified: it stands at its lower bound 9e-14 (no pre-power phase seen)'
"""

import numpy as np
from jaxtyping import Float

from lensllm_jax.scaling import solve
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import LawFit, NtkSource

A, DELTA, BETA, E, ALPHA = range(solve.NUM_THETA)
FREE_F = (NtkSource.PROFILED, NtkSource.SPECTRUM, NtkSource.SCALED)
STEP = 1e-6  # of central differences: cube root of float64's epsilon, rounded


def _free(fit: LawFit) -> list[int]:
    floor_held = fit.fits.zero_floor is not None and fit.fits.zero_floor[fit.index]
    names = [A, BETA] if floor_held else [A, BETA, E]
    if fit.law is Law.RECTIFIED or fit.ntk_source in FREE_F:
        names.append(DELTA)
    if fit.law is Law.VANILLA:
        names.append(ALPHA)
    return names


def _f_name(fit: LawFit) -> str:
    if fit.law is Law.RECTIFIED:
        return "D_l"
    return {NtkSource.SPECTRUM: "t", NtkSource.SCALED: "scale"}.get(fit.ntk_source, "F")


def standard_errors(fit: LawFit) -> Float[np.ndarray, "5"]:
    """Standard errors of the solver's parameters; infinite where unidentified, 0 where fixed."""
    fits = fit.alone()
    used = fits.weights[0] > 0
    free = _free(fit)
    theta = fits.theta[0]
    reference = None if fits.ntk_loss is None else fits._ntk_loss_reference()

    def log_losses(values):
        return solve.predict_log_losses(
            values[None],
            fits.sizes,
            fits.reference,
            ntk_loss=fits.ntk_loss,
            ntk_loss_reference=reference,
        )[0][used]

    columns = []
    for i in free:
        shift = np.zeros(solve.NUM_THETA)
        shift[i] = STEP * max(1.0, abs(theta[i]))
        columns.append((log_losses(theta + shift) - log_losses(theta - shift)) / (2 * shift[i]))
    jacobian = np.sqrt(fits.weights[0][used])[:, None] * np.stack(columns, axis=1)
    freedom = int(used.sum()) - len(free)
    errors = np.zeros(solve.NUM_THETA)
    if freedom <= 0:
        errors[free] = np.inf
        return errors
    variance = max(float(fits.objective[0]), 1e-30) / freedom
    # singular values below STEP are noise of the differences: that direction is unidentified
    _, values, directions = np.linalg.svd(jacobian, full_matrices=False)
    spread = np.where(values > STEP * values[0], 1.0 / np.maximum(values, 1e-300), np.inf)
    with np.errstate(invalid="ignore"):
        parts = np.where(np.abs(directions.T) > 1e-3, directions.T * spread[None], 0.0)
    errors[free] = np.sqrt(variance * (parts**2).sum(1))
    return errors


def unidentified(fit: LawFit) -> tuple[str, ...]:
    """One sentence a parameter that the sizes do not identify; empty if all are.

    Args:
        fit: a usable fit.

    Returns:
        Sentences that name the parameter and why.
    """
    fits = fit.alone()
    theta = fits.theta[0]
    free = _free(fit)
    sentences = []
    if DELTA in free:
        name = _f_name(fit)
        if theta[DELTA] <= solve.MIN_LOG_F + 1e-9:
            sentences.append(
                f"{name} is not identified: it stands at its lower bound "
                f"{np.exp(solve.MIN_LOG_F):.0e} (no pre-power phase seen)"
            )
        elif fits.max_ntk_loss is not None and np.exp(theta[DELTA]) >= fits.max_ntk_loss[0] * (
            1 - 1e-9
        ):
            sentences.append(f"{name} stands at its bound F = {fits.max_ntk_loss[0]:.4g}")
    if E not in free:
        sentences.append("E was held at 0: too few sizes to fit a floor")
    elif theta[E] == 0.0:
        sentences.append("E stands at its bound 0: the sizes do not show a floor")
    if int((fits.weights[0] > 0).sum()) <= len(free):
        return (*sentences, "as many parameters as sizes: no error bar is possible")
    errors = standard_errors(fit)
    smallest = float(np.min(fits.losses[0][fits.weights[0] > 0]))
    limits = {DELTA: 1.0, BETA: abs(theta[BETA]), E: smallest, ALPHA: abs(theta[ALPHA])}
    names = {DELTA: _f_name(fit), BETA: "beta", E: "E", ALPHA: "alpha"}
    for i in free:
        if (
            i in limits
            and errors[i] > limits[i]
            and not any(sentence.startswith(names[i] + " ") for sentence in sentences)
        ):
            sentences.append(f"{names[i]} is not identified: its standard error is {errors[i]:.2g}")
    return tuple(sentences)
