"""The search of a rate: a walk down a ladder, and steps that are compiled once for all rates."""

import math

import jax
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from lensllm_jax.finetune.rates import LADDER, LORA_LADDER, downhill, first_rung
from tests.finetune import tiny
from tests.tolerances import assert_close


@pytest.mark.parametrize("best", range(len(LADDER)))
@pytest.mark.parametrize("start", range(len(LADDER)))
def test_the_lowest_of_one_valley_is_found_from_anywhere(best, start):
    found = downhill(lambda rate: abs(math.log(rate / LADDER[best])), LADDER, start=start)
    assert min(found, key=found.get) == LADDER[best]
    assert len(found) <= 3 + abs(best - start)
    assert {LADDER[i] for i in (best - 1, best + 1) if 0 <= i < len(LADDER)} <= {*found}


def test_rates_that_diverge_lead_down_the_ladder():
    def loss(rate):
        return math.inf if rate > 1e-4 else -math.log(rate)

    found = downhill(loss, LADDER, start=5)
    assert min(found, key=found.get) == 1e-4
    with pytest.raises(checks.UserError, match="must be lower than 1e-05"):
        downhill(lambda rate: math.inf, LADDER, start=3)


def test_the_first_rate_falls_with_the_number_of_parameters():
    sizes = (656_448, 135e6, 7e9)
    assert [LADDER[first_rung(n)] for n in sizes] == [1e-3, 1e-4, 1e-5]
    assert pytest.approx([10 * rate for rate in LADDER]) == LORA_LADDER


def test_another_rate_is_not_compiled_again_and_trains_as_its_own_loop():
    config = OptimizerConfig(learning_rate=1e-3, warmup_steps=1)
    loop, calls, compiled = Loop(tiny.apply_fn, config, shift=True), tiny.calls(3, 4), []

    def listen(event, *_, **__):
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    slow, _ = tiny.trained(loop, tiny.params(), calls)
    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        fast, _ = tiny.trained(loop.at(1e-2), tiny.params(), calls)
        assert compiled == []
        fresh = Loop(tiny.apply_fn, OptimizerConfig(learning_rate=1e-2, warmup_steps=1), shift=True)
        own, _ = tiny.trained(fresh, tiny.params(), calls)
        assert compiled  # else the count would prove nothing
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    for a, b, c in zip(*map(jax.tree.leaves, (fast, own, slow)), strict=True):
        assert_close(a, b, "float32")
        assert np.abs(np.asarray(a) - np.asarray(c)).max() > 1e-3  # control
