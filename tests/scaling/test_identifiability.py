"""What the measured sizes do not identify is named, and nothing else."""

import numpy as np

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.fit import fit_law, fit_laws
from lensllm_jax.scaling.kernel import Bounded, Spectrum
from tests.scaling.curves import NOISE, SIZES


def test_unidentified_parameters_are_named():
    straight = fit_law("rectified", SIZES[1:], 9.0 * SIZES[1:] ** -0.3)
    assert any(warning.startswith("D_l is not identified") for warning in straight.warnings)
    curved = fit_law("rectified", SIZES, 90.0 / (20.0 + SIZES**0.4) + 0.7)
    assert curved.warnings == ()


def test_a_t_that_the_sizes_do_not_show_is_named():
    spectrum = NtkSpectrum(np.array([1e-4, 1.0]), np.array([900.0, 100.0]), 0.01)
    wandering = 9.0 * SIZES[1:] ** -0.3 * NOISE[1:]
    fit = fit_law("lensllm", SIZES[1:], wandering, ntk=Spectrum(spectrum))
    assert any(warning.startswith("t ") for warning in fit.warnings), fit.warnings
    shown = fit_law("lensllm", SIZES, 90.0 / (20.0 + SIZES**0.4) + 0.7, ntk=Spectrum(spectrum))
    assert not any(warning.startswith("t ") for warning in shown.warnings)


def test_a_bound_that_is_met_and_a_fixed_floor_are_named():
    losses = 90.0 / (20.0 + SIZES**0.4) + 0.7
    bounded = fit_law("lensllm", SIZES, losses, ntk=Bounded(4.0))
    assert "F stands at its bound F = 4" in bounded.warnings
    free = fit_law("lensllm", SIZES, losses)
    assert not any("bound" in warning for warning in free.warnings)
    fixed = fit_laws("rectified", SIZES, losses[None], zero_floor=np.array([True]))[0]
    assert "E was fixed at 0: too few sizes to fit a floor" in fixed.warnings
    assert fixed.params["E"] == 0.0 < free.params["E"]


def test_no_error_bar_is_claimed_without_degrees_of_freedom():
    fit = fit_law("rectified", SIZES[:4], (90.0 / (20.0 + SIZES[:4] ** 0.4) + 0.7))
    assert fit.degrees_of_freedom == 0
    assert fit.warnings[-1] == "as many parameters as sizes: no error bar is possible"
