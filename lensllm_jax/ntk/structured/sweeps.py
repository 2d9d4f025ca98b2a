r"""Sweeps: a program's stages forward, then backward, for all examples of a block at once.

.. math:: \Theta_{ab}(x_i, x_j) = \sum_{W} \langle G^W_{ia}, G^W_{jb} \rangle

The forward sweep keeps the values between stages, and their matrix products as far as memory is
given.  The backward sweep recomputes one stage at a time, but for those products, with ``taps`` at
its uses of parameters, and gives each parameter's terms as soon as its first use has been passed;
``contractions`` then adds that parameter's block of the kernel at once.

Example:
    >>> import jax, jax.numpy as jnp
    >>> f = lambda params, x: (x @ params["w"] + params["b"][None]).sum(1)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> for part in kernel_by_parameter(f, params, jnp.eye(3)[:2], trace=True):
    ...     print(part.names, part.theta.sum(0).tolist())
    ("['b']", "['w']") [[4.0, 2.0], [2.0, 4.0]]
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from lensllm_jax import checks, padding
from lensllm_jax.ntk.structured.chunks import ONE_DEVICE, Plan, Resources, make_plan, map_chunks
from lensllm_jax.ntk.structured.contractions import ParameterTerms, parameter_kernels
from lensllm_jax.ntk.structured.gradients import Group, PlacedTerm, group_terms
from lensllm_jax.ntk.structured.stages import (
    Call,
    Key,
    Schedule,
    Slot,
    Source,
    Stage,
    operand,
    partition,
)
from lensllm_jax.ntk.structured.taps import Taps
from lensllm_jax.typing import ApplyFn, Array, Params


class ParameterKernels(NamedTuple):
    """What some parameters, completed by one stage of the backward sweep, add to the kernel."""

    names: tuple[str, ...]  # paths in the parameter tree, with the slice of a stacked one
    theta: Array  # (len(names), n, m, k, k), or (len(names), n, m) if traced


class Program(NamedTuple):
    """A function, traced for examples of one shape."""

    schedule: Schedule
    names: tuple[str, ...]  # path of each parameter
    num_outputs: int  # k
    dtype: Any  # of the outputs


class Block(NamedTuple):
    """The state of some examples between two stages; dictionaries that the sweeps update."""

    program: Program
    plan: Plan
    values: dict[int, Array]  # between stages, (n, ...)
    cotangents: dict[int, Array]  # of what lies downstream, (n, k, ...)
    terms: dict[Key, list[PlacedTerm]]  # of parameters with uses still to come
    products: dict[int, list[Array]]  # kept for the backward sweep, by the number of the call
    nans: list[str]  # the first layer with such a value; infinities may be masks
    infinities: list[str]


class Completed(NamedTuple):
    """Parameters, or slices of them, of which all terms are known."""

    keys: list[Key]
    terms: list[ParameterTerms]  # of each block


def kernel_by_parameter(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *,
    trace: bool, resources: Resources = ONE_DEVICE, first: tuple[int, int] = (0, 0),
) -> Iterator[ParameterKernels]:  # fmt: skip
    """The kernel of two blocks of examples, parameter by parameter, from the last to the first.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), examples independent.
        params: pytree of floating arrays.
        x1: n examples of the rows, a pytree with a leading axis.
        x2: m examples of the columns, of any shape that f takes; ``None`` stands for ``x1``.
        trace: sum over equal outputs.
        resources: devices that share the examples, and memory for what the sweeps share.
        first: the numbers of the first row and the first column, for messages.

    Yields:
        Parts that add up to the kernel; a parameter that f never uses has none.

    Raises:
        UserError: if a value or a gradient is not finite; it names where.
    """
    leaves = jax.tree.leaves(params)
    sides = [x for x in (x1, x2) if x is not None]
    programs = _programs(f, params, sides)
    n, m = padding.num_examples(sides[0]), padding.num_examples(sides[-1])
    mesh, kept_bytes = resources
    with jax.default_matmul_precision("highest"):
        blocks = []
        for program, x in zip(programs, sides, strict=True):
            plan = make_plan(padding.num_examples(x), program.schedule.peak_stage_bytes, mesh)
            padded = jax.tree.leaves(padding.pad(x, plan.size))
            blocks.append(forward_sweep(program, leaves, padded, plan, kept_bytes=kept_bytes))
        not_finite = [name for block in blocks for name in block.nans]
        not_finite += [name for block in blocks for name in block.infinities]
        for keys, terms in backward_sweep(leaves, blocks):
            theta = parameter_kernels(*terms, trace=trace, mesh=mesh)[:, :n, :m]
            del terms  # before the next stage computes its own
            names = tuple(_name(programs[0], key) for key in keys)
            _check_gradients(names, theta, not_finite, first)
            yield ParameterKernels(names, theta)


def _programs(f: ApplyFn, params: Params, sides: Sequence[Any]) -> list[Program]:
    """The program of each side, with the same slices of stacked parameters."""
    programs = [trace_program(f, params, x) for x in sides]
    keys = {key for program in programs for key in program.schedule.first_uses()}
    if any(step is not None and (leaf, None) in keys for leaf, step in keys):
        programs = [trace_program(f, params, x, loops=False) for x in sides]
    return programs


def structured_ntk(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *,
    trace: bool, resources: Resources = ONE_DEVICE, first: tuple[int, int] = (0, 0),
) -> Array:  # fmt: skip
    """The kernel of two blocks of examples: the sum of ``kernel_by_parameter``.

    Returns:
        (n, m, k, k), or (n, m) if traced.
    """
    total: Any = None
    for part in kernel_by_parameter(
        f, params, x1, x2, trace=trace, resources=resources, first=first
    ):
        with np.errstate(over="ignore"):  # the check of the sum finds it
            theta = part.theta.sum(0)
            total = theta if total is None else total + theta
    if total is not None:
        return checks.finite("theta (the computed kernel)", total)
    program = trace_program(f, params, x1)  # f uses no parameter
    n, m = (padding.num_examples(x) for x in (x1, x1 if x2 is None else x2))
    return jnp.zeros((n, m, *(() if trace else (program.num_outputs,) * 2)), program.dtype)


def gradient_groups(f: ApplyFn, params: Params, x: Any) -> list[tuple[str, Group]]:
    """The gradient terms of every parameter for a block of examples, with its name.

    A parameter has several groups where its uses touch disjoint slices.
    """
    program = trace_program(f, params, x)
    n, leaves = padding.num_examples(x), jax.tree.leaves(params)
    with jax.default_matmul_precision("highest"):
        block = forward_sweep(program, leaves, jax.tree.leaves(x), Plan(n, n, None))
        return [
            (_name(program, key), group)
            for keys, (side,) in backward_sweep(leaves, [block])
            for key, terms in zip(keys, side, strict=True)
            for group in group_terms(terms)
        ]


def trace_program(f: ApplyFn, params: Params, x: Any, *, loops: bool = True) -> Program:
    """The program of one example, in stages; cached by ``f`` and the shapes.

    Without ``loops`` those over layers are unrolled within a stage.
    """
    leaves, structure = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    x_leaves, x_structure = jax.tree.flatten(x)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    x_shapes = tuple((jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in x_leaves)
    x64 = bool(jax.config.read("jax_enable_x64"))
    key: Any = f  # hashable, as every function is
    return _trace(key, (structure, tuple(names), shapes), (x_structure, x_shapes), loops, x64)


@functools.lru_cache(maxsize=64)
def _trace(f: Any, params: tuple, examples: tuple, loops: bool, x64: bool) -> Program:
    del x64  # part of the key: the same function traces to another program
    structure, names, shapes = params
    x_structure, x_shapes = examples

    def per_example(leaves: list, x_leaves: list) -> jax.Array:
        one = jax.tree.unflatten(x_structure, [leaf[None] for leaf in x_leaves])
        return f(jax.tree.unflatten(structure, leaves), one).reshape(-1)

    with jax.default_matmul_precision("highest"):
        program, out = jax.make_jaxpr(per_example, return_shape=True)(
            [jax.ShapeDtypeStruct(*shape) for shape in shapes],
            [jax.ShapeDtypeStruct(*shape) for shape in x_shapes],
        )
    schedule = partition(program, num_params=len(shapes), loops=loops)
    return Program(schedule, names, out.shape[0], out.dtype)


def forward_sweep(
    program: Program, leaves: list, x_leaves: list, plan: Plan, *, kept_bytes: float | int = 0
) -> Block:
    """The values between stages; the last stage is left to the backward sweep.

    Args:
        program: the program.
        leaves: its parameters.
        x_leaves: ``plan.size`` examples.
        plan: how they are partitioned.
        kept_bytes: how much of the stages' matrix products to keep at most, so that the backward
            sweep does not compute them again.
    """
    schedule = program.schedule
    values = dict(zip(schedule.inputs, x_leaves, strict=True))
    nans: list[str] = []
    infinities: list[str] = []
    products: dict[int, list[Array]] = {}
    for number, call in enumerate(schedule.calls[:-1]):
        fixed, varying = _operands(schedule, call, leaves, values)
        forward = functools.partial(_forward, _signature(call), fixed, varying, plan=plan)
        keep = kept_bytes > 0
        if keep:  # as long as there is room
            size = _num_bytes(jax.eval_shape(functools.partial(forward, keep=True))[1])
            keep = size <= kept_bytes
            kept_bytes -= size * keep
        results, products[number] = forward(keep=keep)
        for worst, is_bad in ((nans, jnp.isnan), (infinities, jnp.isinf)):
            if not worst and _has(results, is_bad):
                worst.append(_layer(program, call))
        values.update(zip(call.results, results, strict=True))
    n, k = x_leaves[0].shape[0], program.num_outputs
    # output a of every example at once: examples do not mix, so their cotangents do not either
    basis = jnp.broadcast_to(jnp.eye(k, dtype=program.dtype)[None], (n, k, k))
    return Block(program, plan, values, {schedule.output: basis}, {}, products, nans, infinities)


def backward_sweep(leaves: list, blocks: list[Block]) -> Iterator[Completed]:
    """The terms of each parameter, for each block, as soon as its first uses have been passed.

    A parameter that does not reach the outputs of some block has none.

    Args:
        leaves: the parameters.
        blocks: from ``forward_sweep``; emptied on the way.
    """
    schedules = [block.program.schedule for block in blocks]
    first_uses = [schedule.first_uses() for schedule in schedules]
    for left in reversed(range(max(len(schedule.calls) for schedule in schedules))):
        for schedule, block in zip(schedules, blocks, strict=True):
            if left < len(schedule.calls):
                _stage_backward(schedule, left, leaves, block)
        complete = [
            key for key in dict.fromkeys(key for block in blocks for key in block.terms)
            if all(uses.get(key, left) >= left for uses in first_uses)
        ]  # fmt: skip
        keys = [key for key in complete if all(key in block.terms for block in blocks)]
        sides = [{key: tuple(block.terms.pop(key, ())) for key in complete} for block in blocks]
        if keys:
            yield Completed(keys, [tuple(side[key] for key in keys) for side in sides])


def equal_calls(schedule: Schedule) -> list[list[int]]:
    """The numbers of the calls that compile to one program, for each such program."""
    kinds: dict[Any, list[int]] = {}
    last = len(schedule.calls) - 1
    for number, call in enumerate(schedule.calls):
        reached = tuple(name in schedule.active for name in call.results)
        kinds.setdefault((_signature(call), reached, number == last), []).append(number)
    return list(kinds.values())


def sweep_call(number: int, leaves: list, block: Block) -> None:
    """What both sweeps do at one call, where ``block`` has all that enters it from either side."""
    schedule = block.program.schedule
    call = schedule.calls[number]
    if call is not schedule.calls[-1]:
        fixed, varying = _operands(schedule, call, leaves, block.values)
        jax.block_until_ready(
            _forward(_signature(call), fixed, varying, plan=block.plan, keep=False)
        )
    _stage_backward(schedule, number, leaves, block)


def _stage_backward(schedule: Schedule, number: int, leaves: list, block: Block) -> None:
    """One stage backward: adds its terms, and the cotangents of what entered it."""
    call = schedule.calls[number]
    products = block.products.pop(number, [])  # none of the last stage, which ran here alone
    fixed, varying = _operands(schedule, call, leaves, block.values)
    slots = [slot for slot in call.slots if slot.source is Source.VALUE]
    wanted = tuple(
        i for i, slot in enumerate(slots)
        if slot.index in schedule.active and jnp.issubdtype(varying[i].dtype, np.inexact)
    )  # fmt: skip
    reached = tuple(i for i, name in enumerate(call.results) if name in block.cotangents)
    downstream = [block.cotangents.pop(call.results[i]) for i in reached]
    for name in call.results:
        block.values.pop(name, None)
    if not reached:  # no parameter enters its results
        return
    upstream, terms = _backward(
        _signature(call), fixed, varying, downstream, products,
        wanted=wanted, reached=reached, plan=block.plan,
    )  # fmt: skip
    for i, cotangent in zip(wanted, upstream, strict=True):
        name = slots[i].index
        known = block.cotangents.get(name)
        block.cotangents[name] = cotangent if known is None else known + cotangent
    for position, of_parameter in terms.tree.items():
        slot = call.slots[position]
        block.terms.setdefault((slot.index, slot.step), []).extend(of_parameter)


class _Signature(NamedTuple):
    """What of a call a compiled program depends on: all steps of a loop share it."""

    stage: Stage
    slots: tuple[Slot, ...]  # without which parameter, constant, value or step


def _signature(call: Call) -> _Signature:
    return _Signature(call.stage, tuple(Slot(s.source, 0, None, s.dtype) for s in call.slots))


def _operands(
    schedule: Schedule, call: Call, leaves: Sequence, values: dict[int, Array]
) -> tuple[list, list]:
    """What is the same for all examples, and what is not (n, ...)."""
    sources: dict[Source, Any] = {
        Source.PARAM: leaves, Source.FIXED: leaves,
        Source.CONSTANT: schedule.constants, Source.VALUE: values,
    }  # fmt: skip
    fixed: list[Array] = []
    varying: list[Array] = []
    for slot in call.slots:
        value = sources[slot.source][slot.index]
        is_value = slot.source is Source.VALUE
        if slot.step is not None:
            # a traced index: slicing compiles once for all steps
            value = _slice(value, slot.step, axis=int(is_value))
        (varying if is_value else fixed).append(value)
    return fixed, varying


@functools.partial(jax.jit, static_argnames="axis")
def _slice(value: Array, step: Any, *, axis: int) -> Array:
    return lax.dynamic_index_in_dim(value, step, axis, keepdims=False)


def _run(signature: _Signature, fixed: list, varying: Sequence, taps: Taps) -> list:
    """The results of a stage for one example."""
    fixed_left, varying_left = iter(fixed), iter(varying)
    operands = [
        operand(slot, next(varying_left if slot.source is Source.VALUE else fixed_left), position)
        for position, slot in enumerate(signature.slots)
    ]
    return signature.stage.run(operands, taps)


@functools.partial(jax.jit, static_argnames=("signature", "plan", "keep"))
def _forward(
    signature: _Signature, fixed: list, varying: list, *, plan: Plan, keep: bool
) -> tuple[list, list]:
    """The results of a stage for all examples, and the products in it that are to be kept."""

    def per_example(fixed: list, one: list) -> tuple[list, list]:
        taps = Taps()
        results = _run(signature, fixed, one, taps)
        return results, taps.products if keep else []

    def per_chunk(fixed: list, varying: list) -> tuple[list, list]:
        return jax.vmap(functools.partial(per_example, fixed))(varying)

    return map_chunks(per_chunk, fixed, varying, plan)


@functools.partial(jax.jit, static_argnames=("signature", "wanted", "reached", "plan"))
def _backward(
    signature: _Signature, fixed: list, varying: list, downstream: list, products: list, *,
    wanted: tuple[int, ...], reached: tuple[int, ...], plan: Plan,
) -> tuple[list, "_Shared"]:  # fmt: skip
    """A stage recomputed, but for the kept products, and pulled back, for all examples.

    Returns the cotangents of the ``wanted`` operands (n, k, ...), and the terms of each parameter
    by its position among the slots.
    """

    def per_chunk(fixed: list, arguments: tuple[list, list, list]) -> tuple[list, _Shared]:
        varying, downstream, products = arguments

        def tapped(
            perturbations: list, wanted_one: list, all_one: list, kept: list
        ) -> tuple[list, _Shared]:
            taps = Taps(perturbations, kept)
            replaced = dict(zip(wanted, wanted_one, strict=True))
            entering = [replaced.get(i, value) for i, value in enumerate(all_one)]
            results = _run(signature, fixed, entering, taps)
            return [results[i] for i in reached], _Shared.of(taps.taps)

        _, pullback, taps = jax.vjp(
            lambda perturbations, states: jax.vmap(tapped)(
                perturbations, states, varying, products
            ),
            _no_perturbations(signature, fixed, varying),
            [varying[i] for i in wanted],
            has_aux=True,
        )
        if downstream[0].shape[1] == 1:  # one output needs no further batch axis
            squeezed = pullback([cotangent[:, 0] for cotangent in downstream])
            deltas, upstream = jax.tree.map(lambda leaf: leaf[:, None], squeezed)
        else:
            deltas, upstream = jax.vmap(pullback, in_axes=1, out_axes=1)(downstream)
        terms: dict[int, list[PlacedTerm]] = {}
        for tap, delta in zip(taps.tree, deltas, strict=True):
            terms.setdefault(tap.leaf, []).append(tap.term(delta))
        return upstream, _Shared.of(terms)

    return map_chunks(per_chunk, fixed, (varying, downstream, products), plan)


def _no_perturbations(signature: _Signature, fixed: list, varying: list) -> list[jax.Array]:
    """A zero for each tapped value, (n, ...)."""

    def outputs(one: list) -> list:
        taps = Taps()
        _run(signature, fixed, one, taps)
        return taps.outputs

    shapes = jax.eval_shape(jax.vmap(outputs), varying)
    return [jnp.zeros(shape.shape, shape.dtype) for shape in shapes]


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["arrays"],
    meta_fields=["structure", "positions"],
)
@dataclasses.dataclass(frozen=True)
class _Shared:
    """A pytree that holds an array once, however often it occurs.

    Query, key and value are products of the same states: their terms share one factor, also after
    a compiled function returned them.
    """

    arrays: list  # each once
    structure: Any
    positions: tuple[int, ...]  # among ``arrays``, of each leaf

    @classmethod
    def of(cls, tree: Any) -> "_Shared":
        leaves, structure = jax.tree.flatten(tree)
        arrays = list({id(leaf): leaf for leaf in leaves}.values())
        order = {id(array): position for position, array in enumerate(arrays)}
        return cls(arrays, structure, tuple(order[id(leaf)] for leaf in leaves))

    @property
    def tree(self) -> Any:
        return jax.tree.unflatten(self.structure, [self.arrays[i] for i in self.positions])


def _num_bytes(arrays: list) -> int:
    return sum(array.size * array.dtype.itemsize for array in arrays)


def _name(program: Program, key: Key) -> str:
    leaf, step = key
    name = program.names[leaf] or "`params`"  # which may be one array
    return name if step is None else f"{name}[{step}]"


def _check_gradients(
    names: tuple[str, ...], theta: Array, not_finite: list[str], first: tuple[int, int]
) -> None:
    entries = np.asarray(theta).reshape(*theta.shape[:3], -1)
    is_finite = np.asarray(np.isfinite(entries).all(axis=3))  # (parameters, n, m)
    if is_finite.all():
        return
    if not_finite:
        raise layer_error(not_finite[0])
    which = int(np.argmin(is_finite.all(axis=(1, 2))))
    # a gradient that is not finite spoils its row or its column, whole
    rows, columns = (np.flatnonzero(~is_finite[which].any(axis=axis)) for axis in (1, 0))
    where = "some examples"
    if len(rows):
        where = f"example {first[0] + rows[0]} of the rows"
    elif len(columns):
        where = f"example {first[1] + columns[0]} of the columns"
    raise checks.UserError(
        f"the gradient in parameter {names[which]} must be finite, got NaN or infinity for "
        f"{where}: look at the weights and at what enters that layer, or compute in float64"
    )


def layer_error(layer: str) -> checks.UserError:
    """What is wrong where a layer has values that are not finite."""
    return checks.UserError(
        f"the values of the layer of {layer} must be finite, got NaN or infinity: look at these "
        "weights, or compute in float64"
    )


def _layer(program: Program, call: Call) -> str:
    """The parameters that enter a call."""
    slots = [slot for slot in call.slots if slot.source in (Source.PARAM, Source.FIXED)]
    names = ", ".join(_name(program, (slot.index, slot.step)) for slot in slots)
    return names or "the inputs"


def _has(values: list, is_bad: Any) -> bool:
    """Whether a number among values is bad; False of shapes, which have no numbers."""
    inexact = [v for v in values if jnp.issubdtype(v.dtype, np.inexact)]
    if not inexact or any(isinstance(v, jax.core.Tracer) for v in inexact):
        return False
    return bool(_any_of(inexact, is_bad))


@functools.partial(jax.jit, static_argnums=1)
def _any_of(values: list, is_bad: Any) -> jax.Array:
    return jnp.stack([is_bad(value).any() for value in values]).any()
