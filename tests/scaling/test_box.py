"""The solver's form of the laws: against their formulas, its derivative, its box."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.scaling import laws
from lensllm_jax.scaling._theta import Theta, log_loss, log_loss_gradient, log_losses
from lensllm_jax.scaling.kernel import Bounded, Measured
from lensllm_jax.scaling.problem import FitProblem
from tests.tolerances import assert_close

SIZES = np.array([0.0, 1.0, 200.0, 51200.0])
THETA = Theta(a=-0.3, delta=1.7, beta=0.4, E=0.6, alpha=1.3)


def at(theta, size, log_f=0.0, log_f_reference=0.0):
    with np.errstate(divide="ignore"):
        return [
            jnp.asarray(x)
            for x in (theta.stack(), np.log(size), np.log(3e3), log_f, log_f_reference)
        ]


def test_every_law_is_a_case_of_the_log_loss(x64):
    B = np.exp(THETA.a + np.logaddexp(THETA.delta, THETA.beta * np.log(3e3)))
    bracket = laws.rectified_law(SIZES, B=B, D_l=np.exp(THETA.delta), beta=THETA.beta, E=THETA.E)
    got = [jnp.exp(log_loss(*at(THETA, size))) for size in SIZES]
    assert_close(got, bracket**THETA.alpha, jnp.float64)
    in_numpy = log_losses(THETA.stack()[None], SIZES, np.array([3e3]))
    assert_close(np.exp(in_numpy[0]), bracket**THETA.alpha, np.float64)


@pytest.mark.parametrize("size", SIZES)
def test_gradient_by_hand_equals_automatic_differentiation(size, x64):
    arguments = at(THETA, size, 0.4, 0.1)
    value, gradient = log_loss_gradient(*arguments)
    assert_close(gradient, jax.grad(log_loss)(*arguments), jnp.float64)
    assert_close(value, log_loss(*arguments), jnp.float64)


@pytest.mark.parametrize(
    ("law", "ntk", "free"),
    [
        ("power", None, ["a", "beta", "E"]),
        ("vanilla", None, ["a", "beta", "E", "alpha"]),
        ("rectified", None, ["a", "delta", "beta", "E"]),
        ("lensllm", Bounded(9.0), ["a", "delta", "beta", "E"]),
        ("lensllm", Measured(np.ones((2, 4))), ["a", "beta", "E"]),
        ("lensllm", Measured(np.ones((2, 4)), free_scale=True), ["a", "delta", "beta", "E"]),
    ],
)
def test_a_law_is_a_box_and_its_free_sides_are_its_parameters(law, ntk, free):
    fixed_floor = np.array([False, True])
    problem = FitProblem.checked(law, SIZES, np.ones((2, 4)), ntk=ntk, zero_floor=fixed_floor)
    is_free = problem.box.free._asdict()
    assert [name for name in Theta._fields if is_free[name][0]] == free
    assert [name for name in Theta._fields if is_free[name][1]] == [x for x in free if x != "E"]
    used = 3 if law in ("power", "vanilla") else 4  # they are infinite at D = 0
    expected = [used - len(free), used - len(free) + 1]
    assert problem.degrees_of_freedom.tolist() == expected
