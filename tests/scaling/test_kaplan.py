"""Eq 1 over a family: recovery, prediction of a size never measured, refusals."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.scaling.kaplan import fit_kaplan
from lensllm_jax.scaling.solution import FitStatus
from tests.scaling.curves import SIZES
from tests.tolerances import assert_close

FIT_TOLERANCE = 1e-6  # the objective is flat to its square near the optimum


def test_kaplan_needs_two_model_sizes():
    fit = fit_kaplan(np.array([1e6, 1e6]), SIZES[1:], np.ones((2, 10)))
    assert fit.status is FitStatus.UNDERDETERMINED
    assert np.isnan(fit.params["A"])


def test_kaplan_recovers_a_family_and_predicts_a_size_that_it_never_saw():
    num_params = np.array([1e6, 4e6, 2e7, 1e8])
    truth = {"A": 9.0, "alpha_N": 0.1, "B": 20.0, "alpha_D": 0.3, "alpha": 0.8}
    bracket = truth["A"] / num_params[:, None] ** truth["alpha_N"]
    bracket = bracket + truth["B"] / SIZES[None, 1:] ** truth["alpha_D"]
    losses = bracket ** truth["alpha"]
    measured = losses.copy()
    measured[3, 4:] = np.nan  # the largest candidate was fine-tuned on little data only
    fit = fit_kaplan(num_params, SIZES[1:], measured)
    assert fit.status is FitStatus.CONVERGED
    assert_close([fit.params[k] for k in truth], list(truth.values()), rel=1e-3)  # flat valley
    assert_close(fit.predict(num_params, SIZES[1:])[3], losses[3], rel=FIT_TOLERANCE)
    assert fit.params.keys() == fit.units.keys()


def test_kaplan_refuses_a_loss_below_zero():
    with pytest.raises(checks.UserError, match="`losses` must be positive"):
        fit_kaplan(np.array([1e6, 1e7]), SIZES[1:], -np.ones((2, 10)))
