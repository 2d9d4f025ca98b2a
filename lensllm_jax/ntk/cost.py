r"""Cost of a kernel before it is computed: bytes, operations, seconds.

The structured method is walked through abstractly, stage by stage as it will run, so that every
array is counted while it lives:

* bytes: values between stages, cotangents, recorded terms, one chunk's activations, the pieces
  of gradients formed at once, and the kernel; above what the process holds already (the weights);
* operations: one forward pass, a recomputing and a backward pass to the states
  (:math:`F_{\mathrm{fwd}}\,(2 + k)` an example), and each parameter's cheaper contraction;
* seconds: operations and numbers that pass through memory over rates measured here and now, one
  of a large matrix product, one of writing small outer products.

The methods of neural-tangents hold Jacobians, of :math:`n k p` numbers each; how many is XLA's own
account of the compiled program.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.cost import ntk_cost
    >>> cost = ntk_cost(lambda w, x: x @ w, jnp.ones(1000), jnp.ones((4, 1000)), rates=(1e9, 1e9))
    >>> cost.flops >= 4 * 2 * 1000
    True
"""

import functools
import itertools
import math
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lensllm_jax import checks
from lensllm_jax.ntk import blas, neural_tangents, rules, structured, terms
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.rules import Group, Outer
from lensllm_jax.ntk.structured import Plan, Traced
from lensllm_jax.typing import ApplyFn, Params

# How long a rate is measured, at least, and how many times.
RATE_SECONDS, RATE_TURNS = 1.0, 2
# What compiling the stages holds at its peak, on JAX 0.10 and a CPU.
COMPILER_BYTES = 170e6
# Memory over what arrays need: what was given back lies in pieces that the next ones do not fit.
HEAP_OVERHEAD = 1.3
# Seconds over what the rates alone would say, measured on 2 cores with 6.8 M parameters, 16 to
# 1,024 examples of 16 to 256 tokens (benchmarks/LOG.md).
PASSES_OVERHEAD = 1.07  # products of the layers are smaller than the one of the rate
# norms, softmax, activations, copies, once a pass: less than the forming of the rate costs a number
VALUES_OVERHEAD = 0.6
GRAM_OVERHEAD = 1.25  # products are smaller than the one that the rate is measured with
UPDATE_OVERHEAD_OF = 128  # BLAS's update of n gradients takes 1 + 128 / n times as long again
FORMING_OVERHEAD = 2.0  # and products of one example's factors are smaller still
WRITING_OVERHEAD = 1.7  # a piece is written, and read again at once
JACOBIAN_WRITING_OVERHEAD = 6.7  # fresh memory, turned for the product


class NtkCost(NamedTuple):
    """What a kernel will cost."""

    bytes: int  # at the peak, above what the process holds before
    flops: float  # multiplications and additions
    seconds: float  # on this machine, without compilation


class Rates(NamedTuple):
    """How fast this machine is now, in operations a second."""

    matmul: float  # a large matrix product
    writing: float  # numbers of small outer products written, as gradients are


def ntk_cost(
    f: ApplyFn,
    params: Params,
    x: Any,
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    rates: tuple[float, float] | None = None,
) -> NtkCost:
    """What ``empirical_ntk(f, params, x)`` will cost in one tile.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).
        params: its parameters.
        x: the examples; only their shapes are read.
        method: the algorithm.
        rates: as ``measured_rates`` gives them; ``None`` measures them.

    Returns:
        Bytes, operations and seconds.
    """
    method = NtkMethod(checks.one_of("method", method, list(NtkMethod)))
    rate = measured_rates() if rates is None else Rates(*rates)
    traced = structured.trace_program(f, params, x)
    leaves, examples = _shapes(params), _shapes(x)
    if method is NtkMethod.STRUCTURED:
        return _structured_cost(traced, leaves, examples, rate)
    n, k = examples[0].shape[0], traced.num_outputs
    forward = sum(call.stage.num_flops for call in traced.schedule.calls)
    num_params = sum(math.prod(leaf.shape) for leaf in leaves)
    itemsize = jnp.dtype(traced.dtype).itemsize
    # beside the program's own arrays, a product arranges one factor anew: the largest leaf's
    held = neural_tangents.scratch_bytes(f, method.name, params, x)
    held += n * k * max(math.prod(leaf.shape) for leaf in leaves) * itemsize + COMPILER_BYTES
    if method is NtkMethod.NTK_VECTOR_PRODUCTS:
        # for every pair, one forward-mode pass through one reverse-mode pass
        flops = 5.0 * n * n * k * forward
        return NtkCost(int(held), flops, flops / rate.matmul)
    # forward, backward to states and to parameters; then every pair
    flops = n * forward * (1 + 2.0 * k) + 2.0 * (n * k) ** 2 * num_params
    values = n * (1 + 2 * k) * sum(c.stage.num_bytes // itemsize for c in traced.schedule.calls)
    # as they come, and once more in the arrangement of the product
    written = JACOBIAN_WRITING_OVERHEAD * 2 * n * k * num_params + VALUES_OVERHEAD * values
    return NtkCost(int(held), flops, GRAM_OVERHEAD * flops / rate.matmul + written / rate.writing)


def least_flops(f: ApplyFn, params: Params, x: Any) -> float:
    r"""The arithmetic floor of the structured route: operations that the exact kernel needs.

    A forward pass, a backward pass to the states, and for each parameter the cheaper contraction
    of the :math:`n (n + 1) / 2` pairs of a symmetric kernel; nothing recomputed, nothing twice.

    Args:
        f: as for ``ntk_cost``.
        params: its parameters.
        x: the examples; only their shapes are read.

    Returns:
        Multiplications and additions.

    Example:
        >>> least_flops(lambda w, x: x @ w, jnp.ones(3), jnp.ones((2, 3)))
        54.0

        (24 for the two passes, 12 to form two gradients, 6 for each of three pairs.)
    """
    traced = structured.trace_program(f, params, x)
    leaves, examples = _shapes(params), _shapes(x)
    n, k = examples[0].shape[0], traced.num_outputs
    flops = float(n * (1 + k) * sum(call.stage.num_flops for call in traced.schedule.calls))
    half = (n + 1) / (2 * n)
    for moment in _walk(traced, leaves, examples):
        for group in moment.groups:
            forming = _forming_flops(group)
            formed = rules.formed_flops(group, None, trace=k == 1) - forming
            pairwise = rules.pairwise_flops(group, group, trace=k == 1)
            flops += min(forming + half * formed, half * pairwise)
    return flops


def largest_block_size(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *, memory_budget: float | int
) -> int:
    """The longest side of a tile whose kernel fits into a memory budget.

    Args:
        f: as for ``ntk_cost``.
        params: its parameters.
        x1: examples of the rows.
        x2: examples of the columns; ``None`` stands for ``x1``.
        memory_budget: bytes above what the process holds already.

    Returns:
        A block size for the structured method, at most what one tile needs.

    Raises:
        UserError: if not even one example fits; it says the least that works.
    """
    checks.positive("memory_budget", memory_budget)
    longest = max(jax.tree.leaves(x)[0].shape[0] for x in (x1, x2) if x is not None)

    def needed(block: int) -> int:
        few = jax.tree.map(lambda p: jax.ShapeDtypeStruct((block, *p.shape[1:]), p.dtype), x1)
        one_side = ntk_cost(f, params, few, rates=(1.0, 1.0)).bytes
        # a tile off the diagonal holds what its rows need and what its columns need
        return one_side if block == longest and x2 is None else 2 * one_side

    if needed(longest) <= memory_budget:
        return longest
    if needed(1) > memory_budget:
        raise checks.UserError(
            f"`memory_budget` must be at least {needed(1):.3g} bytes (one example a block), got "
            f"{memory_budget:.3g}: shorten the examples or take a smaller model"
        )
    fits, too_many = 1, longest
    while too_many - fits > 1:
        middle = (fits + too_many) // 2
        if needed(middle) <= memory_budget:
            fits = middle
        else:
            too_many = middle
    return fits


def measured_rates() -> Rates:
    """The rates of this machine, now, in about four seconds.

    A kernel takes seconds, so that it runs at the median of a shared machine's rates and not at
    the best; each is measured in two turns, since one turn may fall into a slow moment.

    Returns:
        Operations a second.
    """
    factors = jax.random.normal(jax.random.key(0), (2, 64, 32, 256))
    forming = functools.partial(jnp.einsum, "ntr,ntc->nrc")
    turns = [
        (matmul_rates(1024), _call_rates(forming, 64 * 256**2, *factors)) for _ in range(RATE_TURNS)
    ]
    matmul, writing = (
        statistics.median(itertools.chain(*rates)) for rates in zip(*turns, strict=True)
    )
    return Rates(matmul, writing)


def matmul_rates(size: int) -> list[float]:
    """The rates of a square matrix product here and now, in JAX's default float type.

    Args:
        size: of the matrices' sides.

    Returns:
        Operations a second, of each of many calls.
    """
    square = jax.random.normal(jax.random.key(0), (size, size))
    return _call_rates(jnp.matmul, 2 * size**3, square, square)


def _call_rates(f: Callable, count: int, *arguments: jax.Array) -> list[float]:
    """``count`` over the seconds of each call, for ``RATE_SECONDS`` and seven calls at least."""
    with jax.default_matmul_precision("highest"):
        compiled = jax.jit(f)
        compiled(*arguments).block_until_ready()
        seconds: list[float] = []
        while len(seconds) < 7 or sum(seconds) < RATE_SECONDS:
            start = time.perf_counter()
            compiled(*arguments).block_until_ready()
            seconds.append(time.perf_counter() - start)
    return [count / of_call for of_call in seconds]


class _Moment(NamedTuple):
    """The backward sweep where some parameters' terms are complete."""

    groups: list[Group]  # of shapes
    live_bytes: int  # values between stages, cotangents and terms


def _structured_cost(traced: Traced, leaves: list, examples: list, rate: Rates) -> NtkCost:
    """The two sweeps of ``structured``, in shapes."""
    n, k = examples[0].shape[0], traced.num_outputs
    calls = traced.schedule.calls
    moments = _walk(traced, leaves, examples)
    chunk = structured.make_plan(n, traced.schedule, None).chunk_size
    itemsize = jnp.dtype(traced.dtype).itemsize
    # values and k cotangents of the chunk in work, and rows of gradients of both sides
    piece = rules.piece_of_one(n, k) * n * k * itemsize
    hungriest = max(call.stage.num_bytes for call in calls)  # what lives with one cotangent
    scratch = hungriest * chunk * (1 + k) / 2 + max(2, blas.num_workers()) * piece
    theta = 2 * n * n * k * k * itemsize
    held = max((moment.live_bytes for moment in moments), default=0) + scratch + theta
    peak = HEAP_OVERHEAD * held + COMPILER_BYTES

    # forward without the last stage, recomputed and back
    passes, values = (
        n * ((2 + k) * sum(of_stages) - of_stages[-1])
        for of_stages in (
            [call.stage.num_flops for call in calls],
            [call.stage.num_bytes // itemsize for call in calls],
        )
    )
    flops = float(passes)
    seconds = PASSES_OVERHEAD * passes / rate.matmul + VALUES_OVERHEAD * values / rate.writing
    for group in (group for moment in moments for group in moment.groups):
        cost = _gram_cost(group, k == 1, rate)
        flops += cost[0]
        seconds += cost[1]
    return NtkCost(int(peak), flops, seconds)


def _gram_cost(group: Group, trace: bool, rate: Rates) -> tuple[float, float]:
    """Operations and seconds of one parameter's symmetric Gram."""
    if not rules.is_formed(group, None, trace=trace):
        flops = rules.pairwise_flops(group, None, trace=trace)
        return flops, rules.pairwise_cost(group, None, trace=trace) / rate.matmul
    side = group.num_vectors(trace=trace)
    forming = _forming_flops(group)
    whole = rules.formed_flops(group, None, trace=trace) - forming
    if jax.default_backend() == "cpu" and blas.serves(group, None, trace=trace):
        half = whole * (side + 1) / (2 * side)
        in_products = (1 + UPDATE_OVERHEAD_OF / side) * half + FORMING_OVERHEAD * forming
        return forming + half, GRAM_OVERHEAD * in_products / rate.matmul
    tiles = rules.upper_tiles(side, rules.SYMMETRIC_TILE)
    flops = (
        forming + whole * sum((j.stop - j.start) * (i.stop - i.start) for i, j in tiles) / side**2
    )
    written = group.num_examples * group.num_outputs * group.num_rows * group.num_columns
    seconds = GRAM_OVERHEAD * flops / rate.matmul + WRITING_OVERHEAD * written / rate.writing
    return flops, seconds


def _shapes(tree: Any) -> list[jax.ShapeDtypeStruct]:
    return [
        jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
        for leaf in jax.tree.leaves(tree)
    ]


def _walk(traced: Traced, leaves: list, examples: list) -> list[_Moment]:
    """The backward sweep of all examples in one chunk, in shapes."""
    n = examples[0].shape[0]
    moments: list[_Moment] = []

    def walk(leaves: list, examples: list) -> list:
        moments.extend(_moments(traced, leaves, examples, Plan(n, n, None)))
        return []

    jax.eval_shape(walk, leaves, examples)
    return moments


def _moments(traced: Traced, leaves: list, examples: list, plan: Plan) -> Iterator[_Moment]:
    block = structured.forward_sweep(traced, leaves, examples, plan)
    waiting: dict = {}
    for _, (side,) in structured.backward_sweep(traced, leaves, [block], [plan], waiting):
        live = _num_bytes([block.values, block.cotangents, side, waiting])
        yield _Moment([group for found in side for group in terms.groups(found)], live)


def _forming_flops(group: Group) -> int:
    """What ``rules.gram_formed`` spends on outer products."""
    size = group.num_rows * group.num_columns
    return sum(
        2 * math.prod(term.columns.shape[:3]) * size
        for term in group.terms
        if isinstance(term, Outer)
    )


def _num_bytes(tree: Any) -> int:
    # q, k and v share what entered them: the same array counts once
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    return sum(math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves)
