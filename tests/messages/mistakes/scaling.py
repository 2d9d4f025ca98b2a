"""Mistakes with the fits of the laws, their predictions and their intervals."""

import dataclasses

import numpy as np

import lensllm_jax as lens
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling import intervals, kaplan, phases
from lensllm_jax.scaling.kernel import Bounded, Measured, Spectrum
from lensllm_jax.scaling.problem import FitProblem
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.scaling.solution import FitStatus

SIZES = np.array([200.0, 400.0, 800.0, 1600.0])
LOSSES = np.array([4.0, 3.0, 2.5, 2.2])
SPECTRUM = NtkSpectrum(np.ones(2), np.ones(2), learning_rate=0.1)
DOUBLING = 100.0 * 2 ** np.arange(6)
# a fit that nothing was solved for
PROBLEM = FitProblem.checked("power", SIZES, LOSSES[None])
FITS = LawFits(PROBLEM, np.zeros((1, 5)), np.zeros(1), (FitStatus.CONVERGED,))
FAILED = dataclasses.replace(FITS, statuses=(FitStatus.FAILED,))


def fit(law="power", sizes=SIZES, losses=LOSSES, **settings):
    return lens.fit_law(law, sizes, losses, **settings)


def eq_10(ntk):
    return lens.fit_laws("lensllm", SIZES, LOSSES[None], ntk=ntk)


def given(**changes):
    """A fit of a changed problem."""
    return dataclasses.replace(FITS, problem=dataclasses.replace(PROBLEM, **changes))[0]


def interval(fit=FITS[0], **settings):
    return fit.interval(np.array([3200.0]), **settings)


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
    ("ntk", "absent for law power ... got Spectrum", lambda tmp: fit(ntk=Spectrum(SPECTRUM))),
    ("ntk.loss", "have shape ... got (1, 2)", lambda tmp: eq_10(Measured(LOSSES[None, :2]))),
    (
        "ntk.loss",
        "positive ... got -4.0 at index (0, 0)",
        lambda tmp: fit("lensllm", ntk=Measured(-LOSSES)),
    ),
    ("ntk.max_loss", "positive ... got -1.0", lambda tmp: eq_10(Bounded(-1.0))),
    (
        "ntk.spectra",
        "hold one spectrum per curve ... got 2 for 1",
        lambda tmp: eq_10(Spectrum([SPECTRUM] * 2)),
    ),
    ("huber_delta", "positive ... got 0.0", lambda tmp: fit(huber_delta=0.0)),
    ("ntk_loss", "absent ... got an array", lambda tmp: FITS.predict(SIZES, ntk_loss=LOSSES[None])),
    (
        "fit",
        "not have F measured ... got one",
        lambda tmp: given(ntk=Measured(LOSSES[None])).held_out_log_rmse(),
    ),
    ("method", "one of ... got 'guess'", lambda tmp: interval(method="guess")),
    ("level", "lie between 0 ... got 1.0", lambda tmp: interval(level=1.0)),
    (
        "fit",
        "usable ... got: no finite objective",
        lambda tmp: interval(FAILED[0]),
    ),
    (
        "fit",
        "not have F measured ... got one",
        lambda tmp: interval(given(ntk=Measured(LOSSES[None]))),
    ),
    (
        "fit",
        "have more sizes ... got as many",
        lambda tmp: interval(given(weights=np.array([[1.0, 1.0, 1.0, 0.0]]))),
    ),
    (
        "num_resamples",
        "positive ... got 0",
        lambda tmp: intervals.bootstrap_refits(FITS, num_resamples=0),
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
        lambda tmp: eq_10(Spectrum(dataclasses.replace(SPECTRUM, squared_projections=np.zeros(2)))),
    ),
    (
        "level",
        "lie between 0 ... got 1.0",
        lambda tmp: phases.segmented_transition(DOUBLING, DOUBLING, level=1.0),
    ),
    (
        "losses",
        "have shape ... got (5,)",
        lambda tmp: phases.segmented_transition(DOUBLING, DOUBLING[1:]),
    ),
    (
        "sizes",
        "6 or more ascending ... got [200.0, 400.0, 800.0, 1600.0,",
        lambda tmp: phases.segmented_transition(DOUBLING[1:], DOUBLING[1:]),
    ),
    (
        "losses",
        "positive ... got [-100.0",
        lambda tmp: phases.segmented_transition(DOUBLING, -DOUBLING),
    ),
    ("fit", "of law rectified ... got power", lambda tmp: phases.law_transition(FITS[0])),
]
