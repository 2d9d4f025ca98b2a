"""The laws: identities between them."""

import jax.numpy as jnp
import numpy as np

from lensllm_jax.scaling import laws
from tests.tolerances import assert_close

SIZES = np.array([0.0, 1.0, 200.0, 51200.0])


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


def test_a_law_names_its_parameters_and_each_has_a_unit():
    assert {law.value: len(law.parameters) for law in laws.Law} == {
        "power": 3,
        "vanilla": 4,
        "rectified": 4,
        "lensllm": 4,
    }
    assert all(name in laws.UNITS for law in laws.Law for name in law.parameters)
