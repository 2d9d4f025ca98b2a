"""The estimated cost of a kernel, against counts by hand and measured seconds."""

import time

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
from lensllm_jax.ntk.structured.sweeps import gradient_groups
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


def test_every_number_of_the_parameters_is_in_a_group():
    case = cases.make("mlp, 3 outputs")
    groups = gradient_groups(case.f, case.params, case.x)
    num_params = sum(leaf.size for leaf in jax.tree.leaves(case.params))
    assert sum(group.num_rows * group.num_columns for _, group in groups) == num_params


def test_shapes_cost_what_their_arrays_cost():
    case = cases.make("scanned transformer")
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), case[1:])
    of_shapes, of_arrays = (
        ntk_cost(case.f, *arguments, timed=False) for arguments in (shapes, case[1:])
    )
    assert of_shapes == of_arrays


def layers(params, x):
    """Four dense layers of 192 units on 32 tokens per example."""
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params)[0].sum((1, 2))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "whole_numbers"),
    [
        ("structured", None),
        ("jacobian_contraction", 2**40),  # probed whole
        ("jacobian_contraction", 0),  # probed by parts
        ("ntk_vector_products", None),
    ],
)
def test_estimated_runtime_bounds_the_measured_one(monkeypatch, method, whole_numbers):
    if whole_numbers is not None:
        monkeypatch.setattr(timing, "WHOLE_NUMBERS", whole_numbers)
    n = 8 if method == "ntk_vector_products" else 96
    params = jax.random.normal(jax.random.key(0), (4, 192, 192)) / 16
    x = jax.random.normal(jax.random.key(1), (n, 32, 192))
    empirical_ntk(layers, params, x, method=method)  # compiles
    estimated = ntk_cost(layers, params, x, method=method).seconds
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        empirical_ntk(layers, params, x, method=method)
        seconds.append(time.perf_counter() - start)
    # products of two vectors are estimated from a large product's rate alone; and the tests run
    # several at a time
    factor = 8 if method == "ntk_vector_products" else 3
    assert min(seconds) / factor < estimated < factor * max(seconds)
    if method == "structured":  # the bounds separate kernels of other sizes
        fewer = ntk_cost(layers, params, x[:4], method=method).seconds
        assert fewer < min(seconds) / factor


@pytest.mark.parametrize("method", ["structured", "jacobian_contraction"])
def test_weights_that_are_not_finite_stop_the_probes(method):
    case = cases.make("scanned transformer")
    broken = jax.tree.map(lambda leaf: leaf * np.nan, case.params)
    with pytest.raises(checks.UserError, match="must be finite, got"):
        ntk_cost(case.f, broken, case.x, method=method)
    ntk_cost(case.f, broken, case.x, method=method, timed=False)  # reads no number


def test_contraction_holds_the_jacobian_more_than_once_and_grows_with_it():
    case = cases.make("scanned transformer")
    num_params = sum(leaf.size for leaf in jax.tree.leaves(case.params))

    def bytes_over_jacobian(n):
        few = cases.first(case.x, np.arange(n) % 5)
        cost = ntk_cost(case.f, case.params, few, method="jacobian_contraction", timed=False)
        itemsize = jax.tree.leaves(case.params)[0].dtype.itemsize
        return (cost.bytes - ntk_costs.COMPILER_BYTES) / (n * num_params * itemsize)

    few, many = bytes_over_jacobian(16), bytes_over_jacobian(64)
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


def test_tiles_off_the_diagonal_sweep_both_sides():
    w, x = jnp.ones((3, 1)), jnp.ones((2, 3))
    linear = lambda w, x: (x @ w)[:, 0]  # noqa: E731
    one, two = (ntk_cost(linear, w, x[:n], timed=False) for n in (1, 2))
    # a diagonal tile: 12 for the sweeps, 6 for a gradient, 6 for its square; off it 24, 12 and 6
    tiled = ntk_cost(linear, w, x, block_size=1, timed=False)
    assert (one.flops, tiled.flops) == (24, 2 * 24 + 42)
    assert tiled.bytes == 2 * one.bytes
    assert ntk_cost(linear, w, x, block_size=2, timed=False) == two
    assert tiled.flops > two.flops
