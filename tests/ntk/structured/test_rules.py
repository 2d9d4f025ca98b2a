"""The table of cheap forms: complete for the JAX that is installed, and refused where unknown."""

import jax
import jax.numpy as jnp
import pytest
from jax import lax

from lensllm_jax.ntk.structured import taps

W, A, IDS = jnp.ones((4, 3)), jnp.ones((2, 4)), jnp.zeros((2, 1), int)
ROWS = lax.GatherDimensionNumbers((1,), (0,), (0,))
SAMPLES = {
    "transpose": lambda w: w.T,
    "reshape": lambda w: lax.reshape(w, (12,)),
    "squeeze": lambda w: lax.squeeze(w[:, :1], (1,)),
    "broadcast_in_dim": lambda w: lax.broadcast_in_dim(w, (1, 4, 3), (1, 2)),
    "convert_element_type": lambda w: w.astype(jnp.bfloat16),
    "slice": lambda w: lax.slice(w, (1, 0), (3, 2)),
    "dot_general": lambda w: A @ w,
    "gather": lambda w: lax.gather(w, IDS, ROWS, (1, 3), mode="clip"),
}
REFUSED = {
    "reshape": lambda w: lax.reshape(w, (12,), (1, 0)),
    "convert_element_type": lambda w: w.astype(jnp.float8_e5m2),
    "slice": lambda w: lax.slice(w, (0, 0), (4, 2), (2, 1)),
    "dot_general": lambda w: lax.dot_general(A + 0j, w, (((1,), (0,)), ((), ()))),
    "transpose": lambda w: (w + 0j).T,
    "squeeze": lambda w: lax.squeeze(w.astype(int)[:, :1], (1,)),
    "broadcast_in_dim": lambda w: lax.broadcast_in_dim(w[:0], (1, 0, 3), (1, 2)),
    "gather": lambda w: lax.gather(w, IDS, ROWS, (1, 3), mode=lax.GatherScatterMode.ONE_HOT),
}


def equation(f, name):
    return next(e for e in jax.make_jaxpr(f)(W).eqns if e.primitive.name == name)


def test_every_rule_has_a_sample_and_a_refusal():
    assert SAMPLES.keys() == REFUSED.keys() == taps.RULES.keys()


@pytest.mark.parametrize("name", SAMPLES)
def test_every_setting_of_the_installed_jax_is_known(name):
    found = equation(SAMPLES[name], name)
    assert found.params.keys() == taps.RULES[name].settings.keys()
    assert taps.rule_of(found) is taps.RULES[name]


@pytest.mark.parametrize("name", SAMPLES)
def test_a_new_setting_takes_the_cheap_form_away(name):
    found = equation(SAMPLES[name], name)
    newer = found.replace(params={**found.params, "a_setting_of_tomorrow": None})
    assert taps.rule_of(newer) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_a_rule_does_not_understand_is_differentiated_whole(name):
    try:
        found = equation(REFUSED[name], name)
    except NotImplementedError:  # a mode that JAX has not written yet
        return
    assert taps.rule_of(found) is None


def test_operations_on_what_has_no_cheap_form_are_none_of_a_table():
    assert taps.rule_of(equation(jnp.sin, "sin")) is None
