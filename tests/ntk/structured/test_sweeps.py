"""The structured kernel on every way in which a parameter may enter, and its negative controls."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from lensllm_jax import checks
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import blas, chunks, contractions, sweeps, taps
from lensllm_jax.ntk.structured.contractions import Group, Lookup, Outer
from lensllm_jax.ntk.structured.sweeps import gradient_groups
from tests import oracles
from tests.memory import temporary_bytes
from tests.ntk import cases
from tests.tolerances import assert_close, relative_difference


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


IDS = np.array([[0, 2, 2], [4, 1, 2], [3, 3, 3], [1, 0, 4]])


def use_bound(name):
    """What the program applies to a whole parameter; JAX knows its derivative, we need not."""
    return {
        "in a branch": lambda w, x: lax.cond(x[0, 0] > 0, lambda w: jnp.sin(w), lambda w: w**2, w),
        "with a derivative of its own": lambda w, x: _halved_gradient(w),
        "stopped": lambda w, x: w + lax.stop_gradient(w) * w,
        "in a product with itself": lambda w, x: w @ w.T,
        "sorted": lambda w, x: jnp.sort(w, axis=0),
    }[name]


@jax.custom_jvp
def _halved_gradient(w):
    return jnp.tanh(w)


@_halved_gradient.defjvp
def _(primals, tangents):
    return jnp.tanh(primals[0]), 0.5 * tangents[0]


# name -> (function of one parameter tree and a batch x, parameters, x)
PROGRAMS = {
    "two sides of one matrix": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T).sum((1, 2)),
        lambda: {"w": normal(0, 3, 5)},
        lambda: normal(1, 4, 2, 3),
    ),
    "matrix on the left": (
        lambda p, x: jnp.tanh(jnp.einsum("de,nse->nds", p["w"], x)).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    "heads as axes of the matrix": (
        lambda p, x: jnp.tanh(
            jnp.einsum("nshe,hed->nsd", jnp.tanh(jnp.einsum("nsd,dhe->nshe", x, p["in"])), p["out"])
        ).sum((1, 2)),
        lambda: {"in": normal(0, 3, 2, 4), "out": normal(1, 2, 4, 3)},
        lambda: normal(2, 4, 5, 3),
    ),
    "axes merged and parted again": (
        lambda p, x: jnp.tanh(
            x @ p["w"].reshape(3, 8) @ p["w"].reshape(3, 8).reshape(6, 4).reshape(3, 8).T
        ).sum((1, 2)),
        lambda: {"w": normal(0, 3, 2, 4)},
        lambda: normal(2, 4, 5, 3),
    ),
    "splits that disagree": (
        lambda p, x: (
            jnp.tanh(jnp.einsum("nsd,dhe->nshe", x, p["w"])).sum((1, 2, 3))
            + jnp.tanh(jnp.einsum("nsd,hde->nshe", x, p["w"])).sum((1, 2, 3))
        ),
        lambda: {"w": normal(0, 3, 3, 2)},
        lambda: normal(2, 4, 5, 3),
    ),
    "slices that overlap": (
        lambda p, x: (
            jnp.tanh(x @ p["w"][:, :4]).sum((1, 2)) + jnp.tanh(x @ p["w"][:, 2:]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "slices that do not": (
        lambda p, x: (
            jnp.tanh(x @ p["w"][:, :2]).sum((1, 2)) * jnp.tanh(x @ p["w"][:, 2:]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "a slice and the whole": (
        lambda p, x: jnp.tanh(x @ p["w"]).sum((1, 2)) + (x[:, :, 0] * p["w"][None, 0, :2]).sum(1),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "lookup": (
        lambda p, x: jnp.tanh(p["w"][x]).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3)},
        lambda: IDS,
    ),
    "lookup beyond the table, filled": (
        lambda p, x: jnp.tanh(
            p["w"].at[x + 2].get(mode="fill", fill_value=1.5)
            * p["v"].at[x + 2].get(mode="clip")
        ).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3), "v": normal(1, 5, 3)},
        lambda: IDS,
    ),
    "lookup and head of one table": (
        lambda p, x: jax.nn.logsumexp(jnp.tanh(p["w"][x] @ p["m"]) @ p["w"].T, axis=-1).sum(1),
        lambda: {"w": normal(0, 5, 3), "m": normal(1, 3, 3)},
        lambda: IDS,
    ),
    "two lookups and two heads of one table": (
        lambda p, x: (
            jax.nn.logsumexp(jnp.tanh(p["w"][x]) @ p["w"].T, axis=-1).sum(1)
            * jax.nn.logsumexp(jnp.sin(p["w"][x[:, ::-1]]) @ p["w"].T, axis=-1).sum(1)
        ),
        lambda: {"w": normal(0, 5, 3)},
        lambda: IDS,
    ),
    "lookup in the columns": (
        lambda p, x: (
            jnp.tanh(jnp.take(p["w"], x, axis=1)).sum((0, 2))
            + jnp.tanh(p["w"].T[x]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 5)},
        lambda: IDS,
    ),
    "lookup of a table of matrices": (
        lambda p, x: jnp.tanh(
            jnp.einsum("nsab,nsbc->nsac", p["w"][x], p["w"][x[:, ::-1]])
        ).sum((1, 2, 3)),
        lambda: {"w": normal(0, 5, 3, 3)},
        lambda: IDS,
    ),
    "loop over layers, forward and backward": (
        lambda p, x: lax.scan(
            lambda h, w: (jnp.tanh(h @ w), h.sum((1, 2))),
            lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"], reverse=True)[0],
            p["w"],
        )[1].sum(0),
        lambda: {"w": normal(0, 3, 4, 4)},
        lambda: normal(1, 4, 2, 4),
    ),
    "one matrix in every step of a loop": (
        lambda p, x: lax.scan(
            lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=3
        )[0].sum((1, 2)),
        lambda: {"w": normal(0, 4, 4)},
        lambda: normal(1, 4, 2, 4),
    ),
    "parameter as a loop's first state": (
        lambda p, x: lax.scan(lambda h, y: (jnp.tanh(h * y), None), p["w"], x[0])[0].sum()[None],
        lambda: {"w": normal(0, 4)},
        lambda: normal(1, 4, 3, 4),
    ),
    "product of two parameters": (
        lambda p, x: jnp.tanh(x @ (p["base"] + p["a"] @ p["b"])).sum((1, 2)),
        lambda: {"base": normal(0, 3, 4), "a": normal(1, 3, 2), "b": normal(2, 2, 4)},
        lambda: normal(3, 4, 2, 3),
    ),
    "batched product": (
        lambda p, x: jnp.tanh(jnp.einsum("nse,seo->nso", x, p["w"])).sum((1, 2)),
        lambda: {"w": normal(0, 2, 3, 5)},
        lambda: normal(1, 4, 2, 3),
    ),
    "scalar, and one that is never used": (
        lambda p, x: jnp.tanh(p["scale"] * x).sum((1, 2)),
        lambda: {"scale": jnp.asarray(0.7), "idle": normal(0, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    "axes of length one": (
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]).sum((1, 2)),
        lambda: {"w": normal(0, 1, 5), "b": normal(1, 1, 1)},
        lambda: normal(2, 4, 2, 1),
    ),
    "parameter that is an output": (
        lambda p, x: jnp.broadcast_to(p["w"][None], (x.shape[0], 3)),
        lambda: {"w": normal(0, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    **{
        name: (
            lambda p, x, name=name: jnp.tanh(
                x @ jax.vmap(lambda one: use_bound(name)(p["w"], one))(x)
            ).sum((1, 2)),
            lambda: {"w": normal(0, 3, 3)},
            lambda: normal(1, 4, 2, 3),
        )
        for name in (
            "in a branch",
            "with a derivative of its own",
            "stopped",
            "in a product with itself",
            "sorted",
        )
    },
}  # fmt: skip


@pytest.fixture(params=["xla", "blas"])
def multiplied_by(request, monkeypatch):
    """What multiplies the gradients, whatever their number."""
    monkeypatch.setattr(blas, "LEAST_VECTORS", 1 if request.param == "blas" else 10**9)
    sweeps._are_shapes_for_blas.cache_clear()
    yield request.param
    sweeps._are_shapes_for_blas.cache_clear()


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


def kinds(f, params, x):
    """Kinds of the uses in the program of one example."""
    leaves = jax.tree.leaves(params)
    structure = jax.tree.structure(params)
    program = jax.make_jaxpr(lambda w, x: f(jax.tree.unflatten(structure, w), x))(leaves, x)
    recorded = []
    jax.eval_shape(lambda: recorded.extend(taps.run(program, leaves, [x])[1]))
    return sorted(tap.kind.value for tap in recorded)


def test_cheap_uses_are_recognised():
    for name, expected in {
        "heads as axes of the matrix": ["outer", "outer"],
        "axes merged and parted again": ["outer", "outer"],
        "lookup and head of one table": ["lookup", "outer", "outer"],
        "lookup in the columns": ["lookup", "whole"],
        "loop over layers, forward and backward": ["outer"] * 6,
        "slices that overlap": ["outer", "outer"],
        "product of two parameters": ["whole"] * 3,
        "stopped": ["whole", "whole", "whole"],
    }.items():
        f, make_params, make_x = PROGRAMS[name]
        assert kinds(f, make_params(), make_x()[:1]) == expected, name


def test_no_large_parameter_of_a_transformer_is_differentiated_whole():
    case = cases.make("scanned and rematerialised")
    whole = [
        (name, group)
        for name, group in gradient_groups(case.f, case.params, case.x)
        if any(isinstance(term, contractions.Formed) for term in group.terms)
    ]
    assert max(g.num_rows * g.num_columns for _, g in whole) <= 6 * 8  # position table
    assert not any("kernel" in name or "embedding" in name for name, _ in whole)


def test_dropping_a_cross_term_of_a_tied_table_fails(x64):
    f, make_params, make_x = PROGRAMS["lookup and head of one table"]
    params, x = make_params(), make_x()
    groups = [group for _, group in gradient_groups(f, params, x)]
    (tied,) = [g for g in groups if len(g.terms) == 2]
    exact = oracles.dense_kernel(f, params, x)

    def kernel(groups):
        return sum(np.asarray(contractions.gram(group, None, trace=False)) for group in groups)

    assert_close(kernel(groups), exact)
    apart = [Group((term,), tied.num_rows, tied.num_columns) for term in tied.terms]
    without = kernel([*(g for g in groups if g is not tied), *apart])
    assert relative_difference(without, exact) > 1e-3


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_both_contractions_are_the_same(x64, monkeypatch, k, trace):
    left = cases.random_group(jax.random.key(0), 5, k, 7, 2)
    right = cases.random_group(jax.random.key(1), 4, k, 7, 2)
    dense = [sum(np.asarray(contractions.whole_term(t, 7)) for t in g.terms) for g in (left, right)]
    for other, matrix in ((right, dense[1]), (None, dense[0])):
        expected = np.einsum("iarc,jbrc->ijab", dense[0], matrix)
        expected = np.einsum("ijaa->ij", expected) if trace else expected
        # whole, in pieces that divide the rows, in pieces that leave a rest, one row at a time
        monkeypatch.setattr(contractions, "LEAST_PIECE_OF_ONE", 1)
        for piece_size in (10**6, 5 * k * 2 * 3, 1):
            monkeypatch.setattr(contractions, "PIECE_SIZE", piece_size)
            got = jax.jit(functools.partial(contractions.gram_formed, trace=trace))(left, other)
            assert_close(got, expected)
            for workers in (1, 2, 3):
                monkeypatch.setattr(blas, "num_workers", lambda workers=workers: workers)
                assert_close(blas.gram_formed(left, other, trace=trace), expected)
        for pair_size in (10**6, 1):
            monkeypatch.setattr(contractions, "PAIR_SIZE", pair_size)
            got = jax.jit(functools.partial(contractions.gram_pairwise, trace=trace))(left, other)
            assert_close(got, expected)


def test_term_of_a_lookup_counts_repeated_ids_and_leaves_out_negative_ones():
    lookup = Lookup(jnp.array([[1, 1, -1, 0]]), jnp.array([[[[1.0], [10.0], [100.0], [1000.0]]]]))
    assert contractions.whole_term(lookup, 3)[0, 0, :, 0].tolist() == [1000.0, 11.0, 0.0]


def test_pairs_turn_no_factor_round_in_memory():
    """The rows of a tied head are the largest array of a kernel: one number a token and word."""
    n, t, words = 8, 4, 20_000
    head = Outer(jnp.ones((n, 1, t, words)), jnp.ones((n, 1, t, 8)))
    lookup = Lookup(jnp.ones((n, t), int), jnp.ones((n, 1, t, 8)))
    group = Group((head, lookup), words, 8)
    bytes_of_rows = 4 * n * t * words
    for other in (None, group):
        pairs = functools.partial(contractions.gram_pairwise, trace=True)
        assert temporary_bytes(pairs, group, other) < bytes_of_rows / 4

    def of_many_axes(rows):
        return jax.vmap(lambda one: jnp.einsum("atr,mbsr->atmbs", one, rows))(rows)

    assert temporary_bytes(of_many_axes, head.rows) > bytes_of_rows / 2


def test_two_terms_of_one_group_meet_once():
    group = cases.random_group(jax.random.key(0), 5, 1, 7, 2)
    once = contractions.pairwise_flops(group, None, trace=True)
    both_ways = contractions.pairwise_flops(group, group, trace=True)
    with_themselves = sum(
        contractions.pairwise_flops(Group((term,), 7, 2), None, trace=True) for term in group.terms
    )
    assert both_ways - once == once - with_themselves > 0


def test_one_term_at_two_places_counts_as_two():
    (term, *_) = cases.random_group(jax.random.key(0), 5, 1, 7, 2).terms
    alone, twice = Group((term,), 7, 2), Group((term, term), 7, 2)
    for contraction in (contractions.gram_formed, contractions.gram_pairwise, blas.gram_formed):
        once = contraction(alone, None, trace=True)
        assert_close(contraction(twice, None, trace=True), 4 * once)  # |2 G|^2


def test_the_cheaper_contraction_is_taken():
    def group(n, t, r, c):
        outer = Outer(jnp.ones((n, 1, t, r)), jnp.ones((n, 1, t, c)))
        return Group((outer,), r, c)

    # 2 n m t^2 (r + c) against 2 n t r c + 2 n m r c: short texts and wide layers go by pairs
    wide, narrow = group(8, 2, 64, 64), group(8, 32, 8, 8)
    for g, pairs_are_cheaper in ((wide, True), (narrow, False)):
        pairwise, formed = (
            count(g, None, trace=True)
            for count in (contractions.pairwise_flops, contractions.formed_flops)
        )
        assert (pairwise < formed) is pairs_are_cheaper
        other = contractions.gram_formed if pairs_are_cheaper else contractions.gram_pairwise
        assert_close(contractions.gram(g, None, trace=True), other(g, None, trace=True))


def test_a_loop_too_long_to_write_out_is_still_exact(x64, monkeypatch):
    f, make_params, make_x = PROGRAMS["one matrix in every step of a loop"]
    g, make_stacked, make_inputs = PROGRAMS["loop over layers, forward and backward"]
    written_out = empirical_ntk(f, make_params(), make_x())
    stacked = empirical_ntk(g, make_stacked(), make_inputs())
    monkeypatch.setattr(taps, "MAX_UNROLLED_STEPS", 2)
    assert kinds(f, make_params(), make_x()[:1]) == ["whole"]
    # new function objects: programs are compiled once a function
    assert_close(empirical_ntk(lambda p, x: f(p, x), make_params(), make_x()), written_out)
    assert_close(empirical_ntk(lambda p, x: g(p, x), make_stacked(), make_inputs()), stacked)


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


def test_jitted_and_remat_functions_are_looked_into():
    f, make_params, make_x = PROGRAMS["lookup and head of one table"]
    for wrapped in (jax.jit(f), jax.checkpoint(f), jax.jit(jax.checkpoint(jax.jit(f)))):
        assert kinds(wrapped, make_params(), make_x()[:1]) == ["lookup", "outer", "outer"]


def test_steps_of_a_loop_over_layers_are_calls_of_one_stage():
    case = cases.make("scanned transformer")
    calls = sweeps.trace_program(case.f, case.params, case.x).schedule.calls
    stages = [call.stage for call in calls]
    assert len(stages) == 2 + cases.LAYERS
    assert len(set(stages)) == 3
    assert calls[1].slots != calls[2].slots  # each its own slices


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
    hungriest = max(call.stage.num_bytes for call in traced.schedule.calls)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 2 * hungriest)
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
    # each alone: the kernel of f with all other parameters held fixed
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
    assert not [
        n for n, g in groups if "kernel" in n and isinstance(g.terms[0], contractions.Formed)
    ]


def test_a_stage_that_no_parameter_enters_is_passed_over(x64):
    def deep(w, x):  # the state that the loop starts from is the example itself
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0].sum(1)

    w, x = normal(0, 3, 2, 2), normal(1, 4, 2)
    assert_close(empirical_ntk(deep, w, x), oracles.dense_kernel(deep, w, x)[:, :, 0, 0])


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
