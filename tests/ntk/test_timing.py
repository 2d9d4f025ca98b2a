"""What a trial runs, and what its seconds are multiplied with."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.ntk import cost, timing
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import blas, chunks, contractions, sweeps
from lensllm_jax.ntk.structured.contractions import Formed, Group, Lookup, Outer
from tests.ntk import cases


@pytest.fixture
def calls(monkeypatch):
    """Every part is run once and taken to last a second; what it gives is listed."""
    seen = []

    def once(parts):
        seen.extend(jax.block_until_ready(part.call()) for part in parts)
        return sum(part.times for part in parts)

    monkeypatch.setattr(timing, "seconds_of", once)
    return seen


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def outer(n=40, tokens=20, rows=64, columns=8):
    return Group((Outer(shape(n, 1, tokens, rows), shape(n, 1, tokens, columns)),), rows, columns)


def test_parts_take_turns_and_a_slow_round_counts_for_none(monkeypatch):
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def part(name, seconds, times):
        left = iter(seconds)

        def call():
            order.append(name)
            now[0] += next(left)

        return timing.Part(call, times, seconds=4.0)

    # a second a round after a first call that does not count; a slow spell in the third round
    first = part("a", [9.0, *[0.5, 0.7] * 2, 3.0, *[0.5, 0.7]], times=10)
    second = part("b", [9.0, 2.0, 2.0, 8.0, 2.0], times=1)
    assert timing.seconds_of([first, second]) == pytest.approx(10 * 0.6 + 2.0)
    assert "".join(order) == "ab" + "aab" * 2 + "ab" + "aab"


def test_a_short_call_is_repeated_until_the_trial_is_long_enough():
    count = []

    def call():
        count.append(time.sleep(0.004))

    assert timing.seconds_of([timing.Part(call, 1, seconds=0.1)]) >= 0.004
    assert timing.NUM_ROUNDS + 1 < len(count) <= 1 + 0.1 / 0.004 + timing.NUM_ROUNDS


def test_two_chunks_of_examples_pass_for_all(calls, monkeypatch):
    case = cases.make("scanned transformer")
    traced = sweeps.trace_program(case.f, case.params, case.x)
    of_one = max(call.stage.num_bytes for call in traced.schedule.calls)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3 * of_one)
    plans = []
    forward = sweeps.forward_sweep

    def seen(traced, leaves, examples, chunks):
        plans.append(chunks)
        return forward(traced, leaves, examples, chunks)

    monkeypatch.setattr(sweeps, "forward_sweep", seen)

    def seconds(n):
        few = cases.first(case.x, np.arange(n) % 5)
        return timing.seconds_of(
            [timing.passes(traced, jax.tree.leaves(case.params), jax.tree.leaves(few))]
        )

    assert seconds(24) == 4.0  # eight chunks of three
    assert seconds(5) == 1.0
    assert seconds(3) == 1.0
    assert [(p.size, p.chunk_size) for p in plans] == [(6, 3), (6, 3), (3, 3)]
    assert len(calls) == 3


def test_shapes_are_filled_with_numbers_that_pass(calls):
    case = cases.make("scanned transformer")
    of_shapes = jax.tree.map(lambda leaf: shape(*leaf.shape, dtype=leaf.dtype), case[1:])
    found = cost.ntk_cost(case.f, *of_shapes)
    assert found == cost.ntk_cost(case.f, case.params, case.x)
    assert found.seconds > 1.0  # the passes, and Grams
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(calls))


def test_weights_that_are_not_finite_are_named():
    case = cases.make("scanned transformer")
    broken = jax.tree.map(lambda leaf: leaf * np.nan, case.params)
    with pytest.raises(checks.UserError, match=r"the values of the layer of .* must be finite"):
        cost.ntk_cost(case.f, broken, case.x)
    with pytest.raises(checks.UserError, match=r"theta .* must be finite, got nan"):
        cost.ntk_cost(case.f, broken, case.x, method="jacobian_contraction")


def seconds_of_grams(groups):
    return timing.seconds_of(timing.grams(groups, trace=True))


def test_equal_parameters_are_tried_once_and_count_each(calls):
    few = [outer(), outer(), outer(rows=32)]
    assert seconds_of_grams(few) == 3.0
    assert len(calls) == 2


def test_parameters_of_hardly_any_operations_are_left_out(calls):
    bias = Group((Formed(shape(40, 1, 1, 8)),), 1, 8)
    large = outer(rows=4096, columns=256)
    assert seconds_of_grams([large, bias]) == seconds_of_grams([large])
    assert len(calls) == 2
    seconds_of_grams([bias])
    assert len(calls) == 3  # alone it is all that there is


@pytest.mark.parametrize("n", [blas.LEAST_VECTORS, blas.LEAST_VECTORS - 1])
def test_a_few_rows_stand_for_all(calls, monkeypatch, n):
    heights = []
    for module, name in ((blas, "gram_formed"), (contractions, "gram_formed")):
        gram = getattr(module, name)

        def seen(left, right, *, trace, gram=gram, module=module):
            heights.append((module, left.num_rows))
            return gram(left, right, trace=trace)

        monkeypatch.setattr(module, name, seen)
    group = outer(n=n, tokens=40, rows=2**16, columns=256)
    height = timing.NUM_PIECES * blas.num_workers() * contractions.piece_height(group, None)
    assert seconds_of_grams([group]) == 2**16 / height > 1
    assert heights == [(blas if n == blas.LEAST_VECTORS else contractions, height)]


def test_pairs_are_tried_whole(calls):
    by_pairs = outer(tokens=1, rows=4096, columns=256)
    assert not contractions.is_formed(by_pairs, None, trace=True)
    assert seconds_of_grams([by_pairs]) == 1.0
    assert calls[0].shape == (40, 40)


def test_rows_of_every_kind_of_term_are_cut():
    n, k, rows, columns = 3, 2, 10, 4
    group = Group(
        (
            Outer(shape(n, k, 5, rows), shape(n, 1, 5, columns)),
            Lookup(shape(n, 50, dtype=jnp.int32), shape(n, k, 50, columns)),
            Formed(shape(n, k, rows, columns)),
        ),
        rows,
        columns,
    )
    few = timing._filled(group, 6)
    assert few.num_rows == 6
    assert few.terms[0].rows.shape == (n, k, 5, 6)
    assert few.terms[2].values.shape == (n, k, 6, columns)
    ids = few.terms[1].ids
    assert ids.max() == 5
    assert ids.min() == -1
    assert np.mean(ids == -1) == pytest.approx(0.4, abs=0.15)  # tokens of the four other rows
    # it is a group like any other
    np.testing.assert_allclose(
        blas.gram_formed(few, None, trace=False),
        contractions.gram_formed(jax.device_put(few), None, trace=False),
        rtol=1e-5,
    )


@pytest.mark.parametrize("num_vectors", [8, 128])
def test_one_layers_jacobian_stands_for_all_parameters(calls, num_vectors):
    of_layer = timing.JACOBIAN_NUMBERS // num_vectors
    assert timing.seconds_of([timing.jacobian(num_vectors, 3 * of_layer)]) == 3.0
    assert calls[0].shape == (num_vectors, num_vectors)


def test_a_small_contraction_is_tried_whole(calls):
    case = cases.make("mlp, 3 outputs")
    assert timing.seconds_of([timing.contraction(case.f, case.params, case.x)]) == 1
    expected = empirical_ntk(case.f, case.params, case.x, method="jacobian_contraction")
    np.testing.assert_allclose(calls[0], expected, rtol=1e-6)


def test_the_rate_of_a_product_is_its_operations_over_the_seconds_of_each_call(monkeypatch):
    monkeypatch.setattr(timing, "_calls_seconds", lambda call, in_all: [0.5, 0.25])
    assert timing.matmul_rates(10) == [4000.0, 8000.0]
