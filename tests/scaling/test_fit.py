"""Fits: exact recovery, never worse than the published algorithm, honest about failure."""

import jax
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.scaling.fit import fit_law, fit_laws
from lensllm_jax.scaling.kernel import Bounded, Measured, Spectrum
from lensllm_jax.scaling.solution import FitStatus
from lensllm_jax.selection.loss_table import read_loss_table
from tests import oracles
from tests.scaling.curves import NOISE, SIZES
from tests.selection.tables import BUDGET_FRACTIONS, TABLES
from tests.tolerances import assert_close

FIT_TOLERANCE = 1e-6  # of parameters: the objective is flat to its square near the optimum


@pytest.mark.parametrize(
    ("law", "truth"),
    [
        ("power", {"B": 9.0, "beta": 0.3, "E": 0.7}),
        ("vanilla", {"B": 9.0, "beta": 0.3, "E": 0.7, "alpha": 1.6}),
        ("rectified", {"B": 90.0, "beta": 0.4, "E": 0.7, "D_l": 20.0}),
        ("lensllm", {"B": 90.0, "beta": 0.4, "E": 0.7, "F": 20.0}),
    ],
)
def test_exact_losses_give_back_their_parameters(law, truth):
    bracket = truth["B"] / (
        truth.get("D_l", truth.get("F", 0.0)) + np.maximum(SIZES, 1e-300) ** truth["beta"]
    )
    losses = (bracket + truth["E"]) ** truth.get("alpha", 1.0)
    weights = np.ones_like(SIZES)
    if law in ("power", "vanilla"):
        losses[0], weights[0] = 1.0, 0.0
    fit = fit_law(law, SIZES, losses, weights=weights)
    assert fit.status is FitStatus.CONVERGED
    assert fit.params.keys() == truth.keys() == fit.units.keys()
    # vanilla's four parameters trade against each other: sizes over three decades fix them less
    rel = 1e-3 if law == "vanilla" else FIT_TOLERANCE
    assert_close([fit.params[k] for k in truth], list(truth.values()), rel=rel)


def test_measured_f_is_another_law_than_a_constant_f():
    ntk_loss = np.linspace(50.0, 5.0, len(SIZES))
    losses = 80.0 / (ntk_loss + SIZES**0.4) + 0.9
    fit = fit_law("lensllm", SIZES, losses, ntk=Measured(ntk_loss))
    assert fit.ntk.free_scale is False
    assert_close([fit.params[k] for k in ("B", "beta", "E")], [80.0, 0.4, 0.9], rel=FIT_TOLERANCE)
    assert fit_law("rectified", SIZES, losses).log_rmse > 100 * fit.log_rmse
    with pytest.raises(checks.UserError, match="fit with `Spectrum`"):
        fit.predict(np.array([1e6]))


def test_a_free_scale_finds_the_factor_before_a_measured_f():
    ntk_loss = np.linspace(50.0, 5.0, len(SIZES))
    losses = 80.0 / (ntk_loss + SIZES**0.4) + 0.9
    tiny = ntk_loss * 1e-9  # another unit of the same F
    fit = fit_law("lensllm", SIZES, losses, ntk=Measured(tiny, free_scale=True))
    assert "up to one fitted factor" in fit.message
    assert_close([fit.params[k] for k in ("B", "beta", "E")], [80.0, 0.4, 0.9], rel=FIT_TOLERANCE)
    assert_close(fit.params["scale"], 1e9, rel=FIT_TOLERANCE)
    assert_close(fit.predict(SIZES, ntk_loss=tiny), losses, rel=FIT_TOLERANCE)
    # as it stands, that F is no pre-power phase at all
    assert fit_law("lensllm", SIZES, losses, ntk=Measured(tiny)).log_rmse > 100 * fit.log_rmse


def test_lensllm_with_one_free_t_is_the_rectified_law_with_a_bound():
    losses = (90.0 / (20.0 + SIZES**0.4) + 0.7) * NOISE
    rectified = fit_law("rectified", SIZES, losses)
    wide = NtkSpectrum(np.array([1e-4, 1.0]), np.array([900.0, 100.0]), 0.01)
    fit = fit_law("lensllm", SIZES, losses, ntk=Spectrum(wide))
    assert_close(fit.params["F"], rectified.params["D_l"], rel=1e-4)  # flat near the optimum
    assert_close(fit.objective, rectified.objective, rel=1e-8)  # squares of residuals of 1e-2
    assert_close(wide.loss(np.array(fit.params["t"])), fit.params["F"], rel=FIT_TOLERANCE)
    # the bound |f0 - y|^2 = 4 forbids D_l = 20: the fit is worse, and says why
    tight = NtkSpectrum(np.array([1.0]), np.array([4.0]), 0.01)
    bounded = fit_law("lensllm", SIZES, losses, ntk=Spectrum(tight))
    assert_close(bounded.params["F"], 4.0, rel=FIT_TOLERANCE)
    assert bounded.objective > rectified.objective
    assert "bound" in bounded.message


def test_without_a_kernel_f_is_a_free_number_under_a_bound():
    fit = fit_law("lensllm", SIZES, 90.0 / (20.0 + SIZES**0.4) + 0.7)
    assert fit.ntk == Bounded(SIZES[-1])
    assert "no kernel given" in fit.message
    bounded = fit_law("lensllm", SIZES, 90.0 / (20.0 + SIZES**0.4) + 0.7, ntk=Bounded(4.0))
    assert_close(bounded.params["F"], 4.0, rel=FIT_TOLERANCE)


def test_huber_ignores_the_outlier_that_squares_follow():
    clean = 90.0 / (20.0 + SIZES**0.4) + 0.7
    losses = clean.copy()
    losses[5] *= 1.5
    robust = fit_law("rectified", SIZES, losses, huber_delta=1e-3)
    squares = fit_law("rectified", SIZES, losses)
    target = np.array([1e6])
    truth = 90.0 / (20.0 + target**0.4) + 0.7
    assert abs(robust.predict(target) / truth - 1) < 0.01 < abs(squares.predict(target) / truth - 1)


def test_the_same_input_gives_the_same_bits_alone_or_in_a_batch():
    losses = np.stack([(k / (20.0 + SIZES**0.4) + 0.7) * NOISE for k in (70.0, 90.0)])
    batch = fit_laws("rectified", SIZES, losses)
    again = fit_laws("rectified", SIZES, losses)
    np.testing.assert_array_equal(batch.theta, again.theta)
    alone = fit_law("rectified", SIZES, losses[1])
    np.testing.assert_array_equal(batch.theta[1], alone.solution.theta[0])


def test_fits_are_float64_and_leave_the_global_setting_alone():
    before = jax.config.jax_enable_x64
    assert fit_law("rectified", SIZES, 9.0 / (3.0 + SIZES**0.4)).solution.theta.dtype == np.float64
    assert jax.config.jax_enable_x64 == before


@pytest.mark.parametrize("fraction", [1, *BUDGET_FRACTIONS[::3]])
@pytest.mark.parametrize("task", ["flan", "gigaword"])
def test_never_worse_than_the_published_algorithm(task, fraction):
    table = read_loss_table(TABLES[task])
    sizes = table.sizes[table.sizes <= table.sizes[-1] // fraction].astype(np.float64)
    # every curve is checked by `python -m benchmarks.fits`; here every fifth, to stay fast
    losses = table.losses[::5, : len(sizes)]
    theirs = [oracles.rectified_fit_by_surrogate(sizes, row) for row in losses]
    ours = fit_laws("rectified", np.maximum(sizes, 1e-10), losses)  # their D = 0
    exact = fit_laws("rectified", sizes, losses)
    for i, (params, objective) in enumerate(theirs):
        assert ours.objective[i] / len(sizes) <= objective + 1e-9
        at_zero = oracles.rectified_objective(sizes, losses[i], *params)
        assert exact.objective[i] / len(sizes) <= at_zero + 1e-9


def test_mean_log_rmse_of_the_full_curves_reaches_the_published_one():
    for task, published in (("flan", 0.014), ("gigaword", 0.0064)):
        table = read_loss_table(TABLES[task])
        fits = fit_laws("rectified", table.sizes, table.losses)
        assert set(fits.statuses) == {FitStatus.CONVERGED}
        assert fits.log_rmse.mean() <= published


def test_fewer_sizes_than_parameters_is_a_status_and_no_number():
    fit = fit_law("rectified", SIZES[:3], np.array([3.0, 2.0, 1.9]))
    assert fit.status is FitStatus.UNDERDETERMINED
    assert np.isnan(fit.predict(np.array([1e5]))).all()
    assert np.isnan(fit.params["B"])
    assert "fewer sizes" in fit.message


@pytest.mark.parametrize(
    ("sizes", "losses", "message"),
    [
        ([0, 200, 400], [3.0, -1.0, 1.0], "`losses` must be positive"),
        ([0, 200, 400], [3.0, 0.0, 1.0], "`losses` must be positive"),
        ([0, 200, 400], [3.0, np.nan, 1.0], "`losses` must be positive"),
        ([0, 400, 200], [3.0, 2.0, 1.0], "ascending"),
        ([0, 200, 200], [3.0, 2.0, 1.0], "ascending"),
        ([-1, 200, 400], [3.0, 2.0, 1.0], "ascending"),
        ([0], [3.0], "the last above 0"),
    ],
)
def test_bad_input_is_one_clear_error(sizes, losses, message):
    with pytest.raises(checks.UserError, match=message):
        fit_law("rectified", np.array(sizes), np.array(losses))


def test_a_rising_curve_is_fitted_flat_not_upwards():
    fit = fit_law("rectified", SIZES, np.linspace(1.0, 2.0, len(SIZES)))
    assert np.ptp(fit.predict(np.array([200.0, 1e6]))) < 1e-3


@pytest.mark.parametrize("unit", [1 / np.log(2), 1e3, 1e-6])
@pytest.mark.parametrize("law", ["vanilla", "power", "rectified", "lensllm"])
def test_a_prediction_is_the_same_in_every_unit(law, unit):
    sizes = np.array([200, 400, 800, 1600, 3200])
    losses = np.array([3.1, 2.8, 2.55, 2.4, 2.3])
    far = np.array([51200.0])
    nats, other = (fit_law(law, sizes, losses * x).predict(far)[0] / x for x in (1.0, unit))
    np.testing.assert_allclose(other, nats, rtol=1e-7)


def test_a_fit_whose_bracket_is_far_below_one_has_a_message():
    losses = np.array([0.651, 0.601, 0.549, 0.499, 0.457, 0.422])
    fit = fit_law("vanilla", np.array([200, 400, 800, 1600, 3200, 6400]), losses)
    assert "alpha is not identified" in fit.message
    tiny = fit_law("vanilla", np.array([200, 400, 800, 1600]), np.full(4, 1e-300))
    assert tiny.message
