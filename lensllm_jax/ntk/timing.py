r"""Timing: the runtime of a kernel, estimated from probes of it that run here and now.

No single figure says how fast a processor is at the small products, copies and norms of a model; so
probes run the kernel's own code on a fraction of its work:

.. math:: T = \sum_i m_i \, t_i

where probe i takes :math:`t_i` seconds and the kernel has :math:`m_i` times its work:

* of each stage a few calls of ``structured``'s sweeps, of two chunks of examples, for all;
* of each kind of parameter a few rows of its Gram, of all n examples, for all its rows;
* the tracing of the function, whole, which is much of a small kernel.

Of neural-tangents' contraction the sweeps are probed in the same way, and of its Jacobians one
layer with as many gradients, materialized and contracted; where all its Jacobians are small, the
whole.  The runtime of its products with vectors is operations over the rate of a matrix product.

Example:
    >>> estimate_seconds([Probe(lambda: sum(range(1000)), times=3.0, seconds=0.01)]) > 0
    True
"""

import collections
import functools
import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import padding
from lensllm_jax.ntk import neural_tangents
from lensllm_jax.ntk.structured import blas, contractions, sweeps
from lensllm_jax.ntk.structured.chunks import Plan, make_plan
from lensllm_jax.ntk.structured.gradients import (
    Group,
    Lookup,
    Materialized,
    Outer,
    Term,
    row_block_height,
)
from lensllm_jax.typing import ApplyFn, Params

# Rounds are interleaved: a shared machine has slow spells of a second, and a probe that ran in one
# of them alone would count for the whole kernel.
NUM_ROUNDS = 4
# After so many seconds two rounds do: calls of large models are long, and vary little.
MOST_SECONDS = 4.0
# How long a probe is repeated in all rounds, in seconds.
PROBE_SECONDS = 0.2
# How long the product of ``matmul_rates`` is repeated.
RATE_SECONDS = 1.0
# Calls of a stage that run: one layer's weights alone would stay in the caches.
NUM_CALLS = 3
# Fresh memory stays slow: the layer of ``jacobian_probe``, which depends on it, runs longer.
JACOBIAN_PROBE_SECONDS = 3.0
# Row blocks of a Gram that each core materializes and multiplies.
NUM_ROW_BLOCKS = 4
# Groups with less than this share of the operations are neither probed nor counted.
LEAST_SHARE = 1e-3
# The layer of ``jacobian_probe``: tokens, columns, and numbers of all its gradients, 64 MiB of
# them, more than the heap keeps for the next call, as the Jacobians of a model are.
JACOBIAN_TOKENS, JACOBIAN_COLUMNS, JACOBIAN_NUMBERS = 32, 1024, 2**24
# Jacobians of at most so many numbers, 512 MiB of them, are contracted whole: a second or less, and
# the layer does not show how often a small one is copied.
WHOLE_NUMBERS = 2**27


class Probe(NamedTuple):
    """Some of a kernel's work."""

    run: Callable[[], Any]  # gives arrays, or nothing
    times: float | int  # how many times as much the kernel has
    seconds: float = PROBE_SECONDS  # how long it is repeated


def estimate_seconds(probes: Sequence[Probe]) -> float:
    """The runtime of a kernel that consists of these parts, after the calls that compile.

    The sum over probes of ``times`` times a call's seconds: the median over interleaved rounds of
    their means, since a kernel has the slow calls as well as the fast ones.
    """
    for probe in probes:
        jax.block_until_ready(probe.run())
    rounds: list[list[float]] = []
    start = time.perf_counter()
    for number in range(NUM_ROUNDS):
        if number >= 2 and time.perf_counter() - start > MOST_SECONDS:
            break
        rounds.append([_turn(probe) for probe in probes])
    medians = map(statistics.median, zip(*rounds, strict=True))
    return math.fsum(probe.times * seconds for probe, seconds in zip(probes, medians, strict=True))


def sweep_probes(program: sweeps.Program, leaves: Sequence, examples: Sequence) -> list[Probe]:
    """The forward and the backward sweep of all examples, a probe for each stage.

    Of the calls of a stage ``NUM_CALLS`` run, such as three of thirty layers, with two chunks of
    examples and any numbers between the stages.  ``leaves`` and ``examples`` may be shapes.
    """
    schedule = program.schedule
    whole = make_plan(padding.num_examples(examples), schedule.peak_stage_bytes, None)
    plan = Plan(min(whole.size, 2 * whole.chunk_size), whole.chunk_size, None)
    random = np.random.default_rng(0)
    leaves = [_numbers(leaf, random) for leaf in leaves]
    few = [jax.ShapeDtypeStruct((plan.size, *leaf.shape[1:]), leaf.dtype) for leaf in examples]

    def between(leaves: list, x: list) -> tuple[dict, dict]:
        block = sweeps.forward_sweep(program, leaves, x, plan)
        return block.values, block.cotangents

    values, cotangents = jax.eval_shape(between, leaves, few)
    for name in schedule.active & values.keys():
        n, *shape = values[name].shape
        cotangents[name] = _resized(values[name], (n, program.num_outputs, *shape))

    def probe(calls: list[int]) -> Probe:
        ran = calls[:: math.ceil(len(calls) / NUM_CALLS)]
        entering = {slot.index for i in ran for slot in schedule.calls[i].slots}
        leaving = {name for i in ran for name in schedule.calls[i].results}
        inputs, downstream = (
            {i: jax.device_put(_numbers(shapes[i], random)) for i in shapes.keys() & names}
            for shapes, names in ((values, entering), (cotangents, leaving))
        )

        def run() -> None:
            with jax.default_matmul_precision("highest"):
                for number in ran:
                    block = sweeps.Block(
                        program, plan, dict(inputs), dict(downstream), {}, {}, [], []
                    )
                    sweeps.sweep_call(number, leaves, block)
                    jax.block_until_ready((block.cotangents, block.terms))

        return Probe(run, whole.size / plan.size * len(calls) / len(ran))

    return [probe(calls) for calls in sweeps.equal_calls(schedule)]


def gram_probes(groups: Iterable[Group], *, trace: bool) -> list[Probe]:
    """The symmetric Grams of all parameters, whose terms are shapes.

    Each kind of parameter is probed once: a few rows, or all with the pairwise contraction.
    """
    kinds = collections.Counter(groups)
    flops = {kind: _least_flops(kind, trace=trace) for kind in kinds}
    least = LEAST_SHARE * sum(flops[kind] * count for kind, count in kinds.items())
    return [
        _gram_probe(kind, count, trace=trace)
        for kind, count in kinds.items()
        if flops[kind] >= least
    ]


def matmul_rates(size: int) -> list[float]:
    """Operations per second of each of many products of square matrices in JAX's float type."""
    square = jax.random.normal(jax.random.key(0), (size, size))
    product = _compiled(jnp.matmul)

    def run() -> jax.Array:
        return product(square, square)

    jax.block_until_ready(run())
    return [2 * size**3 / seconds for seconds in _repeat(run, RATE_SECONDS)]


def jacobian_probe(num_vectors: int, num_params: int) -> Probe:
    """Materializing n k gradients whole and contracting them, as neural-tangents does.

    One layer of them runs.
    """
    height = math.ceil(JACOBIAN_NUMBERS / (num_vectors * JACOBIAN_COLUMNS))
    keys = jax.random.split(jax.random.key(0))
    rows, columns = (
        jax.random.normal(key, (num_vectors, JACOBIAN_TOKENS, length))
        for key, length in zip(keys, (height, JACOBIAN_COLUMNS), strict=True)
    )
    layer = _compiled(_materialized_and_contracted)
    times = num_params / (height * JACOBIAN_COLUMNS)
    return Probe(lambda: layer(rows, columns), times, JACOBIAN_PROBE_SECONDS)


def kernel_probe(f: ApplyFn, implementation: str, params: Params, x: Any) -> Probe:
    """All of a kernel by neural-tangents; a shape stands for numbers of that shape.

    It stops with a ``UserError`` if the kernel is not finite.
    """
    random = np.random.default_rng(0)
    params, x = jax.tree.map(lambda leaf: _numbers(leaf, random), (params, x))
    return Probe(lambda: neural_tangents.tile(f, params, x, implementation=implementation), 1)


def _materialized_and_contracted(rows: jax.Array, columns: jax.Array) -> jax.Array:
    jacobian = jnp.einsum("ntr,ntc->nrc", rows, columns)
    return jnp.einsum("nrc,mrc->nm", jacobian, jacobian)


def _gram_probe(group: Group, count: int, *, trace: bool) -> Probe:
    if not contractions.is_materialized(group, None, trace=trace):
        pairwise = _compiled(functools.partial(contractions.gram_pairwise, trace=trace))
        whole = jax.device_put(_filled(group, group.num_rows))
        return Probe(lambda: pairwise(whole, None), count)
    height = NUM_ROW_BLOCKS * blas.num_workers() * row_block_height(group, None)
    few = _filled(group, min(group.num_rows, height))
    times = count * group.num_rows / few.num_rows
    if contractions.is_by_blas_here(group, trace=trace):
        return Probe(lambda: blas.gram_materialized(few, None, trace=trace), times)
    materialized = _compiled(functools.partial(contractions.gram_materialized, trace=trace))
    on_device = jax.device_put(few)
    return Probe(lambda: materialized(on_device, None), times)


def _least_flops(group: Group, *, trace: bool) -> int | float:
    materialized = contractions.materialized_flops(group, None, trace=trace)
    return min(materialized, contractions.pairwise_flops(group, None, trace=trace))


def _filled(group: Group, num_rows: int) -> Group:
    """The first rows of a group of shapes, with numbers."""
    random = np.random.default_rng(0)

    def fill(term: Term) -> Term:
        if isinstance(term, Materialized):
            n, k, _, c = term.values.shape
            return Materialized(_numbers(_resized(term.values, (n, k, num_rows, c)), random))
        columns = _numbers(term.columns, random)
        if isinstance(term, Outer):
            rows = _resized(term.rows, (*term.rows.shape[:-1], num_rows))
            return Outer(_numbers(rows, random), columns)
        ids = random.integers(0, group.num_rows, term.ids.shape)
        return Lookup(np.where(ids < num_rows, ids, -1).astype(term.ids.dtype), columns)

    return Group(tuple(map(fill, group.terms)), num_rows, group.num_columns)


def _resized(shape: jax.ShapeDtypeStruct, sizes: tuple[int, ...]) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(sizes, shape.dtype)


def _numbers(array: Any, random: np.random.Generator) -> Any:
    """An array as it is; for a shape small numbers, or ones where they are integers."""
    if not isinstance(array, jax.ShapeDtypeStruct):
        return array
    if not jnp.issubdtype(array.dtype, np.floating):
        return np.ones(array.shape, array.dtype)
    return (0.1 * random.random(array.shape, np.float32)).astype(array.dtype)


def _compiled(f: Callable) -> Callable:
    def at_highest(*arguments: Any) -> Any:
        with jax.default_matmul_precision("highest"):
            return f(*arguments)

    return jax.jit(at_highest)


def _turn(probe: Probe) -> float:
    """The mean seconds of a call in one round.

    The first call after those of other probes finds none of its memory in the heap, and counts
    only where it is long enough for that not to matter.
    """
    share = probe.seconds / NUM_ROUNDS
    seconds = _repeat(probe.run, share)
    if len(seconds) == 1 and seconds[0] < PROBE_SECONDS:
        seconds += _repeat(probe.run, share)
    return statistics.fmean(seconds[1:] or seconds)


def _repeat(run: Callable[[], Any], in_all: float) -> list[float]:
    """The seconds of each call, one or as many as fill the time."""
    seconds: list[float] = []
    spent = 0.0
    while spent < in_all:
        start = time.perf_counter()
        jax.block_until_ready(run())
        seconds.append(time.perf_counter() - start)
        spent += seconds[-1]
    return seconds
