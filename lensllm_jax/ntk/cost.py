r"""Cost of a kernel before it is computed: bytes, operations, estimated runtime.

The structured method is walked through abstractly, stage by stage as it will run, so that every
array is counted while it lives:

* bytes: values between stages, cotangents, recorded terms, one chunk's activations, the rows
  of gradients materialized at once, and the kernel; above what the process holds (the weights);
* operations: one forward pass, a recomputing and a backward pass to the states
  (:math:`F_{\mathrm{fwd}}\,(2 + k)` per example), and each parameter's cheaper contraction;
* seconds: probes of parts of it, here and now (``timing``).

The methods of neural-tangents hold Jacobians, of :math:`n k p` numbers each; how many is XLA's own
account of the compiled program.

Example:
    >>> import jax.numpy as jnp
    >>> cost = ntk_cost(lambda w, x: x @ w, jnp.ones(1000), jnp.ones((4, 1000)), timed=False)
    >>> cost.flops >= 4 * 2 * 1000
    True
"""

import functools
import math
import statistics
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from lensllm_jax import checks, padding
from lensllm_jax.ntk import neural_tangents, timing
from lensllm_jax.ntk.function import TracedFn
from lensllm_jax.ntk.method import NtkMethod
from lensllm_jax.ntk.structured import blas, contractions, gradients, sweeps
from lensllm_jax.ntk.structured.chunks import Plan, make_plan
from lensllm_jax.ntk.structured.gradients import Group
from lensllm_jax.ntk.structured.sweeps import Program
from lensllm_jax.typing import ApplyFn, Params

# What compiling the stages holds at its peak, on JAX 0.10 and a CPU.
COMPILER_BYTES = 170e6
# Memory over what arrays need: freed memory is fragmented, and the next arrays do not fit into it.
# Those of MAPPED_BYTES and more are mapped one by one (glibc's DEFAULT_MMAP_THRESHOLD_MAX).
HEAP_OVERHEAD = 1.25
MAPPED_BYTES = 32 * 2**20


class NtkCost(NamedTuple):
    """What a kernel will cost."""

    bytes: int  # at the peak, above what the process holds before
    flops: float  # multiplications and additions
    seconds: float | None  # on this machine, without compilation; None if not timed


def ntk_cost(
    f: ApplyFn,
    params: Params,
    x: Any,
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    block_size: int | None = None,
    forward_passes: int = 0,
    timed: bool = True,
) -> NtkCost:
    """What ``empirical_ntk(f, params, x)`` will cost.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).
        params: its parameters; a shape stands for an array of that shape.
        x: the examples, or their shapes; only if ``timed`` are their numbers read.
        method: the algorithm.
        block_size: for "structured", the side of a tile, which sweeps its own examples; ``None``
            takes one tile.  Operations of several take as long each as those of one.
        forward_passes: those beside the kernel's own, such as one for the outputs.
        timed: estimate seconds, which takes some: parts of the kernel are compiled and run.

    Raises:
        UserError: if a setting makes no sense, or ``timed`` and a parameter is not finite.
    """
    method = NtkMethod(checks.one_of("method", method, list(NtkMethod)))
    if block_size is not None:
        checks.positive("block_size", block_size)
        if method is not NtkMethod.STRUCTURED:
            raise checks.UserError(
                f"`block_size` must be left out for method {method.value!r}, got {block_size}"
            )
        if block_size < padding.num_examples(x):
            return _tiled_cost(f, params, x, block_size, forward_passes, timed)
    for path, leaf in jax.tree.leaves_with_path(params):
        if timed and not isinstance(leaf, jax.ShapeDtypeStruct):
            checks.finite(f"params{jax.tree_util.keystr(path)}", np.asarray(leaf))
    traced = TracedFn.of(f, params, x)
    cost_fn = {
        NtkMethod.STRUCTURED: _structured_cost,
        NtkMethod.JACOBIAN_CONTRACTION: _contraction_cost,
        NtkMethod.NTK_VECTOR_PRODUCTS: _products_cost,
    }[method]
    cost = cost_fn(traced, params, x, forward_passes, timed)
    if cost.seconds is None:
        return cost
    # a kernel traces its function anew, which is much of a small one
    tracing = timing.Probe(functools.partial(TracedFn.of, f, params, x), 1.0)
    return cost._replace(seconds=cost.seconds + timing.estimate_seconds([tracing]))


def _structured_cost(
    f: ApplyFn, params: Params, x: Any, forward_passes: int, timed: bool
) -> NtkCost:
    program = sweeps.trace_program(f, params, x)
    n, k = padding.num_examples(x), program.num_outputs
    snapshots = _walk(program, _shapes(params), _shapes(x))
    groups = [group for snapshot in snapshots for group in snapshot.groups]

    itemsize = jnp.dtype(program.dtype).itemsize
    peak_bytes = program.schedule.peak_stage_bytes
    chunk = make_plan(n, peak_bytes, None).chunk_size
    # values and k cotangents of the current chunk, and rows of gradients of both sides
    row_block = gradients.row_block_size(n, k) * n * k * itemsize
    scratch = peak_bytes * chunk * (1 + k) / 2 + max(2, blas.num_workers()) * row_block
    theta = 2 * n * n * k * k * itemsize
    live = max((snapshot.live_bytes for snapshot in snapshots), default=0) + scratch + theta

    swept = _sweep_flops(program, n)
    passes = swept + n * forward_passes * program.schedule.num_flops
    flops = passes + sum(_gram_flops(group, k == 1) for group in groups)
    seconds = None
    if timed:
        probes = _sweep_probes(program, params, x, passes / swept if swept else 1.0)
        seconds = timing.estimate_seconds(probes + timing.gram_probes(groups, trace=k == 1))
    return NtkCost(int(live + COMPILER_BYTES), float(flops), seconds)


def _tiled_cost(
    f: ApplyFn, params: Params, x: Any, block_size: int, forward_passes: int, timed: bool
) -> NtkCost:
    """All tiles of a symmetric kernel; those off the diagonal sweep both of their sides."""
    few = jax.tree.map(lambda leaf: _few(leaf, block_size), x)
    one = ntk_cost(f, params, few, forward_passes=forward_passes, timed=timed)
    program = sweeps.trace_program(TracedFn.of(f, params, few), params, few)
    trace, off_diagonal = program.num_outputs == 1, 2.0 * _sweep_flops(program, block_size)
    for snapshot in _walk(program, _shapes(params), _shapes(few)):
        for group in snapshot.groups:
            counted = contractions.pairwise_flops
            if contractions.is_materialized(group, group, trace=trace):
                counted = contractions.materialized_flops
            off_diagonal += counted(group, group, trace=trace)
    num_blocks = math.ceil(padding.num_examples(x) / block_size)
    flops = num_blocks * one.flops + num_blocks * (num_blocks - 1) / 2 * off_diagonal
    seconds = None if one.seconds is None else one.seconds * flops / one.flops
    return NtkCost(2 * one.bytes, flops, seconds)


def _few(leaf: Any, size: int) -> Any:
    if isinstance(leaf, jax.ShapeDtypeStruct):
        return jax.ShapeDtypeStruct((size, *leaf.shape[1:]), leaf.dtype)
    return leaf[:size]


def _sweep_flops(program: Program, n: int) -> float:
    """Forward, recomputed (but for the last stage) and backward to the states."""
    forward, last = program.schedule.num_flops, program.schedule.calls[-1].stage.num_flops
    return float(n * ((2 + program.num_outputs) * forward - last))


def _contraction_cost(
    f: ApplyFn, params: Params, x: Any, forward_passes: int, timed: bool
) -> NtkCost:
    method = NtkMethod.JACOBIAN_CONTRACTION.name
    program = sweeps.trace_program(f, params, x)
    n, k = padding.num_examples(x), program.num_outputs
    num_params = sum(math.prod(leaf.shape) for leaf in _shapes(params))
    # forward, backward to states and to parameters; then every pair
    passes = 1 + 2 * k + forward_passes
    flops = 1.0 * n * passes * program.schedule.num_flops + 2.0 * (n * k) ** 2 * num_params
    seconds = None
    if timed and n * k * num_params <= timing.WHOLE_NUMBERS:
        seconds = timing.estimate_seconds([timing.kernel_probe(f, method, params, x)])
    elif timed:
        # as long as a forward one each; the structured sweeps have 2 + k of them
        probes = _sweep_probes(program, params, x, passes / (2 + k))
        seconds = timing.estimate_seconds([*probes, timing.jacobian_probe(n * k, num_params)])
    return NtkCost(_jacobian_bytes(f, method, params, x, program), flops, seconds)


def _products_cost(f: ApplyFn, params: Params, x: Any, forward_passes: int, timed: bool) -> NtkCost:
    method = NtkMethod.NTK_VECTOR_PRODUCTS.name
    program = sweeps.trace_program(f, params, x)
    n, k = padding.num_examples(x), program.num_outputs
    # for every pair, one forward-mode pass through one reverse-mode pass
    flops = (5.0 * n * n * k + n * forward_passes) * program.schedule.num_flops
    seconds = flops / statistics.median(timing.matmul_rates(1024)) if timed else None
    return NtkCost(_jacobian_bytes(f, method, params, x, program), flops, seconds)


def _jacobian_bytes(
    f: ApplyFn, implementation: str, params: Params, x: Any, program: Program
) -> int:
    n, k = padding.num_examples(x), program.num_outputs
    # on top of the program's own arrays, a product transposes one factor: the largest leaf's
    largest = max(math.prod(leaf.shape) for leaf in _shapes(params))
    transposed = n * k * largest * jnp.dtype(program.dtype).itemsize
    scratch = neural_tangents.scratch_bytes(f, implementation, params, x)
    return int(scratch + transposed + COMPILER_BYTES)


def least_flops(f: ApplyFn, params: Params, x: Any) -> float:
    r"""The arithmetic floor of the structured method: multiplications and additions.

    A forward pass, a backward pass to the states, and for each parameter the cheaper contraction
    of the :math:`n (n + 1) / 2` pairs of a symmetric kernel; nothing recomputed, nothing twice.

    Example:
        >>> least_flops(lambda w, x: x @ w, jnp.ones(3), jnp.ones((2, 3)))
        54.0

        (24 for the two passes, 12 to materialize two gradients, 6 for each of three pairs.)
    """
    program = sweeps.trace_program(TracedFn.of(f, params, x), params, x)
    n, k = padding.num_examples(x), program.num_outputs
    flops = float(n * (1 + k) * program.schedule.num_flops)
    half = (n + 1) / (2 * n)
    for snapshot in _walk(program, _shapes(params), _shapes(x)):
        for group in snapshot.groups:
            outer = contractions.outer_flops(group, None)
            products = contractions.materialized_flops(group, None, trace=k == 1) - outer
            pairwise = contractions.pairwise_flops(group, group, trace=k == 1)
            flops += min(outer + half * products, half * pairwise)
    return flops


def largest_block_size(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *, memory_budget: float | int
) -> int:
    """The longest side of a tile whose structured kernel fits into a memory budget.

    The budget is in bytes above what the process holds; the side in examples, at most what one
    tile needs.

    Raises:
        UserError: if not even one example fits; it says the least that works.
    """
    checks.positive("memory_budget", memory_budget)
    longest = max(padding.num_examples(x) for x in (x1, x2) if x is not None)
    needed = functools.partial(_tile_bytes, f, params, x1, x2)
    if needed(longest) <= memory_budget:
        return longest
    if needed(1) > memory_budget:
        raise checks.UserError(
            f"`memory_budget` must be at least {needed(1):.3g} bytes (blocks of one example), got "
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


def spare_bytes(
    f: ApplyFn, params: Params, x1: Any, x2: Any, block_size: int, *, memory_budget: float | int
) -> float:
    """What a tile leaves of a memory budget, for either of its sides."""
    left = memory_budget - _tile_bytes(f, params, x1, x2, block_size)
    return left / HEAP_OVERHEAD / _num_sides(x1, x2, block_size)


def _tile_bytes(f: ApplyFn, params: Params, x1: Any, x2: Any, block_size: int) -> int:
    """What the structured kernel of a tile holds at its peak."""
    few = jax.tree.map(lambda p: jax.ShapeDtypeStruct((block_size, *p.shape[1:]), p.dtype), x1)
    one_side = ntk_cost(f, params, few, timed=False).bytes
    return _num_sides(x1, x2, block_size) * one_side


def _num_sides(x1: Any, x2: Any, block_size: int) -> int:
    """A tile off the diagonal holds what its rows need and what its columns need."""
    longest = max(padding.num_examples(x) for x in (x1, x2) if x is not None)
    return 1 if block_size == longest and x2 is None else 2


class _Snapshot(NamedTuple):
    """The backward sweep where some parameters' terms are complete."""

    groups: list[Group]  # of shapes
    live_bytes: float  # values between stages, cotangents and terms


def _walk(program: Program, leaves: list, examples: list) -> list[_Snapshot]:
    """The backward sweep of all examples in one chunk, in shapes."""
    n = padding.num_examples(examples)
    snapshots: list[_Snapshot] = []

    def walk(leaves: list, examples: list) -> list:
        block = sweeps.forward_sweep(program, leaves, examples, Plan(n, n, None))
        for _, (side,) in sweeps.backward_sweep(leaves, [block]):
            live = _held_bytes([block.values, block.cotangents, block.terms, side])
            groups = [group for terms in side for group in gradients.group_terms(terms)]
            snapshots.append(_Snapshot(jax.tree.map(_shape, groups), live))
        return []

    jax.eval_shape(walk, leaves, examples)
    return snapshots


def _sweep_probes(program: Program, params: Params, x: Any, longer: float) -> list[timing.Probe]:
    probes = timing.sweep_probes(program, jax.tree.leaves(params), jax.tree.leaves(x))
    return [probe._replace(times=longer * probe.times) for probe in probes]


def _gram_flops(group: Group, trace: bool) -> int | float:
    """Operations of one parameter's symmetric Gram."""
    if not contractions.is_materialized(group, None, trace=trace):
        return contractions.pairwise_flops(group, None, trace=trace)
    side = group.num_vectors(trace=trace)
    outer = contractions.outer_flops(group, None)
    whole = contractions.materialized_flops(group, None, trace=trace) - outer
    if contractions.is_by_blas_here(group, trace=trace):
        return outer + whole * (side + 1) / (2 * side)
    tiles = contractions.upper_tiles(side, contractions.SYMMETRIC_TILE)
    multiplied = sum((j.stop - j.start) * (i.stop - i.start) for i, j in tiles)
    return outer + whole * multiplied / side**2


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _shapes(tree: Any) -> list[jax.ShapeDtypeStruct]:
    return [_shape(leaf) for leaf in jax.tree.leaves(tree)]


def _held_bytes(tree: Any) -> float:
    # q, k and v share their factor: the same array counts once
    leaves = {id(leaf): leaf for leaf in jax.tree.leaves(tree)}.values()
    sizes = [math.prod(leaf.shape) * jnp.dtype(leaf.dtype).itemsize for leaf in leaves]
    return math.fsum(size * (HEAP_OVERHEAD if size < MAPPED_BYTES else 1.0) for size in sizes)
