"""A program partitioned at the steps of its loops."""

import functools

import jax
import jax.numpy as jnp

from lensllm_jax.ntk.structured import sweeps
from lensllm_jax.ntk.structured.gradients import Materialized
from tests.ntk import cases


def test_steps_of_a_loop_over_layers_are_calls_of_one_stage():
    case = cases.make("scanned transformer")
    calls = sweeps.trace_program(case.f, case.params, case.x).schedule.calls
    stages = [call.stage for call in calls]
    assert len(stages) == 2 + cases.LAYERS
    assert len(set(stages)) == 3
    assert calls[1].slots != calls[2].slots  # each its own slices


def test_parameters_cast_before_the_loop_stay_cheap():
    case = cases.make("scanned transformer")
    half = functools.partial(
        lambda f, p, x: f(jax.tree.map(lambda w: w.astype(jnp.bfloat16), p), x).astype(jnp.float32),
        case.f,
    )
    params = jax.tree.map(lambda w: w.astype(jnp.float32), case.params)
    calls = sweeps.trace_program(half, params, case.x).schedule.calls
    assert len({call.stage for call in calls}) == 3
    groups = sweeps.gradient_groups(half, params, case.x)
    assert not [n for n, g in groups if "kernel" in n and isinstance(g.terms[0], Materialized)]
