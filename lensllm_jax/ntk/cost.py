r"""Cost of a kernel before it is computed: bytes, operations, seconds.

The structured method is walked through abstractly, stage by stage as it will run, so that every
array is counted while it lives:

* bytes: values between stages, cotangents, recorded terms, one chunk's activations, the pieces
  of gradients formed at once, and the kernel; above what the process holds already (the weights);
* operations: one forward pass, a recomputing and a backward pass to the states
  (:math:`F_{\mathrm{fwd}}\,(2 + k)` an example), and each parameter's cheaper contraction;
* seconds: a trial of parts of it, here and now (``trial``).

The methods of neural-tangents hold Jacobians, of :math:`n k p` numbers each; how many is XLA's own
account of the compiled program.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.cost import ntk_cost
    >>> cost = ntk_cost(lambda w, x: x @ w, jnp.ones(1000), jnp.ones((4, 1000)), timed=False)
    >>> cost.flops >= 4 * 2 * 1000
    True
"""

import math
import statistics
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from lensllm_jax import checks
from lensllm_jax.ntk import neural_tangents, timing
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.structured import blas, contractions, gradients, sweeps
from lensllm_jax.ntk.structured.chunks import Plan, make_plan
from lensllm_jax.ntk.structured.contractions import Group, Outer
from lensllm_jax.ntk.structured.sweeps import Traced
from lensllm_jax.typing import ApplyFn, Params

# What compiling the stages holds at its peak, on JAX 0.10 and a CPU.
COMPILER_BYTES = 170e6
# Memory over what arrays need: what was given back lies in pieces that the next ones do not fit.
HEAP_OVERHEAD = 1.2


class NtkCost(NamedTuple):
    """What a kernel will cost."""

    bytes: int  # at the peak, above what the process holds before
    flops: float  # multiplications and additions
    seconds: float | None  # on this machine, without compilation; None if not asked for


def ntk_cost(
    f: ApplyFn,
    params: Params,
    x: Any,
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    timed: bool = True,
) -> NtkCost:
    """What ``empirical_ntk(f, params, x)`` will cost in one tile.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).
        params: its parameters; a shape stands for an array of that shape.
        x: the examples, or their shapes; only if ``timed`` are their numbers read.
        method: the algorithm.
        timed: foretell seconds, which takes some: parts of the kernel are compiled and run.

    Returns:
        Bytes, operations and, if ``timed``, seconds.

    Raises:
        UserError: if ``timed`` and a value is not finite; it says where.
    """
    method = NtkMethod(checks.one_of("method", method, list(NtkMethod)))
    traced = sweeps.trace_program(f, params, x)
    n, k = jax.tree.leaves(x)[0].shape[0], traced.num_outputs
    seconds = None
    if method is NtkMethod.STRUCTURED:
        moments = _walk(traced, _shapes(params), _shapes(x))
        groups = [group for moment in moments for group in moment.groups]
        held, flops = _structured_cost(traced, n, moments)
        if timed:
            grams = timing.grams(groups, trace=k == 1)
            seconds = timing.seconds_of([_passes(traced, params, x), *grams])
        return NtkCost(int(held), flops, seconds)
    forward = sum(call.stage.num_flops for call in traced.schedule.calls)
    sizes = [math.prod(leaf.shape) for leaf in _shapes(params)]
    # beside the program's own arrays, a product arranges one factor anew: the largest leaf's
    held = neural_tangents.scratch_bytes(f, method.name, params, x)
    held += n * k * max(sizes) * jnp.dtype(traced.dtype).itemsize + COMPILER_BYTES
    if method is NtkMethod.NTK_VECTOR_PRODUCTS:
        # for every pair, one forward-mode pass through one reverse-mode pass
        flops = 5.0 * n * n * k * forward
        if timed:
            seconds = flops / statistics.median(timing.matmul_rates(1024))
        return NtkCost(int(held), flops, seconds)
    # forward, backward to states and to parameters; then every pair
    flops = n * forward * (1 + 2.0 * k) + 2.0 * (n * k) ** 2 * sum(sizes)
    if timed and n * k * sum(sizes) <= timing.WHOLE_NUMBERS:
        seconds = timing.seconds_of([timing.contraction(f, params, x)])
    elif timed:
        passes = _passes(traced, params, x)
        passes = passes._replace(times=passes.times * (1 + 2 * k) / (2 + k))
        seconds = timing.seconds_of([passes, timing.jacobian(n * k, sum(sizes))])
    return NtkCost(int(held), flops, seconds)


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
    traced = sweeps.trace_program(f, params, x)
    leaves, examples = _shapes(params), _shapes(x)
    n, k = examples[0].shape[0], traced.num_outputs
    flops = float(n * (1 + k) * sum(call.stage.num_flops for call in traced.schedule.calls))
    half = (n + 1) / (2 * n)
    for moment in _walk(traced, leaves, examples):
        for group in moment.groups:
            forming = _forming_flops(group)
            formed = contractions.formed_flops(group, None, trace=k == 1) - forming
            pairwise = contractions.pairwise_flops(group, group, trace=k == 1)
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
        one_side = ntk_cost(f, params, few, timed=False).bytes
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


class _Moment(NamedTuple):
    """The backward sweep where some parameters' terms are complete."""

    groups: list[Group]  # of shapes
    live_bytes: int  # values between stages, cotangents and terms


def _passes(traced: Traced, params: Params, x: Any) -> timing.Part:
    return timing.passes(traced, jax.tree.leaves(params), jax.tree.leaves(x))


def _structured_cost(traced: Traced, n: int, moments: list[_Moment]) -> tuple[float, float]:
    """Bytes and operations of the two sweeps and of the Grams between them."""
    k = traced.num_outputs
    calls = traced.schedule.calls
    chunk = make_plan(n, traced.schedule, None).chunk_size
    itemsize = jnp.dtype(traced.dtype).itemsize
    # values and k cotangents of the chunk in work, and rows of gradients of both sides
    piece = contractions.piece_of_one(n, k) * n * k * itemsize
    hungriest = max(call.stage.num_bytes for call in calls)  # what lives with one cotangent
    scratch = hungriest * chunk * (1 + k) / 2 + max(2, blas.num_workers()) * piece
    theta = 2 * n * n * k * k * itemsize
    held = max((moment.live_bytes for moment in moments), default=0) + scratch + theta
    peak = HEAP_OVERHEAD * held + COMPILER_BYTES

    of_stages = [call.stage.num_flops for call in calls]
    # forward without the last stage, recomputed and back
    passes = n * ((2 + k) * sum(of_stages) - of_stages[-1])
    grams = sum(_gram_flops(group, k == 1) for moment in moments for group in moment.groups)
    return peak, float(passes + grams)


def _gram_flops(group: Group, trace: bool) -> int | float:
    """Operations of one parameter's symmetric Gram."""
    if not contractions.is_formed(group, None, trace=trace):
        return contractions.pairwise_flops(group, None, trace=trace)
    side = group.num_vectors(trace=trace)
    forming = _forming_flops(group)
    whole = contractions.formed_flops(group, None, trace=trace) - forming
    if blas.serves_default_device(group, trace=trace):
        return forming + whole * (side + 1) / (2 * side)
    tiles = contractions.upper_tiles(side, contractions.SYMMETRIC_TILE)
    multiplied = sum((j.stop - j.start) * (i.stop - i.start) for i, j in tiles)
    return forming + whole * multiplied / side**2


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _shapes(tree: Any) -> list[jax.ShapeDtypeStruct]:
    return [_shape(leaf) for leaf in jax.tree.leaves(tree)]


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
    block = sweeps.forward_sweep(traced, leaves, examples, plan)
    waiting: dict = {}
    for _, (side,) in sweeps.backward_sweep(traced, leaves, [block], [plan], waiting):
        live = _num_bytes([block.values, block.cotangents, side, waiting])
        groups = [group for found in side for group in gradients.groups(found)]
        yield _Moment(jax.tree.map(_shape, groups), live)


def _forming_flops(group: Group) -> int:
    """What ``contractions.gram_formed`` spends on outer products."""
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
