"""Mistakes with the fits of the laws, their predictions and their intervals."""

import dataclasses

import numpy as np

import lensllm_jax as lens
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling import intervals, kaplan
from lensllm_jax.scaling.laws import Law
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


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("law", "one of ... got 'cubic'", lambda tmp: fit(law="cubic")),
    ("losses", "have shape ... got (1, 4)", lambda tmp: fit(losses=LOSSES[None])),
    (
        "losses",
        "have shape ... got (1, 2)",
        lambda tmp: lens.fit_laws("power", SIZES, LOSSES[None, :2]),
    ),
    ("weights", "have shape ... got (1, 3)", lambda tmp: fit(weights=np.ones(3))),
    ("sizes", "have shape ... got (1, 4)", lambda tmp: fit(sizes=SIZES[None])),
    ("sizes", "finite ... got nan at index (0,)", lambda tmp: fit(sizes=SIZES * np.nan)),
    (
        "sizes",
        "ascending from 0 ... got [1600.0, 800.0, 400.0, 200.0]",
        lambda tmp: fit(sizes=SIZES[::-1]),
    ),
    ("losses", "positive ... got -4.0 at index (0, 0)", lambda tmp: fit(losses=-LOSSES)),
    ("ntk_loss", "absent for law power ... got one", lambda tmp: fit(spectrum=SPECTRUM)),
    (
        "free_scale",
        "False without `ntk_loss` ... got True",
        lambda tmp: fit("lensllm", free_scale=True),
    ),
    (
        "ntk_loss",
        "not both be given ... got both",
        lambda tmp: fit("lensllm", ntk_loss=LOSSES, spectrum=SPECTRUM),
    ),
    ("ntk_loss", "have shape ... got (1, 2)", lambda tmp: fit("lensllm", ntk_loss=LOSSES[:2])),
    (
        "ntk_loss",
        "positive ... got -4.0 at index (0, 0)",
        lambda tmp: fit("lensllm", ntk_loss=-LOSSES),
    ),
    (
        "free_scale",
        "False without `ntk_loss` ... got True",
        lambda tmp: fit("lensllm", free_scale=True),
    ),
    (
        "max_ntk_loss",
        "absent unless law ... got 1.0",
        lambda tmp: fit("lensllm", spectrum=SPECTRUM, max_ntk_loss=1.0),
    ),
    ("max_ntk_loss", "positive ... got -1.0", lambda tmp: fit("lensllm", max_ntk_loss=-1.0)),
    ("spectra", "hold one spectrum ... got 2 for 1", lambda tmp: fits(spectra=[SPECTRUM] * 2)),
    ("huber_delta", "positive ... got 0.0", lambda tmp: fit(huber_delta=0.0)),
    ("zero_size", "zero or positive ... got -1.0", lambda tmp: fit(zero_size=-1.0)),
    ("ntk_loss", "absent ... got an array", lambda tmp: FITS.predict(SIZES, ntk_loss=LOSSES[None])),
    (
        "fit",
        "not have F measured ... got one",
        lambda tmp: fitted(ntk_source=NtkSource.MEASURED).held_out_log_rmse(),
    ),
    ("method", "one of ... got 'guess'", lambda tmp: interval(method="guess")),
    ("level", "lie between 0 ... got 1.0", lambda tmp: interval(level=1.0)),
    (
        "fit",
        "usable ... got: no finite objective",
        lambda tmp: interval(fitted(statuses=(FitStatus.FAILED,))),
    ),
    (
        "fit",
        "not have F measured ... got one",
        lambda tmp: interval(fitted(ntk_source=NtkSource.MEASURED)),
    ),
    (
        "fit",
        "have more sizes ... got as many",
        lambda tmp: interval(fitted(weights=np.array([[1.0, 1.0, 1.0, 0.0]]))),
    ),
    (
        "num_resamples",
        "positive ... got 0",
        lambda tmp: intervals.bootstrap_refits(FITS[0], num_resamples=0),
    ),
    (
        "fit",
        "usable with sizes ... got: no finite objective",
        lambda tmp: intervals.bootstrap_refits(fitted(statuses=(FitStatus.FAILED,))),
    ),
    (
        "law",
        "one of ... got 'cubic'",
        lambda tmp: intervals.rolling_origin("cubic", SIZES, LOSSES[None]),
    ),
    (
        "horizon",
        "positive ... got 0",
        lambda tmp: intervals.rolling_origin("power", SIZES, LOSSES[None], horizon=0),
    ),
    (
        "sizes",
        "number at least 5 ... got 4",
        lambda tmp: intervals.rolling_origin("power", SIZES, LOSSES[None]),
    ),
    (
        "losses",
        "have shape ... got (1, 4)",
        lambda tmp: kaplan.fit_kaplan(np.ones(2), SIZES, LOSSES[None]),
    ),
    (
        "num_params",
        "positive ... got 0.0",
        lambda tmp: kaplan.fit_kaplan(np.zeros(1), SIZES, LOSSES[None]),
    ),
    (
        "sum of squared projections",
        "positive ... got 0.0",
        lambda tmp: fits([dataclasses.replace(SPECTRUM, squared_projections=np.zeros(2))]),
    ),
]
