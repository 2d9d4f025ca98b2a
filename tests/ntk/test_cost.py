"""What a kernel is said to cost, against counts by hand and what it then does."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.checkpoints.zoo import load_candidate
from lensllm_jax.ntk import cost as ntk_costs
from lensllm_jax.ntk import timing
from lensllm_jax.ntk.candidate import estimate_ntk_cost
from lensllm_jax.ntk.cost import largest_block_size, ntk_cost
from lensllm_jax.ntk.gram import empirical_ntk
from tests.ntk import cases


def linear(w, x):
    return (x @ w).sum(1)


def test_operations_of_a_linear_map_are_those_counted_by_hand():
    n, r, c = 4, 30, 20
    cost = ntk_cost(linear, jnp.ones((r, c)), jnp.ones((n, r)), timed=False)
    forward = 2 * r * c
    # one stage: it is not recomputed, and pulled back once
    passes = n * forward * 2
    pairs = 2 * n * n * (r + c) + 2 * n * n  # one token: by pairs is cheaper
    assert cost.flops == passes + pairs
    assert cost.seconds is None


def test_loops_over_layers_count_each_layer():
    def deep(w, x):
        return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].sum(1)

    def flops(layers):
        return ntk_cost(deep, jnp.ones((layers, 6, 6)), jnp.ones((3, 6)), timed=False).flops

    assert flops(8) - flops(4) == flops(12) - flops(8) > 0


def test_bytes_grow_with_examples():
    case = cases.make("scanned transformer")
    few, many = (
        ntk_cost(case.f, case.params, cases.first(case.x, np.arange(n) % 5), timed=False)
        for n in (4, 400)
    )
    assert few.bytes < many.bytes


def test_seconds_are_those_of_the_parts(monkeypatch):
    case = cases.make("mlp, 3 outputs")
    n, k = len(case.x), 3
    num_params = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    groups = []

    def of_grams(found, *, trace):
        groups.extend(found)
        return [] if trace else [part(30.0), part(10.0)]

    def part(times):
        return timing.Part(lambda: None, times)

    monkeypatch.setattr(timing, "passes", lambda *_: part(5.0))
    monkeypatch.setattr(timing, "grams", of_grams)
    monkeypatch.setattr(timing, "jacobian", lambda n, p: part(1000.0 * n + p))
    monkeypatch.setattr(timing, "contraction", lambda *_: part(7.0))
    monkeypatch.setattr(timing, "seconds_of", lambda parts: sum(part.times for part in parts))
    monkeypatch.setattr(timing, "matmul_rates", lambda size: [1.0, 2.0, 1000.0])

    def cost(method):
        return ntk_cost(case.f, case.params, case.x, method=method)

    assert cost("structured").seconds == 45.0
    whole = sum(group.num_rows * group.num_columns for group in groups)
    assert whole == num_params
    assert cost("jacobian_contraction").seconds == 7.0
    monkeypatch.setattr(timing, "WHOLE_NUMBERS", n * k * num_params - 1)
    # 1 + 2 k passes as dear as a forward one where the structured sweeps have 2 + k
    contraction = 5.0 * (1 + 2 * k) / (2 + k) + 1000.0 * n * k + num_params
    assert cost("jacobian_contraction").seconds == contraction
    products = cost("ntk_vector_products")
    assert products.seconds == products.flops / 2.0


def test_contraction_holds_the_jacobian_more_than_once_and_grows_with_it():
    case = cases.make("scanned transformer")
    num_params = sum(leaf.size for leaf in jax.tree.leaves(case.params))

    def held_over_jacobian(n):
        few = cases.first(case.x, np.arange(n) % 5)
        cost = ntk_cost(case.f, case.params, few, method="jacobian_contraction", timed=False)
        itemsize = jax.tree.leaves(case.params)[0].dtype.itemsize
        return (cost.bytes - ntk_costs.COMPILER_BYTES) / (n * num_params * itemsize)

    few, many = held_over_jacobian(16), held_over_jacobian(64)
    assert 2 < few < 6
    assert many == pytest.approx(few, rel=0.1)  # activations beside the Jacobian do not matter


def test_vector_products_cost_more_operations_the_more_pairs():
    w = jnp.ones((30, 20))
    few, many = (
        ntk_cost(linear, w, jnp.ones((n, 30)), method="ntk_vector_products", timed=False)
        for n in (4, 8)
    )
    assert many.flops == 4 * few.flops
    assert many.bytes > few.bytes


def test_largest_block_fits_and_the_next_does_not():
    case = cases.make("scanned transformer")
    x = cases.first(case.x, np.arange(4000) % 5)

    def needed(block):
        few = cases.first(x, np.arange(block))
        return 2 * ntk_cost(case.f, case.params, few, timed=False).bytes

    budget = needed(700)
    block = largest_block_size(case.f, case.params, x, memory_budget=budget)
    assert needed(block) <= budget < needed(block + 1)
    assert largest_block_size(case.f, case.params, x, memory_budget=1e12) == 4000


def test_a_budget_for_less_than_one_example_says_the_least_that_works():
    case = cases.make("scanned transformer")
    with pytest.raises(checks.UserError, match=r"`memory_budget` must be at least .* bytes"):
        largest_block_size(case.f, case.params, case.x, memory_budget=1000)
    with pytest.raises(checks.UserError, match="`memory_budget` must be at least"):
        empirical_ntk(case.f, case.params, case.x, memory_budget=1000)


def test_a_memory_budget_chooses_the_block_and_not_the_kernel():
    case = cases.make("scanned transformer")
    least = (
        2.01 * ntk_cost(case.f, case.params, cases.first(case.x, slice(0, 2)), timed=False).bytes
    )
    small = empirical_ntk(case.f, case.params, case.x, memory_budget=least)
    np.testing.assert_allclose(small, empirical_ntk(case.f, case.params, case.x), rtol=1e-5)


def test_batch_shape_must_be_positive():
    with pytest.raises(checks.UserError, match="`batch_shape`"):
        estimate_ntk_cost(load_candidate("zoo/gpt2-xs"), (0, 4))
