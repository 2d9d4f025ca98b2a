r"""Trial: the seconds of a kernel, foretold from parts of it that run here and now.

How fast a processor is at the small products, copies and norms of a model no one figure says; so a
trial runs the kernel's own code on a share of its work and multiplies:

.. math:: T = \sum_i m_i \, t_i

where part i takes :math:`t_i` seconds and the kernel has :math:`m_i` times its work:

* the two sweeps of ``structured`` with two chunks of examples, for all n;
* of each kind of parameter a few rows of its Gram, of all n examples, for all its rows.

Of neural-tangents' contraction the passes are tried in the same way, and of its Jacobians one layer
with as many gradients, formed and contracted; where all its Jacobians are small, the whole.  Its
products with vectors are operations over the rate of a matrix product.

Example:
    >>> from lensllm_jax.ntk.timing import Part, seconds_of
    >>> seconds_of([Part(lambda: sum(range(1000)), times=3.0, seconds=0.01)]) > 0
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

from lensllm_jax import checks, padding
from lensllm_jax.ntk import neural_tangents
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.structured import blas, contractions, sweeps
from lensllm_jax.ntk.structured.chunks import Plan, make_plan
from lensllm_jax.ntk.structured.contractions import Formed, Group, Lookup, Outer
from lensllm_jax.ntk.structured.sweeps import Traced
from lensllm_jax.typing import ApplyFn, Params

# Parts take turns: a machine that others use has slow spells of a second, and a part tried in one
# of them alone would count for the whole kernel.
NUM_ROUNDS = 4
# How long a part is repeated in all rounds, in seconds.
TRIAL_SECONDS = 1.0
# Fresh memory is slow for longer: the layer of ``jacobian``, which lives on it, is repeated more.
JACOBIAN_TRIAL_SECONDS = 3.0
# Pieces of a Gram that each core forms and multiplies.
NUM_PIECES = 4
# Groups with less than this share of the operations are not tried, nor counted.
LEAST_SHARE = 1e-3
# The layer of ``jacobian``: tokens, columns, and numbers of all its gradients, 64 MiB of
# them, more than the heap keeps for the next call, as the Jacobians of a model are.
JACOBIAN_TOKENS, JACOBIAN_COLUMNS, JACOBIAN_NUMBERS = 32, 1024, 2**24
# Jacobians of so many numbers at most, 512 MiB of them, are contracted whole: a second or less,
# and how often a small one is copied the layer does not tell.
WHOLE_NUMBERS = 2**27


class Part(NamedTuple):
    """Some of a kernel's work."""

    call: Callable[[], Any]  # runs it; gives arrays, or nothing
    times: float | int  # how many times as much the kernel has
    seconds: float = TRIAL_SECONDS  # how long it is tried


def seconds_of(parts: Sequence[Part]) -> float:
    """The seconds of a kernel that consists of these parts, after calls that compile.

    Args:
        parts: its parts; they are tried in turns.

    Returns:
        The sum over parts of ``times`` times a call's seconds: the median over rounds of their
        means, since a kernel has the slow calls as well as the fast ones.
    """
    for part in parts:
        jax.block_until_ready(part.call())
    rounds = [
        [statistics.fmean(_calls_seconds(part.call, part.seconds / NUM_ROUNDS)) for part in parts]
        for _ in range(NUM_ROUNDS)
    ]
    medians = map(statistics.median, zip(*rounds, strict=True))
    return math.fsum(part.times * seconds for part, seconds in zip(parts, medians, strict=True))


def passes(traced: Traced, leaves: Sequence, examples: Sequence) -> Part:
    """The forward and the backward sweep of all examples.

    Args:
        traced: the program.
        leaves: its parameters; a shape stands for numbers of that shape.
        examples: the examples, likewise.

    Returns:
        Two chunks of them, which stop with a ``UserError`` that names the layer if a value is not
        finite.
    """
    whole = make_plan(examples[0].shape[0], traced.schedule, None)
    two_chunks = Plan(min(whole.size, 2 * whole.chunk_size), whole.chunk_size, None)
    random = np.random.default_rng(0)
    leaves = [_numbers(leaf, random) for leaf in leaves]
    few = padding.take([_numbers(x, random) for x in examples], 0, two_chunks.size)

    def run() -> None:
        with jax.default_matmul_precision("highest"):
            block = sweeps.forward_sweep(traced, leaves, few, two_chunks)
            for _, found in sweeps.backward_sweep(traced, leaves, [block], [two_chunks]):
                jax.block_until_ready(found)

    return Part(run, whole.size / two_chunks.size)


def grams(groups: Iterable[Group], *, trace: bool) -> list[Part]:
    """The Grams of all parameters with themselves, where each kind is tried once.

    Args:
        groups: the terms of every parameter, in shapes.
        trace: sum over equal outputs.

    Returns:
        A few rows of each kind, or all of a kind that is contracted by pairs.
    """
    kinds = collections.Counter(groups)
    flops = {kind: _least_flops(kind, trace=trace) for kind in kinds}
    least = LEAST_SHARE * sum(flops[kind] * count for kind, count in kinds.items())
    tried = [(kind, count) for kind, count in kinds.items() if flops[kind] >= least]
    return [_gram(kind, count, trace=trace) for kind, count in tried]


def matmul_rates(size: int) -> list[float]:
    """The rates of a square matrix product here and now, in JAX's default float type.

    Args:
        size: of the matrices' sides.

    Returns:
        Operations a second, of each of many calls.
    """
    square = jax.random.normal(jax.random.key(0), (size, size))
    product = _compiled(jnp.matmul)

    def multiplied() -> jax.Array:
        return product(square, square)

    jax.block_until_ready(multiplied())
    return [2 * size**3 / seconds for seconds in _calls_seconds(multiplied, TRIAL_SECONDS)]


def jacobian(num_vectors: int, num_params: int) -> Part:
    """Forming gradients whole, and contracting all of them, as neural-tangents does.

    Args:
        num_vectors: gradients, n k.
        num_params: numbers of each.

    Returns:
        One layer of them.
    """
    height = math.ceil(JACOBIAN_NUMBERS / (num_vectors * JACOBIAN_COLUMNS))
    keys = jax.random.split(jax.random.key(0))
    rows, columns = (
        jax.random.normal(key, (num_vectors, JACOBIAN_TOKENS, length))
        for key, length in zip(keys, (height, JACOBIAN_COLUMNS), strict=True)
    )
    layer = _compiled(_formed_and_contracted)
    times = num_params / (height * JACOBIAN_COLUMNS)
    return Part(lambda: layer(rows, columns), times, JACOBIAN_TRIAL_SECONDS)


def contraction(f: ApplyFn, params: Params, x: Any) -> Part:
    """All of neural-tangents' contraction.

    Args:
        f: ``f(params, x)``.
        params: its parameters; a shape stands for numbers of that shape.
        x: the examples, likewise.

    Returns:
        The one part, which stops with a ``UserError`` if the kernel is not finite.
    """
    random = np.random.default_rng(0)
    params, x = jax.tree.map(lambda leaf: _numbers(leaf, random), (params, x))
    name = NtkMethod.JACOBIAN_CONTRACTION.name

    def whole() -> np.ndarray:
        theta = neural_tangents.tile(f, name, (), x, None, params)
        return checks.finite("theta (the computed kernel)", np.asarray(theta))

    return Part(whole, 1)


def _formed_and_contracted(rows: jax.Array, columns: jax.Array) -> jax.Array:
    jacobian = jnp.einsum("ntr,ntc->nrc", rows, columns)
    return jnp.einsum("nrc,mrc->nm", jacobian, jacobian)


def _gram(group: Group, count: int, *, trace: bool) -> Part:
    if not contractions.is_formed(group, None, trace=trace):
        pairwise = _compiled(functools.partial(contractions.gram_pairwise, trace=trace))
        whole = jax.device_put(_filled(group, group.num_rows))
        return Part(lambda: pairwise(whole, None), count)
    height = NUM_PIECES * blas.num_workers() * contractions.piece_height(group, None)
    few = _filled(group, min(group.num_rows, height))
    times = count * group.num_rows / few.num_rows
    if blas.serves_default_device(group, trace=trace):
        return Part(lambda: blas.gram_formed(few, None, trace=trace), times)
    formed = _compiled(functools.partial(contractions.gram_formed, trace=trace))
    on_device = jax.device_put(few)
    return Part(lambda: formed(on_device, None), times)


def _least_flops(group: Group, *, trace: bool) -> int | float:
    formed = contractions.formed_flops(group, None, trace=trace)
    return min(formed, contractions.pairwise_flops(group, None, trace=trace))


def _filled(group: Group, num_rows: int) -> Group:
    """The first rows of a group of shapes, with numbers."""
    random = np.random.default_rng(0)

    def term(of: contractions.Term) -> contractions.Term:
        if isinstance(of, Formed):
            n, k, _, c = of.values.shape
            return Formed(_numbers(_resized(of.values, (n, k, num_rows, c)), random))
        columns = _numbers(of.columns, random)
        if isinstance(of, Outer):
            rows = _resized(of.rows, (*of.rows.shape[:-1], num_rows))
            return Outer(_numbers(rows, random), columns)
        ids = random.integers(0, group.num_rows, of.ids.shape)
        return Lookup(np.where(ids < num_rows, ids, -1).astype(of.ids.dtype), columns)

    return Group(tuple(map(term, group.terms)), num_rows, group.num_columns)


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


def _calls_seconds(call: Callable[[], Any], in_all: float) -> list[float]:
    """The seconds of each call, one or as many as fill the time."""
    seconds: list[float] = []
    spent = 0.0
    while spent < in_all:
        start = time.perf_counter()
        jax.block_until_ready(call())
        seconds.append(time.perf_counter() - start)
        spent += seconds[-1]
    return seconds
