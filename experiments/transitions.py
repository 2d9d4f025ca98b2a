"""Transition of a fitted law: where it passes into the power phase, as far as refits can tell.

Example:
    >>> import numpy as np
    >>> from lensllm_jax.scaling.fit import fit_law
    >>> sizes = 100.0 * 2.0 ** np.arange(8)
    >>> fit = fit_law("rectified", sizes, 30.0 / (20.0 + sizes**0.5) + 1e-3 * np.sin(sizes))
    >>> found = of_law(fit, num_resamples=20)
    >>> found.low <= found.high
    True
"""

from lensllm_jax.scaling.intervals import bootstrap_refits
from lensllm_jax.scaling.result import LawFit
from lensllm_jax.theory.phases import LawTransition, law_transition


def of_law(fit: LawFit, *, num_resamples: int = 200) -> LawTransition:
    """D* of a fitted rectified law, with the 90 % range of bootstrap refits.

    Args:
        fit: of the rectified law, usable and with sizes to spare.
        num_resamples: refits; those that are not usable are left out.

    Returns:
        The transition.
    """
    refits = bootstrap_refits(fit, num_resamples=num_resamples)
    params, usable = refits.params, refits.usable
    return law_transition(
        fit.params["D_l"],
        fit.params["beta"],
        refitted_offsets=params["D_l"][usable],
        refitted_betas=params["beta"][usable],
    )
