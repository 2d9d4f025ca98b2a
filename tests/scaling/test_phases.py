"""Phases of curves whose transition is known."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.scaling.fit import fit_law
from lensllm_jax.scaling.phases import Phase, law_transition, segmented_transition
from tests.tolerances import assert_close

SIZES = 100.0 * 2.0 ** np.arange(10)


def curve(after, *, before=-0.02, kink=1600.0, noise=0.003, seed=0):
    x = np.log(SIZES / kink)
    slope = np.where(x < 0, before, after)
    return np.exp(slope * x + noise * np.random.default_rng(seed).standard_normal(len(x)))


def test_a_kink_is_found_where_it_is():
    kink = segmented_transition(SIZES, curve(-0.3), level=0.99)
    assert kink.phase is Phase.TRANSITION
    assert kink.low <= 1600.0 <= kink.high
    assert kink.high / kink.low < 2.0
    assert_close([kink.slope_before, kink.slope_after], [-0.02, -0.3], rel=0.05)  # noise


def test_a_line_has_no_kink_and_a_floor_is_no_power_phase():
    phases = [segmented_transition(SIZES, curve(-0.02, seed=s)).phase for s in range(40)]
    # the meeting point is searched, so that the F test finds more than its share of 0.1
    assert np.mean([phase is Phase.ONE for phase in phases]) > 0.6
    assert segmented_transition(SIZES, curve(-0.01, before=-0.3)).phase is Phase.FLATTENING


def test_intervals_of_the_kink_cover_it():
    kinks = [segmented_transition(SIZES, curve(-0.1, noise=0.02, seed=s)) for s in range(60)]
    assert np.mean([f.low <= 1600.0 <= f.high for f in kinks]) > 0.8


def test_sizes_that_were_not_measured_are_left_out_and_too_few_are_refused():
    losses = curve(-0.3)
    with_gaps = np.append(np.append(9.0, losses), np.nan)
    sizes = np.append(np.append(0.0, SIZES), 2 * SIZES[-1])
    assert segmented_transition(sizes, with_gaps) == segmented_transition(SIZES, losses)
    with pytest.raises(checks.UserError, match="6 or more"):
        segmented_transition(SIZES[:5], losses[:5])
    with pytest.raises(checks.UserError, match="`losses` must be positive"):
        segmented_transition(SIZES, -losses)


def test_the_transition_of_a_law_lies_in_its_interval():
    sizes = np.append(0.0, 200.0 * 2.0 ** np.arange(7))
    noise = np.exp(0.002 * np.array([1, -1, 1, 1, -1, -1, 1, -1]))
    fit = fit_law("rectified", sizes, (60.0 / (30.0 + sizes**0.5) + 1.0) * noise)
    transition = law_transition(fit, num_resamples=40)
    assert transition.low < transition.size < transition.high
    assert transition.low < 900.0 < transition.high  # 30^(1 / 0.5)
    # the slope of the excess loss is half of beta there
    power = transition.size ** fit.params["beta"]
    assert_close(power / (fit.params["D_l"] + power), 0.5, np.float64)
    with pytest.raises(checks.UserError, match="of law rectified, got power"):
        law_transition(fit_law("power", sizes[1:], sizes[1:] ** -0.5))
