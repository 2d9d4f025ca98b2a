"""The structured kernel on every way in which a parameter may enter."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lensllm_jax import checks
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import chunks, contractions, sweeps
from tests import oracles
from tests.ntk import cases
from tests.ntk.structured.programs import PROGRAMS, normal
from tests.tolerances import assert_close, relative_difference


@pytest.fixture(params=["xla", "blas"])
def multiplied_by(request, monkeypatch):
    """What multiplies the gradients, whatever their number."""
    monkeypatch.setattr(contractions, "LEAST_BLAS_VECTORS", 1 if request.param == "blas" else 10**9)
    contractions._all_shapes_by_blas.cache_clear()
    yield request.param
    contractions._all_shapes_by_blas.cache_clear()


@pytest.mark.parametrize("name", PROGRAMS)
def test_kernel_of_every_way_to_use_a_parameter_equals_brute_force(x64, multiplied_by, name):
    f, make_params, make_x = PROGRAMS[name]
    params, x = make_params(), make_x()
    if name == "parameter as a loop's first state":
        # its examples are not independent as a batch; one at a time they are
        f = functools.partial(lambda g, p, x: jax.vmap(lambda one: g(p, one[None])[0])(x), f)
    expected = oracles.dense_kernel(f, params, x)
    expected = expected if expected.shape[2] > 1 else expected[:, :, 0, 0]
    assert np.max(np.abs(expected)) > 0
    assert_close(empirical_ntk(f, params, x), expected)
    assert_close(empirical_ntk(f, params, x, x[1:3]), expected[:, 1:3])


def test_padding_an_example_changes_nothing(x64):
    case = cases.make("scanned transformer")
    before = empirical_ntk(case.f, case.params, case.x)
    short = {key: value[:, :5] for key, value in case.x.items()}
    padded = {
        "input_ids": np.pad(short["input_ids"], ((0, 0), (0, 1)), constant_values=7),
        "attention_mask": np.pad(short["attention_mask"], ((0, 0), (0, 1))),
        "labels": np.pad(short["labels"], ((0, 0), (0, 1)), constant_values=-100),
    }
    a = empirical_ntk(case.f, case.params, short)
    assert_close(empirical_ntk(case.f, case.params, padded), a)
    assert relative_difference(a, before) > 1e-6  # the cut itself did change something


@pytest.mark.parametrize(
    "name",
    ["loop over layers, forward and backward", "one matrix in every step of a loop"],
)
def test_chunks_and_symmetric_tiles_change_nothing(x64, monkeypatch, name):
    f, make_params, make_x = PROGRAMS[name]
    params, x = make_params(), make_x()
    expected = oracles.dense_kernel(f, params, x)[:, :, 0, 0]
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 1)  # one example at a time
    monkeypatch.setattr(contractions, "SYMMETRIC_TILE", 2)
    # a new function object: programs are compiled once a function
    assert_close(empirical_ntk(lambda p, x: f(p, x), params, x), expected)


def test_chunks_that_do_not_divide_the_examples_are_filled_up(x64, monkeypatch):
    case = cases.make("scanned transformer")
    expected = empirical_ntk(case.f, case.params, case.x)
    traced = sweeps.trace_program(case.f, case.params, case.x)
    n = len(case.x["input_ids"])
    assert n % 2, "the case must leave a rest"
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * traced.schedule.peak_stage_bytes)
    again = empirical_ntk(lambda p, x: case.f(p, x), case.params, case.x)
    assert again.shape == expected.shape
    assert_close(again, expected)


def test_shares_of_the_parameters_are_their_own_kernels(x64):
    case = cases.make("scanned transformer")
    total, names = 0.0, []
    for share in sweeps.kernel_by_parameter(case.f, case.params, case.x, trace=True):
        names += share.names
        total = total + np.asarray(share.theta).sum(0)
    assert len(names) == len(set(names))
    assert_close(total, empirical_ntk(case.f, case.params, case.x))
    # each alone: the kernel of f with all other parameters fixed
    shares = {
        name: theta
        for share in sweeps.kernel_by_parameter(case.f, case.params, case.x, trace=True)
        for name, theta in zip(share.names, np.asarray(share.theta), strict=True)
    }
    weights = case.params["params"]

    def alone(positions, x):
        return case.f({"params": {**weights, "positions": positions}}, x)

    one = empirical_ntk(alone, weights["positions"], case.x)
    assert_close(shares["['params']['positions']"], one)


@pytest.mark.parametrize("step", [0, 1])
def test_a_number_that_is_not_finite_stops_with_the_layer(multiplied_by, step):
    case = cases.make("scanned transformer")
    params = jax.tree.map(np.array, case.params)
    params["params"]["blocks"]["Dense_0"]["kernel"][step, 0, 0] = np.nan
    with pytest.raises(checks.UserError, match=rf"\['blocks'\].*\[{step}\].*finite"):
        empirical_ntk(case.f, params, case.x)


def test_a_function_without_parameters_has_a_kernel_of_zeros():
    x = jnp.ones((3, 2))
    theta = empirical_ntk(lambda params, x: x.sum(1), {"unused": jnp.ones(2)}, x)
    assert theta.tolist() == np.zeros((3, 3)).tolist()


def test_a_stage_that_no_parameter_enters_is_passed_over(x64):
    def deep(w, x):  # the state that the loop starts from is the example itself
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].sum(1)

    w, x = normal(0, 3, 2, 2), normal(1, 4, 2)
    assert_close(empirical_ntk(deep, w, x), oracles.dense_kernel(deep, w, x)[:, :, 0, 0])


def test_layers_before_the_chosen_parameters_are_passed_over(monkeypatch):
    swept, backward = [], sweeps._backward
    monkeypatch.setattr(
        sweeps,
        "_backward",
        lambda *args, **settings: swept.append(1) or backward(*args, **settings),
    )

    def f(p, x):
        layers = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x + p["first"][None], p["w"])
        return layers[0] @ p["last"]

    p = {"first": jnp.ones(2), "w": normal(0, 3, 2, 2), "last": jnp.ones(2)}
    counts = {}
    for parameters in ("*", "w", "last"):
        swept.clear()
        empirical_ntk(f, p, jnp.eye(2), parameters=parameters)
        counts[parameters] = len(swept)
    assert counts == {"*": 5, "w": 4, "last": 1}  # before the layers, three of them, behind them


@pytest.mark.parametrize("kept", ["nothing", "one layer", "all"])
def test_kept_products_are_not_computed_again(x64, kept):
    """Counted where a product is multiplied; one chunk after another, with three outputs."""
    p = {"w": normal(0, 3, 4, 4), "out": normal(1, 4, 3)}

    def f(p, x):
        h = jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x[:, 0] + x[:, 1], p["w"])[0]
        return h @ p["out"]

    x = normal(2, 4, 2, 4)
    program, leaves = sweeps.trace_program(f, p, x), jax.tree.leaves(p)
    plan = chunks.Plan(4, 2, None)
    layer_bytes = 4 * 4 * 8  # h @ w of four examples
    kept_bytes = {"nothing": 0, "one layer": 2 * layer_bytes - 1, "all": np.inf}[kept]
    block = sweeps.forward_sweep(program, leaves, [x], plan, kept_bytes=kept_bytes)
    num_kept = sum(bool(products) for products in block.products.values())
    assert num_kept == {"nothing": 0, "one layer": 1, "all": 3}[kept]
    for number, products in block.products.items():  # what is kept is what is read
        block.products[number] = [jnp.full_like(product, jnp.nan) for product in products]
    terms = [side for _, (side,) in sweeps.backward_sweep(leaves, [block])]
    spoilt = any(np.isnan(leaf).any() for leaf in jax.tree.leaves(terms))
    assert spoilt == (kept != "nothing")
    resources = chunks.Resources(None, kept_bytes)
    theta = sweeps.structured_ntk(f, p, x, trace=False, resources=resources)
    assert_close(theta, oracles.dense_kernel(f, p, x))


def test_bfloat16_activations_add_up_in_float32():
    case = cases.make("scanned transformer")
    single = jax.tree.map(lambda w: w.astype(jnp.float32), case.params)

    def half(params, x):
        low = jax.tree.map(lambda w: w.astype(jnp.bfloat16), params)
        return case.f(low, x).astype(jnp.float32)

    exact = empirical_ntk(case.f, single, case.x)
    rounded = empirical_ntk(half, single, case.x)
    assert rounded.dtype == np.float32
    # bfloat16 keeps 8 bits: 2^-8 a rounding, a few of them in a row
    assert 1e-5 < relative_difference(rounded, exact) < 0.1


@pytest.mark.parametrize("chunk_size", [4, 1])
def test_terms_that_read_the_same_states_share_one_array(chunk_size):
    def f(p, x):
        q, k = x @ p["q"], x @ p["k"]
        return jnp.tanh(q * k + (2 * x) @ p["v"]).sum((1, 2))

    params = {name: normal(i, 3, 5) for i, name in enumerate("qkv")}
    x = normal(3, 4, 2, 3)
    program = sweeps.trace_program(f, params, x)
    leaves = jax.tree.leaves(params)
    block = sweeps.forward_sweep(program, leaves, [x], chunks.Plan(4, chunk_size, None))
    ((keys, (side,)),) = sweeps.backward_sweep(leaves, [block])
    states = {
        program.names[leaf]: placed.term.rows
        for (leaf, _), (placed,) in zip(keys, side, strict=True)
    }
    assert states["['q']"] is states["['k']"]
    assert states["['q']"] is not states["['v']"]  # which reads others
    assert_close(states["['q']"][:, 0], x)
