"""Mistakes with the fits of the laws, their predictions and their intervals."""

import dataclasses

import numpy as np

import lensllm_jax as lens
from lensllm_jax.scaling import intervals, kaplan
from lensllm_jax.scaling.laws import Law, NtkSpectrum
from lensllm_jax.scaling.result import FitStatus, LawFits, NtkSource

SIZES = np.array([200.0, 400.0, 800.0, 1600.0])
LOSSES = np.array([4.0, 3.0, 2.5, 2.2])
SPECTRUM = NtkSpectrum(np.ones(2), np.ones(2), learning_rate=0.1)
# a fit that nothing was solved for
FITS = LawFits(
    law=Law.POWER,
    ntk_source=NtkSource.ABSENT,
    sizes=SIZES,
    losses=LOSSES[None],
    weights=np.ones((1, 4)),
    theta=np.zeros((1, 5)),
    objective=np.zeros(1),
    statuses=(FitStatus.CONVERGED,),
    huber_delta=np.inf,
)


def fit(law="power", sizes=SIZES, losses=LOSSES, **settings):
    return lens.fit_law(law, sizes, losses, **settings)


def fits(spectra):
    return lens.fit_laws("lensllm", SIZES, LOSSES[None], spectra=spectra)


def fitted(**changes):
    return dataclasses.replace(FITS, **changes)[0]


def interval(fit=FITS[0], **settings):
    return intervals.interval(fit, np.array([3200.0]), **settings)


def spectrum(**changes):
    return dataclasses.replace(SPECTRUM, **changes)


# the message, and what brings it about in an empty folder
MISTAKES = [
    ("`law` must be one of ..., got 'cubic'", lambda tmp: fit(law="cubic")),
    ("`losses` must have shape (any,), got (1, 4)", lambda tmp: fit(losses=LOSSES[None])),
    (
        "`losses` must have shape (any, 4), got (1, 2)",
        lambda tmp: lens.fit_laws("power", SIZES, LOSSES[None, :2]),
    ),
    ("`weights` must have shape (1, 4), got (1, 3)", lambda tmp: fit(weights=np.ones(3))),
    ("`sizes` must have shape (any,), got (1, 4)", lambda tmp: fit(sizes=SIZES[None])),
    ("`sizes` must be finite, got nan at index (0,)", lambda tmp: fit(sizes=SIZES * np.nan)),
    (
        (
            "`sizes` must be ascending from 0 or more, the last above 0, got [1600.0, 800.0, 400.0,"
            " 200.0]"
        ),
        lambda tmp: fit(sizes=SIZES[::-1]),
    ),
    (
        (
            "`losses` must be positive and finite, got -4.0 at index (0, 0); leave that size out or"
            " give it weight 0"
        ),
        lambda tmp: fit(losses=-LOSSES),
    ),
    (
        "`ntk_loss` and `spectrum` must be absent for law power, got one; use law lensllm",
        lambda tmp: fit(spectrum=SPECTRUM),
    ),
    (
        "`free_scale` must be False without `ntk_loss`, got True: it scales a measured F",
        lambda tmp: fit("lensllm", free_scale=True),
    ),
    (
        (
            "`ntk_loss` and `spectrum` must not both be given, got both: F is either measured at "
            "each size or free in t"
        ),
        lambda tmp: fit("lensllm", ntk_loss=LOSSES, spectrum=SPECTRUM),
    ),
    (
        "`ntk_loss` must have shape (1, 4), got (1, 2)",
        lambda tmp: fit("lensllm", ntk_loss=LOSSES[:2]),
    ),
    (
        (
            "`ntk_loss` must be positive and finite, got -4.0 at index (0, 0); leave that size out "
            "or give it weight 0"
        ),
        lambda tmp: fit("lensllm", ntk_loss=-LOSSES),
    ),
    (
        "`free_scale` must be False without `ntk_loss`, got True: it scales a measured F",
        lambda tmp: fit("lensllm", free_scale=True),
    ),
    (
        (
            "`max_ntk_loss` must be absent unless law is lensllm without a kernel, got 1.0: a "
            "kernel brings its own bound"
        ),
        lambda tmp: fit("lensllm", spectrum=SPECTRUM, max_ntk_loss=1.0),
    ),
    (
        "`max_ntk_loss` must be positive and finite, got -1.0",
        lambda tmp: fit("lensllm", max_ntk_loss=-1.0),
    ),
    (
        "`spectra` must hold one spectrum a curve, got 2 for 1",
        lambda tmp: fits(spectra=[SPECTRUM] * 2),
    ),
    ("`huber_delta` must be positive and finite, got 0.0", lambda tmp: fit(huber_delta=0.0)),
    ("`zero_size` must be zero or positive and finite, got -1.0", lambda tmp: fit(zero_size=-1.0)),
    (
        (
            "`ntk_loss` must be absent, got an array; to predict where no kernel was measured, fit "
            "with `spectrum` (t free)"
        ),
        lambda tmp: FITS.predict(SIZES, ntk_loss=LOSSES[None]),
    ),
    (
        (
            "`fit` must not have F measured at each size, got one: no F is known where it predicts;"
            " fit with `spectrum` (t free)"
        ),
        lambda tmp: fitted(ntk_source=NtkSource.MEASURED).held_out_log_rmse(),
    ),
    (
        "`method` must be one of bootstrap, profile, got 'guess'",
        lambda tmp: interval(method="guess"),
    ),
    ("`level` must lie between 0 and 1, got 1.0", lambda tmp: interval(level=1.0)),
    (
        (
            "`fit` must be usable, got: no finite objective was found; look at the losses for a "
            "misprint"
        ),
        lambda tmp: interval(fitted(statuses=(FitStatus.FAILED,))),
    ),
    (
        (
            "`fit` must not have F measured at each size, got one: no F is known where it predicts;"
            " fit with `spectrum` (t free)"
        ),
        lambda tmp: interval(fitted(ntk_source=NtkSource.MEASURED)),
    ),
    (
        (
            "`fit` must have more sizes than free parameters for an interval, got as many; measure "
            "more sizes"
        ),
        lambda tmp: interval(fitted(weights=np.array([[1.0, 1.0, 1.0, 0.0]]))),
    ),
    (
        "`num_resamples` must be positive and finite, got 0",
        lambda tmp: intervals.bootstrap_refits(FITS[0], num_resamples=0),
    ),
    (
        (
            "`fit` must be usable with sizes to spare, got: no finite objective was found; look at "
            "the losses for a misprint"
        ),
        lambda tmp: intervals.bootstrap_refits(fitted(statuses=(FitStatus.FAILED,))),
    ),
    (
        "`law` must be one of ..., got 'cubic'",
        lambda tmp: intervals.rolling_origin("cubic", SIZES, LOSSES[None]),
    ),
    (
        "`horizon` must be positive and finite, got 0",
        lambda tmp: intervals.rolling_origin("power", SIZES, LOSSES[None], horizon=0),
    ),
    (
        "`sizes` must number at least 5 for one held-out prediction, got 4",
        lambda tmp: intervals.rolling_origin("power", SIZES, LOSSES[None]),
    ),
    (
        "`losses` must have shape (2, 4), got (1, 4)",
        lambda tmp: kaplan.fit_kaplan(np.ones(2), SIZES, LOSSES[None]),
    ),
    (
        "`num_params` must be positive and finite, got 0.0",
        lambda tmp: kaplan.fit_kaplan(np.zeros(1), SIZES, LOSSES[None]),
    ),
    ("`projections` must have shape (2,), got (3,)", lambda tmp: spectrum(projections=np.ones(3))),
    (
        "`eigenvalues` must be finite, got nan at index (1,)",
        lambda tmp: spectrum(eigenvalues=np.array([1.0, np.nan])),
    ),
    (
        "`projections` must be finite, got nan at index (1,)",
        lambda tmp: spectrum(projections=np.array([1.0, np.nan])),
    ),
    (
        "`learning_rate` must be positive and finite, got 0.0",
        lambda tmp: spectrum(learning_rate=0.0),
    ),
    (
        (
            "`eigenvalues` and `projections` must not be negative, got a minimum of -1.0; clip "
            "rounding errors at 0"
        ),
        lambda tmp: spectrum(eigenvalues=-np.ones(2)),
    ),
    (
        "`sum of projections` must be positive and finite, got 0.0",
        lambda tmp: spectrum(projections=np.zeros(2)),
    ),
]
