r"""The structured kernel: exact, with one layer's activations in memory.

.. math:: \Theta_{ab}(x_i, x_j) = \sum_{W} \langle G^W_{ia}, G^W_{jb} \rangle

The program of f is cut in stages (``stages``).  A forward sweep keeps the values between them; a
backward sweep recomputes one stage at a time for all examples, records what enters each use of
a parameter and the cotangents there (``uses``), and adds each parameter's block at once by the
cheaper of two exact contractions (``rules``).  No Jacobian is ever formed: a dense layer's gradient
is a sum of outer products, a few rows of which are made at a time.

Every function is in reach, since a use that is not understood is differentiated whole; only
parameters that enter through ``dot_general`` or a lookup of rows are cheap.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.ntk.structured.sweeps import kernel_by_parameter
    >>> f = lambda params, x: (x @ params["w"] + params["b"][None]).sum(1)
    >>> params = {"w": jnp.ones((3, 2)), "b": jnp.zeros(2)}
    >>> for share in kernel_by_parameter(f, params, jnp.eye(3)[:2], trace=True):
    ...     print(share.names, share.theta.sum(0).tolist())
    ("['w']", "['b']") [[4.0, 2.0], [2.0, 4.0]]
"""

import functools
import operator
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Mesh, PartitionSpec

from lensllm_jax import checks, padding
from lensllm_jax.ntk.structured import blas, contractions, gradients
from lensllm_jax.ntk.structured.chunks import Plan, in_chunks, make_plan, on_devices
from lensllm_jax.ntk.structured.contractions import Group
from lensllm_jax.ntk.structured.gradients import Term
from lensllm_jax.ntk.structured.stages import Call, Key, Schedule, Slot, Source, Stage, cut, operand
from lensllm_jax.ntk.structured.taps import Taps
from lensllm_jax.typing import ApplyFn, Array, Params


class Share(NamedTuple):
    """What some parameters, known at the same moment of the backward sweep, add to the kernel."""

    names: tuple[str, ...]  # paths in the parameter tree, with the slice of a stacked one
    theta: Array  # (len(names), n, m, k, k), or (len(names), n, m) if traced


class Block(NamedTuple):
    """Some examples on their way through the program."""

    values: dict[int, Array]  # between stages, (n, ...)
    cotangents: dict[int, Array]  # of what lies downstream, (n, k, ...)


class Traced(NamedTuple):
    """A function's program with what is known of it."""

    schedule: Schedule
    names: tuple[str, ...]  # path of each parameter
    num_outputs: int  # k
    dtype: Any  # of the outputs


def kernel_by_parameter(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *, trace: bool, mesh: Mesh | None = None
) -> Iterator[Share]:
    """The kernel of two blocks of examples, parameter by parameter, from the last to the first.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), examples independent.
        params: pytree of floating arrays.
        x1: examples of the rows, a pytree with a leading axis.
        x2: examples of the columns; ``None`` stands for ``x1``.
        trace: sum over equal outputs.
        mesh: devices that share the examples of either side, along its one axis; ``None`` takes
            the default device.

    Yields:
        Shares whose sum is the kernel; a parameter that f never uses has none.

    Raises:
        UserError: if a value or a gradient is not finite; it names where.
    """
    traced = trace_program(f, params, x1)
    leaves = jax.tree.leaves(params)
    sides = [x for x in (x1, x2) if x is not None]
    lengths = [jax.tree.leaves(x)[0].shape[0] for x in sides]
    n, m = lengths[0], lengths[-1]
    plans = [make_plan(length, traced.schedule, mesh) for length in lengths]
    with jax.default_matmul_precision("highest"):
        blocks = [
            forward_sweep(traced, leaves, jax.tree.leaves(padding.pad(x, plan.size)), plan)
            for x, plan in zip(sides, plans, strict=True)
        ]
        for keys, found in backward_sweep(traced, leaves, blocks, plans):
            theta = _grams(*found, trace=trace, mesh=mesh)
            del found  # or these terms would live while the next stage makes its own
            names = tuple(_name(traced.names[leaf], step) for leaf, step in keys)
            _check_finite(names, theta)
            yield Share(names, theta[:, :n, :m])


def structured_ntk(
    f: ApplyFn, params: Params, x1: Any, x2: Any = None, *, trace: bool, mesh: Mesh | None = None
) -> Array:
    """The kernel of two blocks of examples: the sum over parameters.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), examples independent.
        params: pytree of floating arrays.
        x1: examples of the rows, a pytree with a leading axis.
        x2: examples of the columns; ``None`` stands for ``x1``.
        trace: sum over equal outputs.
        mesh: as for ``kernel_by_parameter``.

    Returns:
        (n, m, k, k), or (n, m) if traced.

    Raises:
        UserError: if a value or a gradient is not finite; it names where.
    """
    total: Any = None
    for share in kernel_by_parameter(f, params, x1, x2, trace=trace, mesh=mesh):
        part = share.theta.sum(0)
        total = part if total is None else total + part
    if total is not None:
        return total
    traced = trace_program(f, params, x1)  # f uses no parameter
    n, m = (jax.tree.leaves(x)[0].shape[0] for x in (x1, x1 if x2 is None else x2))
    outputs = () if trace else (traced.num_outputs,) * 2
    return jnp.zeros((n, m, *outputs), traced.dtype)


def gradient_groups(f: ApplyFn, params: Params, x: Any) -> list[tuple[str, Group]]:
    """The gradient terms of every parameter for a block of examples, all at once.

    Args:
        f: as for ``structured_ntk``.
        params: its parameters.
        x: the examples.

    Returns:
        Named groups; a parameter has several where its uses touch disjoint slices.
    """
    traced = trace_program(f, params, x)
    n = jax.tree.leaves(x)[0].shape[0]
    with jax.default_matmul_precision("highest"):
        leaves = jax.tree.leaves(params)
        plan = Plan(n, n, None)
        block = forward_sweep(traced, leaves, jax.tree.leaves(x), plan)
        return [
            (_name(traced.names[leaf], step), group)
            for keys, (side,) in backward_sweep(traced, leaves, [block], [plan])
            for (leaf, step), found in zip(keys, side, strict=True)
            for group in gradients.groups(found)
        ]


def trace_program(f: ApplyFn, params: Params, x: Any) -> Traced:
    """The program of one example, cut in stages; kept for the next call with the same shapes.

    Args:
        f: the function.
        params: its parameters.
        x: its examples.

    Returns:
        The program.
    """
    leaves, structure = jax.tree.flatten(params)
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(params)]
    x_leaves, x_structure = jax.tree.flatten(x)
    shapes = tuple((jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves)
    x_shapes = tuple((jnp.shape(leaf)[1:], jnp.result_type(leaf)) for leaf in x_leaves)
    x64 = bool(jax.config.read("jax_enable_x64"))
    key: Any = f  # hashable, as every function is
    return _traced(key, structure, tuple(names), shapes, x_structure, x_shapes, x64)


@functools.lru_cache(maxsize=64)
def _traced(
    f: Any, structure: Any, names: tuple, shapes: tuple, x_structure: Any, x_shapes: tuple,
    x64: bool,
) -> Traced:  # fmt: skip
    del x64  # part of the key: the same function traces to another program

    def of_one(leaves: list, x_leaves: list) -> jax.Array:
        one = jax.tree.unflatten(x_structure, [leaf[None] for leaf in x_leaves])
        return f(jax.tree.unflatten(structure, leaves), one).reshape(-1)

    with jax.default_matmul_precision("highest"):
        program, out = jax.make_jaxpr(of_one, return_shape=True)(
            [jax.ShapeDtypeStruct(*shape) for shape in shapes],
            [jax.ShapeDtypeStruct(*shape) for shape in x_shapes],
        )
    return Traced(cut(program, num_params=len(shapes)), names, out.shape[0], out.dtype)


def forward_sweep(traced: Traced, leaves: list, x_leaves: list, plan: Plan) -> Block:
    """The values between stages; the last stage is left to the backward sweep.

    Args:
        traced: the program.
        leaves: its parameters.
        x_leaves: the examples, as many as ``plan`` says.
        plan: how they are dealt out.

    Returns:
        The block, ready for the way back.
    """
    schedule = traced.schedule
    values = dict(zip(schedule.inputs, x_leaves, strict=True))
    for call in schedule.calls[:-1]:
        fixed, varying = _operands(schedule, call, leaves, values)
        found = _forward(_signature(call), fixed, varying, plan=plan)
        _check_values(traced, call, found)
        values.update(zip(call.results, found, strict=True))
    n, k = x_leaves[0].shape[0], traced.num_outputs
    # output a of every example at once: examples do not mix, so their cotangents do not either
    basis = jnp.broadcast_to(jnp.eye(k, dtype=traced.dtype)[None], (n, k, k))
    return Block(values, {schedule.output: basis})


Sides = tuple[tuple[Term, ...], ...]  # the terms of each of several parameters


def backward_sweep(
    traced: Traced,
    leaves: list,
    blocks: list[Block],
    plans: list[Plan],
    waiting: dict[Key, list[list[Term]]] | None = None,
) -> Iterator[tuple[list[Key], list[Sides]]]:
    """The terms of each parameter, for each block, as soon as its first use has been passed.

    Args:
        traced: the program.
        leaves: its parameters.
        blocks: from ``forward_sweep``; emptied on the way.
        plans: how each block's examples are dealt out.
        waiting: where to keep terms of parameters that have uses still to come.

    Yields:
        Parameters, or slices of them, and for each block the terms of each of them.
    """
    schedule = traced.schedule
    first_uses = schedule.first_uses()
    waiting = {} if waiting is None else waiting
    for place in reversed(range(len(schedule.calls))):
        call = schedule.calls[place]
        for side, (block, plan) in enumerate(zip(blocks, plans, strict=True)):
            for key, found in _stage_terms(schedule, call, leaves, block, plan):
                waiting.setdefault(key, [[] for _ in blocks])[side].extend(found)
        keys = [key for key in waiting if first_uses[key] == place]
        complete = [waiting.pop(key) for key in keys]
        if complete:
            yield keys, [tuple(tuple(c[side]) for c in complete) for side in range(len(blocks))]
        del complete


def _stage_terms(
    schedule: Schedule, call: Call, leaves: list, block: Block, plan: Plan
) -> list[tuple[Key, list[Term]]]:
    """One stage backwards: its terms, and the cotangents of what entered it."""
    fixed, varying = _operands(schedule, call, leaves, block.values)
    slots = [slot for slot in call.slots if slot.source is Source.VALUE]
    wanted = tuple(
        i for i, slot in enumerate(slots)
        if slot.index in schedule.active and jnp.issubdtype(varying[i].dtype, np.floating)
    )  # fmt: skip
    reached = tuple(i for i, name in enumerate(call.results) if name in block.cotangents)
    downstream = [block.cotangents.pop(call.results[i]) for i in reached]
    for name in call.results:
        block.values.pop(name, None)
    if not reached:  # what it gives, no parameter enters
        return []
    upstream, lefts, found = _backward(
        _signature(call), fixed, varying, downstream,
        wanted=wanted, reached=reached, plan=plan,
    )  # fmt: skip
    for i, cotangent in zip(wanted, upstream, strict=True):
        name = slots[i].index
        known = block.cotangents.get(name)
        block.cotangents[name] = cotangent if known is None else known + cotangent
    by_key: dict[Key, list[Term]] = {}
    for (position, left), term in found:
        slot = call.slots[position]
        recorded = Term(
            None if left is None else lefts[left], term.right, term.kind, term.box, term.split
        )
        by_key.setdefault((slot.index, slot.step), []).append(recorded)
    return list(by_key.items())


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
        Source.PARAM: leaves, Source.CONSTANT: schedule.constants, Source.VALUE: values
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


def _evaluate(signature: _Signature, fixed: list, varying: Sequence, taps: Taps) -> list:
    fixed_left, varying_left = iter(fixed), iter(varying)
    operands = [
        operand(slot, next(varying_left if slot.source is Source.VALUE else fixed_left), position)
        for position, slot in enumerate(signature.slots)
    ]
    return signature.stage.evaluate(operands, taps)


@functools.partial(jax.jit, static_argnames=("signature", "plan"))
def _forward(signature: _Signature, fixed: list, varying: list, *, plan: Plan) -> list:
    """The results of a stage for all examples."""

    def of_chunk(fixed: list, varying: list) -> list:
        return jax.vmap(lambda one: _evaluate(signature, fixed, one, Taps(None)))(varying)

    return in_chunks(of_chunk, fixed, varying, plan)


@functools.partial(jax.jit, static_argnames=("signature", "wanted", "reached", "plan"))
def _backward(
    signature: _Signature, fixed: list, varying: list, downstream: list, *,
    wanted: tuple[int, ...], reached: tuple[int, ...], plan: Plan,
) -> tuple[list, list, list]:  # fmt: skip
    """A stage recomputed and pulled back, for all examples.

    Returns the cotangents of the ``wanted`` operands (n, k, ...), what the taps recorded
    (n, ...), and a term without its left factor a tap: ((position, left), term).
    """
    one = [jax.ShapeDtypeStruct(v.shape[1:], v.dtype) for v in varying]
    untapped = Taps(None)
    jax.eval_shape(lambda one: _evaluate(signature, fixed, one, untapped)[:0], one)

    def of_chunk(fixed: list, arguments: tuple[list, list]) -> tuple[list, list, list]:
        varying, downstream = arguments
        c = varying[0].shape[0]
        zeros = [jnp.zeros((c, *shape.shape), shape.dtype) for shape in untapped.shapes]

        def tapped(perturbations: list, wanted_one: list, all_one: list) -> tuple[list, list]:
            taps = Taps(perturbations)
            replaced = dict(zip(wanted, wanted_one, strict=True))
            entering = [replaced.get(i, value) for i, value in enumerate(all_one)]
            results = _evaluate(signature, fixed, entering, taps)
            return [results[i] for i in reached], taps.lefts

        _, pullback, lefts = jax.vjp(
            lambda perturbations, states: jax.vmap(tapped)(perturbations, states, varying),
            zeros,
            [varying[i] for i in wanted],
            has_aux=True,
        )
        if downstream[0].shape[1] == 1:  # one output needs no further batch axis
            squeezed = pullback([cotangent[:, 0] for cotangent in downstream])
            deltas, upstream = jax.tree.map(lambda leaf: leaf[:, None], squeezed)
        else:
            deltas, upstream = jax.vmap(pullback, in_axes=1, out_axes=1)(downstream)
        rights = [
            jax.vmap(jax.vmap(tap.right_fn))(delta)
            for tap, delta in zip(untapped.taps, deltas, strict=True)
        ]
        return upstream, lefts, rights

    upstream, lefts, rights = in_chunks(of_chunk, fixed, (varying, downstream), plan)
    found = [
        (_Static((tap.leaf, tap.left)), Term(None, right, tap.kind, tap.box, tap.split))
        for tap, right in zip(untapped.taps, rights, strict=True)
    ]
    return upstream, lefts, found


@jax.tree_util.register_static
class _Static(tuple):
    """Numbers that leave a compiled function as they are."""


def _grams(left: Sides, right: Sides | None = None, *, trace: bool, mesh: Mesh | None) -> Array:
    """Each parameter's block of the kernel, (p, n, m, ...)."""
    if mesh is not None or not _is_on_host(left):
        return _device_grams(left, right, trace=trace, mesh=mesh)
    sides = _by_parameter(left, right)
    by_blas = [_is_for_blas(each, trace=trace) for each in sides]
    rest = [each for each, served in zip(sides, by_blas, strict=True) if not served]
    found = iter(_device_grams(*zip(*rest, strict=True), trace=trace, mesh=None) if rest else ())
    blocks = [
        _blas_gram(each, trace=trace) if served else np.asarray(next(found))
        for each, served in zip(sides, by_blas, strict=True)
    ]
    return np.stack(blocks)


def _blas_gram(sides: Sides, *, trace: bool) -> np.ndarray:
    pairs = _group_pairs(jax.tree.map(np.asarray, sides))  # the same memory
    return functools.reduce(operator.add, (blas.gram_formed(*pair, trace=trace) for pair in pairs))


def _is_for_blas(sides: Sides, *, trace: bool) -> bool:
    """Whether BLAS multiplies all gradients of one parameter."""
    shapes = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), sides)
    leaves, structure = jax.tree.flatten(shapes)
    return _are_shapes_for_blas(structure, tuple(leaves), trace=trace)


@functools.lru_cache(maxsize=1024)
def _are_shapes_for_blas(structure: Any, leaves: tuple, *, trace: bool) -> bool:
    pairs = jax.eval_shape(_group_pairs, jax.tree.unflatten(structure, leaves))
    return all(blas.serves(*pair, trace=trace) for pair in pairs)


def _is_on_host(arrays: Any) -> bool:
    """Whether arrays lie in the host's memory and are known: BLAS may have them."""
    return all(
        not isinstance(leaf, jax.core.Tracer) and {d.platform for d in leaf.devices()} == {"cpu"}
        for leaf in jax.tree.leaves(arrays)
    )


@functools.partial(jax.jit, static_argnames=("trace", "mesh"))
def _device_grams(
    left: Sides, right: Sides | None = None, *, trace: bool, mesh: Mesh | None
) -> jax.Array:  # fmt: skip
    if mesh is None:
        theta = _stacked_grams(left, right, trace=trace)
    else:
        (axis,) = mesh.axis_names

        def of_device(rows: Sides, columns: Sides) -> jax.Array:
            everyone = jax.tree.map(
                lambda leaf: lax.all_gather(leaf, axis, axis=0, tiled=True), columns
            )
            return _stacked_grams(rows, everyone, trace=trace)

        examples = PartitionSpec(axis)
        theta = on_devices(
            of_device, mesh, in_specs=(examples, examples), out_specs=PartitionSpec(None, axis)
        )(left, left if right is None else right)
    return theta


def _stacked_grams(left: Sides, right: Sides | None, *, trace: bool) -> jax.Array:
    blocks = []
    for sides in _by_parameter(left, right):
        parts = [contractions.gram(*pair, trace=trace) for pair in _group_pairs(sides)]
        blocks.append(functools.reduce(operator.add, parts))
    return jnp.stack(blocks)


def _by_parameter(left: Sides, right: Sides | None) -> list[Sides]:
    """Each parameter's terms, of one side or of two."""
    return [(one,) for one in left] if right is None else list(zip(left, right, strict=True))


def _group_pairs(
    sides: Sequence[Any],
) -> list[tuple[Group, Group | None]]:
    """The groups of one parameter's terms, of one side or of two."""
    rows = gradients.groups(sides[0])
    columns = [None] * len(rows) if len(sides) == 1 else gradients.groups(sides[1])
    return list(zip(rows, columns, strict=True))


def _name(path: str, step: int | None) -> str:
    return path if step is None else f"{path}[{step}]"


def _check_finite(names: tuple[str, ...], theta: Array) -> None:
    is_finite = np.isfinite(theta).all(axis=tuple(range(1, theta.ndim)))
    if not is_finite.all():
        guilty = names[int(np.argmin(is_finite))]
        raise checks.UserError(
            f"the gradient in parameter {guilty} must be finite, got NaN or infinity: look at the "
            "weights and at what enters that layer, or compute in float64"
        )


def _check_values(traced: Traced, call: Call, values: list) -> None:
    """Stops where the forward sweep first meets a number that is not finite."""
    floating = [v for v in values if jnp.issubdtype(v.dtype, np.floating)]
    if any(isinstance(v, jax.core.Tracer) for v in floating):
        return  # only shapes are asked for
    if floating and not bool(_all_finite(floating)):
        names = ", ".join(
            _name(traced.names[slot.index], slot.step)
            for slot in call.slots
            if slot.source is Source.PARAM
        )
        raise checks.UserError(
            f"the values of the layer of {names} must be finite, got NaN or infinity: look at "
            "these weights, or compute in float64"
        )


@jax.jit
def _all_finite(values: list) -> jax.Array:
    return jnp.stack([jnp.isfinite(value).all() for value in values]).all()
