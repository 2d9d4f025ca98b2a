"""The laws: identities between them, and the derivative written by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.scaling import laws
from tests.tolerances import assert_close

SIZES = np.array([0.0, 1.0, 200.0, 51200.0])
THETA = np.array([-0.3, 1.7, 0.4, 0.6, 1.3])


def at(theta, size, log_f=0.0, log_f_reference=0.0):
    with np.errstate(divide="ignore"):
        return [jnp.asarray(x) for x in (theta, np.log(size), np.log(3e3), log_f, log_f_reference)]


def test_every_law_is_a_case_of_the_log_loss(x64):
    a, delta, beta, E, alpha = THETA
    B = np.exp(a + np.logaddexp(delta, beta * np.log(3e3)))
    bracket = laws.rectified_law(SIZES, B=B, D_l=np.exp(delta), beta=beta, E=E)
    got = [jnp.exp(laws.log_loss(*at(THETA, size))) for size in SIZES]
    assert_close(got, bracket**alpha, jnp.float64)


def test_power_is_rectified_without_a_pre_power_phase_and_vanilla_with_alpha_one(x64):
    settings = {"B": 9.0, "beta": 0.3, "E": 1.1}
    sizes = SIZES[1:]
    power = laws.power_law(sizes, **settings)
    assert_close(laws.rectified_law(sizes, D_l=0.0, **settings), power, jnp.float64)
    assert_close(laws.vanilla_law(sizes, alpha=1.0, **settings), power, jnp.float64)
    assert not np.allclose(laws.rectified_law(sizes, D_l=1.0, **settings), power)


def test_lensllm_with_one_f_is_the_rectified_law(x64):
    rectified = laws.rectified_law(SIZES, B=9.0, D_l=4.0, beta=0.3, E=1.1)
    assert_close(laws.lensllm_law(SIZES, 4.0, B=9.0, beta=0.3, E=1.1), rectified, jnp.float64)


def test_kaplan_at_one_model_size_is_vanilla(x64):
    kaplan = laws.kaplan_law(
        np.full(3, 1e6), SIZES[1:], A=5.0, B=9.0, alpha_N=0.2, alpha_D=0.3, alpha=1.5
    )
    E = 5.0 / 1e6**0.2
    assert_close(kaplan, laws.vanilla_law(SIZES[1:], B=9.0, beta=0.3, E=E, alpha=1.5), jnp.float64)


@pytest.mark.parametrize("size", SIZES)
def test_gradient_by_hand_equals_automatic_differentiation(size, x64):
    arguments = at(THETA, size, 0.4, 0.1)
    value, gradient = laws.log_loss_gradient(*arguments)
    assert_close(gradient, jax.grad(laws.log_loss)(*arguments), jnp.float64)
    assert_close(value, laws.log_loss(*arguments), jnp.float64)
