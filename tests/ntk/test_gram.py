"""The kernel by every method against dense Jacobians, finite differences and its own laws."""

import fnmatch
import functools
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.ntk.gram import (
    NtkMethod,
    OutputReduction,
    empirical_ntk,
    parameter_group_ntk,
    tiles,
)
from lensllm_jax.ntk.structured import sweeps
from tests import oracles
from tests.ntk import cases
from tests.tolerances import assert_close, relative_difference

METHODS = list(NtkMethod)
BRIDGED = [method for method in NtkMethod if method is not NtkMethod.STRUCTURED]


@functools.cache
def _made(name, x64):
    case = cases.make(name)
    theta = oracles.dense_kernel(case.f, case.params, case.x)
    return case, theta if theta.shape[2] > 1 else theta[:, :, 0, 0]


def make(name):
    """A case in the float type that JAX is set to, made once a type."""
    return _made(name, jax.config.jax_enable_x64)[0]


def expected(name):
    """Its kernel by dense Jacobians: (n, m) for one output, (n, m, k, k) for more."""
    return _made(name, jax.config.jax_enable_x64)[1]


@pytest.mark.parametrize(
    ("name", "method"),
    [(name, NtkMethod.STRUCTURED) for name in cases.CASES]
    # compiling neural-tangents' transformers takes most of a minute each
    + [(name, method) for name in ("mlp, 3 outputs", "tied transformer") for method in BRIDGED],
)
def test_kernel_equals_product_of_dense_jacobians(x64, name, method):
    case = make(name)
    theta = empirical_ntk(case.f, case.params, case.x, method=method)
    assert theta.dtype == np.float64
    assert_close(theta, expected(name))


@pytest.mark.parametrize(
    ("name", "method"),
    [("tied transformer", NtkMethod.STRUCTURED)] + [("mlp, 3 outputs", m) for m in METHODS],
)
def test_kernel_in_the_suites_own_precision(name, method):
    case = make(name)
    assert_close(empirical_ntk(case.f, case.params, case.x, method=method), expected(name))


def test_dense_jacobian_equals_central_finite_differences(x64):
    for name in ("mlp, 3 outputs", "tied transformer"):
        case = make(name)
        assert_close(
            oracles.dense_jacobian(case.f, case.params, case.x),
            oracles.finite_difference_jacobian(case.f, case.params, case.x),
            rel=1e-8,  # the truncation and rounding of the difference itself, about 1e-10 each
        )


@pytest.mark.parametrize(
    ("name", "method"),
    [("scanned transformer", NtkMethod.STRUCTURED)] + [("mlp, 3 outputs", m) for m in METHODS],
)
def test_rectangular_kernel(x64, method, name):
    case = make(name)
    x1, x2 = cases.first(case.x, slice(0, 2)), cases.first(case.x, slice(1, 5))
    theta = empirical_ntk(case.f, case.params, x1, x2, method=method)
    assert_close(theta, expected(name)[0:2, 1:5])


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("block_size", [1, 3, 7])
def test_block_size_changes_nothing(x64, method, block_size):
    case = make("mlp, 3 outputs")
    whole = empirical_ntk(case.f, case.params, case.x, method=method)
    blocked = empirical_ntk(case.f, case.params, case.x, method=method, block_size=block_size)
    assert_close(blocked, whole)
    x2 = cases.first(case.x, slice(0, 3))
    rectangle = empirical_ntk(case.f, case.params, case.x, x2, method=method, block_size=block_size)
    assert_close(rectangle, whole[:, :3])


@pytest.mark.parametrize("method", METHODS)
def test_reductions_are_the_sum_and_the_mean_over_equal_outputs(x64, method):
    case = make("mlp, 3 outputs")
    full = expected("mlp, 3 outputs")
    trace = np.einsum("ijaa->ij", full)
    for reduction, wanted in (("none", full), ("sum", trace), ("mean", trace / 3)):
        theta = empirical_ntk(
            case.f, case.params, case.x, method=method, output_reduction=reduction
        )
        assert_close(theta, wanted)
    assert relative_difference(trace, trace / 3) > 0.5  # the two reductions do differ


@pytest.mark.parametrize("method", METHODS)
def test_reduction_of_a_single_output_is_that_output(x64, method):
    case = make("mlp")
    for reduction in OutputReduction:
        theta = empirical_ntk(
            case.f, case.params, case.x, method=method, output_reduction=reduction
        )
        assert_close(theta, expected("mlp"))


@pytest.mark.parametrize("method", METHODS)
def test_kernel_is_symmetric_semidefinite_and_permutes_with_its_examples(x64, method):
    case = make("mlp")

    # one shape, so that one program serves all examples that hypothesis draws
    @settings(max_examples=15, deadline=None)
    @given(st.integers(0, 2**30), st.permutations(range(5)))
    def check(seed, order):
        x = jax.random.normal(jax.random.key(seed), (5, 3))
        theta = empirical_ntk(case.f, case.params, x, method=method)
        assert_close(theta, theta.T)
        eigenvalues = np.linalg.eigvalsh(theta)
        assert eigenvalues[0] >= -1e-12 * eigenvalues[-1]
        permuted = empirical_ntk(case.f, case.params, x[np.array(order)], method=method)
        assert_close(permuted, theta[np.ix_(order, order)])

    check()


@pytest.mark.parametrize("method", METHODS)
def test_symmetry_of_many_outputs_swaps_examples_and_outputs_together(x64, method):
    case = make("mlp, 3 outputs")
    theta = empirical_ntk(case.f, case.params, case.x, method=method, block_size=2)
    assert_close(theta, theta.transpose(1, 0, 3, 2))
    assert relative_difference(theta, theta.transpose(1, 0, 2, 3)) > 1e-3  # not examples alone


@pytest.mark.parametrize("method", METHODS)
def test_second_call_compiles_nothing(method, caplog):
    case = make("mlp")
    f = lambda params, x: case.f(params, x)  # noqa: E731

    def compiled():
        caplog.clear()
        with jax.log_compiles():
            empirical_ntk(f, case.params, case.x, method=method)
        return [r for r in caplog.records if "Finished XLA compilation" in r.getMessage()]

    assert compiled()
    assert not compiled()


def test_tiles_cover_half_of_a_symmetric_kernel_once():
    for n, block in ((1, 1), (5, 2), (6, 3), (4, 9)):
        count = np.zeros((n, n), int)
        for tile in tiles(n, n, block_size=block, symmetric=True):
            count[tile.rows, tile.columns] += 1
        assert np.all(np.maximum(count, count.T) == 1)
        assert np.all(count[np.triu_indices(n)] == 1)


def test_bad_input_is_refused_with_the_remedy():
    w, x = jnp.ones((3, 2)), jnp.ones((4, 3))
    f = lambda w, x: x @ w  # noqa: E731
    for message, call in {
        "`method` must be one of": lambda: empirical_ntk(f, w, x, method="fast"),
        "`output_reduction` must be": lambda: empirical_ntk(f, w, x, output_reduction="trace"),
        "`block_size` must be positive": lambda: empirical_ntk(f, w, x, block_size=0),
        "common leading axis": lambda: empirical_ntk(f, w, {"a": x, "b": x[:2]}),
        "`x2` must be a pytree like": lambda: empirical_ntk(f, w, x, {"a": x}),
        "read-out first": lambda: empirical_ntk(lambda w, x: (x @ w)[..., None], w, x),
        "`params` must hold floating": lambda: empirical_ntk(f, jnp.ones((3, 2), int), x),
        "at least one array": lambda: empirical_ntk(lambda _, x: x, {}, x),
        "must be finite": lambda: empirical_ntk(lambda w, x: jnp.log(x @ w - 3), w, x),
    }.items():
        with pytest.raises(UserError, match=message):
            call()


def test_a_store_changes_no_bit_and_resumes(tmp_path, monkeypatch):
    case = cases.make("scanned transformer")
    in_memory = empirical_ntk(case.f, case.params, case.x, block_size=2)
    stored = empirical_ntk(case.f, case.params, case.x, block_size=2, store=tmp_path / "tiles")
    assert stored.tobytes() == in_memory.tobytes()
    monkeypatch.setattr(sweeps, "structured_ntk", None)  # computing a tile now fails
    again = empirical_ntk(case.f, case.params, case.x, block_size=2, store=tmp_path / "tiles")
    assert again.tobytes() == in_memory.tobytes()
    with pytest.raises(UserError, match="block_size"):
        empirical_ntk(case.f, case.params, case.x, block_size=3, store=tmp_path / "tiles")


def test_residuals_change_nothing_but_what_is_kept(x64, monkeypatch):
    case, kept, kernel = make("mlp, 3 outputs"), [], sweeps.structured_ntk

    def recorded(*args, resources, **settings):
        kept.append(resources.kept_bytes)
        return kernel(*args, resources=resources, **settings)

    monkeypatch.setattr(sweeps, "structured_ntk", recorded)
    for options in (
        {"residuals": "recompute"},
        {"residuals": "keep"},
        {},
        {"memory_budget": 1e9},
        {"memory_budget": 1e9, "residuals": "recompute"},
    ):
        theta = empirical_ntk(case.f, case.params, case.x, **options)
        assert_close(theta, expected("mlp, 3 outputs"))
    assert kept[:3] + kept[4:] == [0, np.inf, 0, 0]
    assert 1e8 < kept[3] < 1e9  # what the budget leaves


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_groups_of_parameters_add_up_to_the_kernel(x64, reduction):
    case = cases.make("mlp, 3 outputs")
    parts = parameter_group_ntk(
        case.f, case.params, case.x, case.x[:2],
        group_of=lambda path: path.split("']['")[1], output_reduction=reduction,
    )  # fmt: skip
    assert set(parts) == {"Dense_0", "Dense_1", "Dense_2", "LayerNorm_0"}
    whole = empirical_ntk(case.f, case.params, case.x, case.x[:2], output_reduction=reduction)
    assert_close(sum(parts.values()), whole)
    only = {"params": {"Dense_2": case.params["params"]["Dense_2"]}}
    rest = case.params["params"]
    alone = empirical_ntk(
        lambda w, x: case.f({"params": {**rest, **w["params"]}}, x), only, case.x, case.x[:2],
        output_reduction=reduction,
    )  # fmt: skip
    assert_close(parts["Dense_2"], alone)


@pytest.mark.parametrize(
    ("name", "parameters", "method"),
    [
        ("mlp, 3 outputs", "params/Dense_2/kernel", NtkMethod.STRUCTURED),
        ("mlp, 3 outputs", "params/Dense_2/kernel", NtkMethod.JACOBIAN_CONTRACTION),
        ("scanned transformer", "*/embedding, */blocks/*/bias", NtkMethod.STRUCTURED),
    ],
)
def test_some_parameters_have_the_kernel_of_a_function_that_closes_over_the_rest(
    x64, name, parameters, method
):
    case = make(name)
    globs = [glob.strip() for glob in parameters.split(",")]
    flat, tree = jax.tree.flatten_with_path(case.params)
    paths = [jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in flat]
    leaves = dict(zip(paths, (leaf for _, leaf in flat), strict=True))
    chosen = {p: leaves[p] for p in paths if any(fnmatch.fnmatch(p, glob) for glob in globs)}
    assert 0 < len(chosen) < len(leaves)

    def alone(chosen, x):
        return case.f(jax.tree.unflatten(tree, list({**leaves, **chosen}.values())), x)

    theta = empirical_ntk(case.f, case.params, case.x, parameters=parameters, method=method)
    wanted = oracles.dense_kernel(alone, chosen, case.x)
    assert_close(theta, wanted if wanted.shape[2] > 1 else wanted[:, :, 0, 0])
    assert relative_difference(theta, expected(name)) > 1e-3  # that of all is another
    if method is NtkMethod.STRUCTURED:
        parts = parameter_group_ntk(
            case.f, case.params, case.x, group_of=lambda path: path, parameters=parameters
        )
        assert_close(sum(parts.values()), theta)


def test_parameters_that_f_does_not_use_have_a_kernel_of_zeros():
    f = lambda p, x: x @ p["w"]  # noqa: E731
    p, x = {"idle": jnp.ones(3), "w": jnp.ones(2)}, jnp.eye(2)
    assert not empirical_ntk(f, p, x, parameters="idle").any()
    parts = parameter_group_ntk(f, p, x, group_of=lambda path: path, parameters="idle")
    assert {name: theta.tolist() for name, theta in parts.items()} == {"['idle']": [[0, 0]] * 2}


def test_a_store_tells_kernels_of_other_parameters_apart(tmp_path):
    case = cases.make("mlp")
    for parameters, fits in ((None, True), ("*/bias", False)):
        with nullcontext() if fits else pytest.raises(UserError, match="parameters=None there"):
            empirical_ntk(case.f, case.params, case.x, store=tmp_path, parameters=parameters)
