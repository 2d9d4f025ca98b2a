"""The probes of a kernel: how much of its work runs, and what their seconds are multiplied with."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.ntk import timing
from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import blas, chunks, contractions, sweeps
from lensllm_jax.ntk.structured.gradients import Group, Lookup, Materialized, Outer
from lensllm_jax.ntk.timing import Probe
from tests.ntk import cases


def shape(*sizes, dtype=jnp.float32):
    return jax.ShapeDtypeStruct(sizes, dtype)


def outer(n=40, tokens=20, rows=64, columns=8):
    return Group((Outer(shape(n, 1, tokens, rows), shape(n, 1, tokens, columns)),), rows, columns)


@pytest.fixture
def probe(monkeypatch):
    """Probes whose calls take given seconds of a clock, and the order of the calls."""
    now, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(timing, "MOST_SECONDS", 100.0)

    def make(name, seconds, times=1, in_all=4.0):
        left = iter(seconds)

        def run():
            order.append(name)
            now[0] += next(left)

        return Probe(run, times, seconds=in_all)

    make.order = order
    return make


def test_rounds_are_interleaved_and_a_slow_one_counts_for_none(probe):
    # a second per round after a first call that does not count; a slow spell in the third round
    first = probe("a", [9.0, *[0.5, 0.7] * 2, 3.0, *[0.5, 0.7]], times=10)
    second = probe("b", [9.0, 2.0, 2.0, 8.0, 2.0])
    assert timing.estimate_seconds([first, second]) == pytest.approx(10 * 0.7 + 2.0)
    assert "".join(probe.order) == "ab" + "aab" * 2 + "ab" + "aab"


def test_a_call_after_those_of_another_probe_counts_only_where_it_is_long(probe):
    # the first call of a round fills it alone, four times as long as the others
    short = probe("a", [9.0, *[0.075, 0.019, 0.019, 0.019] * 4], in_all=0.2)
    long = probe("b", [9.0, *[0.3] * 4], in_all=0.2)
    assert timing.estimate_seconds([short, long]) == pytest.approx(0.019 + 0.3)
    assert "".join(probe.order) == "ab" + "aaaab" * 4


def test_long_calls_run_in_two_rounds(monkeypatch):
    now, calls = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: now[0])

    def run():
        calls.append(1)
        now[0] += timing.MOST_SECONDS

    seconds = timing.estimate_seconds([Probe(run, times=2)])
    assert len(calls) == 1 + 2  # the first one compiles
    assert seconds == 2 * timing.MOST_SECONDS


def test_a_short_call_is_repeated_until_the_probe_is_long_enough():
    calls = []

    def run():
        calls.append(time.sleep(0.004))

    assert timing.estimate_seconds([Probe(run, 1, seconds=0.1)]) >= 0.004
    assert timing.NUM_ROUNDS + 1 < len(calls) <= 1 + 0.1 / 0.004 + timing.NUM_ROUNDS


@pytest.mark.parametrize("num_calls", [1, 2, 99])
def test_some_calls_of_each_stage_with_two_chunks_of_examples_stand_for_all(monkeypatch, num_calls):
    case = cases.make("scanned transformer")
    program = sweeps.trace_program(case.f, case.params, case.x)
    monkeypatch.setattr(timing, "NUM_CALLS", num_calls)
    monkeypatch.setattr(chunks, "CHUNK_BYTES", 3 * program.schedule.peak_stage_bytes)
    ran = []
    monkeypatch.setattr(sweeps, "sweep_call", lambda number, *_: ran.append(number))

    def counted(n):
        """How many calls ran, and how many calls of how many chunks they stand for."""
        x = cases.first(case.x, np.arange(n) % 5)
        stands_for, ran[:] = 0.0, []
        for probe in timing.sweep_probes(program, jax.tree.leaves(case.params), jax.tree.leaves(x)):
            before = len(ran)
            probe.run()
            stands_for += probe.times * (len(ran) - before)
        return len(ran), stands_for

    # an embedding, two layers and a head
    assert counted(24) == (3 if num_calls == 1 else 4, 4 * 4.0)  # eight chunks of three
    assert counted(5)[1] == counted(3)[1] == 4.0


def test_shapes_are_filled_with_numbers():
    case = cases.make("scanned transformer")
    program = sweeps.trace_program(case.f, case.params, case.x)
    params, x = (
        [shape(*leaf.shape, dtype=leaf.dtype) for leaf in jax.tree.leaves(tree)]
        for tree in (case.params, case.x)
    )
    for probe in timing.sweep_probes(program, params, x):
        probe.run()


def times_of(groups):
    return [probe.times for probe in timing.gram_probes(groups, trace=True)]


def test_equal_parameters_are_probed_once_and_count_each():
    assert times_of([outer(), outer(), outer(rows=32)]) == [2, 1]


def test_parameters_of_hardly_any_operations_are_left_out():
    bias = Group((Materialized(shape(40, 1, 1, 8)),), 1, 8)
    large = outer(rows=4096, columns=256)
    assert times_of([large, bias]) == times_of([large])
    assert len(times_of([bias])) == 1  # alone it is all that there is


@pytest.mark.parametrize("by_blas", [True, False])
def test_the_rows_that_run_times_their_factor_are_all_rows(by_blas):
    least = contractions.LEAST_BLAS_VECTORS
    few, all_rows = (
        outer(n=least if by_blas else least - 1, tokens=40, rows=rows, columns=256)
        for rows in (64, 2**16)
    )
    assert contractions.is_by_blas_here(all_rows, trace=True) is by_blas
    (whole,), (part,) = (timing.gram_probes([group], trace=True) for group in (few, all_rows))
    assert whole.times == 1
    assert part.times > 1
    # entries of Grams of uniform numbers grow with the rows that are multiplied
    per_row = np.mean(np.asarray(whole.run())) / 64
    assert np.mean(np.asarray(part.run())) * part.times / 2**16 == pytest.approx(per_row, rel=0.05)
    assert np.mean(np.asarray(part.run())) / 2**16 < per_row / 2  # the part alone falls short


def test_the_pairwise_contraction_is_probed_whole():
    by_pairs = outer(tokens=1, rows=4096, columns=256)
    assert not contractions.is_materialized(by_pairs, None, trace=True)
    (probe,) = timing.gram_probes([by_pairs], trace=True)
    assert probe.times == 1
    assert probe.run().shape == (40, 40)


def test_rows_of_every_form_of_term_are_left_out_alike():
    n, k, rows, columns = 3, 2, 10, 4
    group = Group(
        (
            Outer(shape(n, k, 5, rows), shape(n, 1, 5, columns)),
            Lookup(shape(n, 50, dtype=jnp.int32), shape(n, k, 50, columns)),
            Materialized(shape(n, k, rows, columns)),
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
        blas.gram_materialized(few, None, trace=False),
        contractions.gram_materialized(jax.device_put(few), None, trace=False),
        rtol=1e-5,
    )


@pytest.mark.parametrize("num_vectors", [8, 128])
def test_one_layers_jacobian_stands_for_all_parameters(num_vectors):
    per_layer = timing.JACOBIAN_NUMBERS // num_vectors
    probe = timing.jacobian_probe(num_vectors, 3 * per_layer)
    assert probe.times == 3.0
    assert probe.run().shape == (num_vectors, num_vectors)


def test_a_small_contraction_is_probed_whole():
    case = cases.make("mlp, 3 outputs")
    probe = timing.kernel_probe(case.f, "JACOBIAN_CONTRACTION", case.params, case.x)
    assert probe.times == 1
    expected = empirical_ntk(case.f, case.params, case.x, method="jacobian_contraction")
    np.testing.assert_allclose(probe.run(), expected, rtol=1e-6)


def test_rates_are_those_of_products_measured_here():
    size, seconds = 512, []
    square = jnp.ones((size, size))
    product = jax.jit(lambda a: a @ a)
    for _ in range(20):
        start = time.perf_counter()
        jax.block_until_ready(product(square))
        seconds.append(time.perf_counter() - start)
    measured = 2 * size**3 / np.median(seconds[1:])
    # other processes may take half of the machine in between
    assert measured / 8 < np.median(timing.matmul_rates(size)) < 8 * measured
