r"""Taps: what enters each use of a parameter, and what a perturbation there changes.

A parameter W acts through its uses.  At a use the program computes :math:`y = u(a, W)`; with
:math:`\delta = \partial f / \partial y`, every use adds its own term to the gradient of f in W,

* ``Outer``, y = a W (``dot_general``): :math:`\sum_t a_t \otimes \delta_t`;
* ``Lookup``, y = W[ids] (``gather`` of rows): :math:`\sum_t e_{\mathrm{ids}_t} \otimes \delta_t`;
* ``Materialized``, anything else: :math:`\partial f / \partial W` through this use, whole.

A tied table has several uses, and terms of one parameter are added before they are multiplied:
cross terms cannot be forgotten.  Since ``Materialized`` is always right, every function is in
reach; the first two forms only make it cheap.  ``RULES`` lists which operations have a cheap form,
and the values of each of their settings for which it holds.

``evaluate`` runs a traced function with a tap at each use: it records a (or the ids) and adds a
perturbation to y, whose gradient is delta.  It reads the program that JAX traced, so a model needs
no hooks, whatever library it was written in.  Loops over layers (``scan``) are unrolled, so that
each layer's slice of a stacked parameter is a parameter of its own.

Example:
    >>> import jax, jax.numpy as jnp
    >>> params = [jnp.ones((5, 3)), jnp.ones(5)]  # an embedding that is also the head, a bias
    >>> f = lambda p, ids: p[0][ids] @ p[0].T + p[1][None]
    >>> program, ids, taps = jax.make_jaxpr(f)(params, jnp.array([1, 2])), jnp.array([1, 2]), Taps()
    >>> refs = [Ref.of(value, leaf) for leaf, value in enumerate(params)]
    >>> _ = evaluate(program.jaxpr, program.consts, [*refs, ids], taps)
    >>> [(tap.form.__name__, tap.leaf) for tap in taps.taps]
    [('Lookup', 0), ('Outer', 0), ('Materialized', 1)]
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from lensllm_jax.ntk.structured.gradients import (
    Box,
    Lookup,
    Materialized,
    Outer,
    PlacedTerm,
    Term,
    sum_dtype,
)

# Parameters of longer loops are materialized: unrolled, such loops compile for minutes.
MAX_UNROLLED_STEPS = 256

STOP_GRADIENT = "stop_gradient"  # the primitive behind which a parameter has no gradient

# Calls without a derivative rule of their own, named as JAX 0.10 to 0.12 name them.
TRANSPARENT_CALLS = frozenset({"jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint"})


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["factor"],
    meta_fields=["form", "leaf", "box", "row_axes", "column_axes", "right_fn"],
)
@dataclasses.dataclass(frozen=True)
class Tap:
    """One use of a parameter, and its term once the cotangent of its result is known."""

    factor: Any  # what enters: Outer a (1, t, R), Lookup ids (t,), Materialized None
    form: type[Term]
    leaf: int  # which parameter
    box: Box  # the slice of it that is used
    row_axes: tuple[int, ...]
    column_axes: tuple[int, ...]
    right_fn: Callable[[Any], Any]  # from delta, shaped like y, to (t, C); Materialized (1, C)

    def term(self, deltas: Any) -> PlacedTerm:
        """The term of n examples and k outputs, from a tap and cotangents (n, k, ...) of them."""
        right = jax.vmap(jax.vmap(self.right_fn))(deltas)
        arrays = (right,) if self.factor is None else (self.factor, right)
        return PlacedTerm(self.form(*arrays), self.box, self.row_axes, self.column_axes)


@dataclasses.dataclass(frozen=True)
class Ref:
    """A value that is a parameter, or a part of it in another order of axes."""

    value: Any
    leaf: int
    box: Box
    # axes of the parameter that make up each axis of the value; those of length one, which
    # order nothing, are left out, so that () is an axis of length one
    axes: tuple[tuple[int, ...], ...]
    dtype: Any  # the parameter's own

    @classmethod
    def of(cls, value: Any, leaf: int, dtype: Any = None) -> "Ref":
        """The whole of parameter number ``leaf``, perhaps cast from its own ``dtype``."""
        return cls(
            value,
            leaf,
            tuple((0, length) for length in value.shape),
            tuple((axis,) if length > 1 else () for axis, length in enumerate(value.shape)),
            value.dtype if dtype is None else dtype,
        )

    @property
    def is_rounded(self) -> bool:
        """Whether the value's type does not hold all numbers of the parameter's."""
        if not is_plain_float(self.dtype):  # of 8 bits: all others hold its numbers
            return False
        return bool(jnp.promote_types(self.dtype, self.value.dtype) != self.value.dtype)

    def lengths(self, axes: Sequence[int]) -> list[int]:
        """How long each of some axes of the parameter is, within the box."""
        return [self.box[axis][1] - self.box[axis][0] for axis in axes]

    def by_axis(self, array: Any, order: Sequence[int], num_tokens: int) -> Any:
        """Features in the given order of axes to (t, features in the parameter's own order)."""
        separate = array.reshape(num_tokens, *self.lengths(order))
        sorting = (0, *(1 + int(i) for i in np.argsort(order)))
        return separate.transpose(sorting).reshape(num_tokens, -1)


class Taps:
    """Collects taps, and adds the perturbation of each where there is one.

    Attributes:
        taps: the taps, in the program's order.
        outputs: the y of each, unperturbed.
        products: those of matrix products, which an earlier run may have kept.
    """

    def __init__(
        self, perturbations: Sequence[Any] | None = None, kept: Sequence[Any] | None = None
    ):
        self.taps: list[Tap] = []
        self.outputs: list[Any] = []
        self.products: list[Any] = []
        self._perturbations = perturbations
        self._kept = kept
        self._factors: dict[Any, tuple[Any, Any]] = {}

    def add(self, y: Any, tap: Tap) -> Any:
        """``y``, perturbed."""
        index = len(self.taps)
        self.taps.append(tap)
        self.outputs.append(y)
        return y if self._perturbations is None else y + self._perturbations[index]

    def product(self, multiply: Callable[[Any, Any], Any], a: Any, w: Any) -> Any:
        """``multiply(a, w)``, or what an earlier run kept of it, with the derivative in a."""
        if not self._kept:
            y = multiply(a, w)
        else:
            y = _kept_product(multiply, self._kept[len(self.products)], a, w)
        self.products.append(y)
        return y

    def factor(self, source: Any, key: tuple, make: Callable[[], Any]) -> Any:
        """What ``make`` gives, made once per source and key.

        Query, key and value of an attention layer all read the same states.
        """
        where = (id(source), key)
        if where not in self._factors:
            # the source is stored, since the id of a freed value may be given again
            self._factors[where] = (make(), source)
        return self._factors[where][0]

    def whole(self, value: Any) -> Any:
        """A plain array in place of a reference: the use that needs no understanding."""
        if not isinstance(value, Ref):
            return value
        order = [axis for axes in value.axes for axis in axes]
        by_axis = np.argsort(order)

        def right_fn(delta: Any) -> Any:
            separate = delta.reshape(value.lengths(order)).transpose(by_axis)
            # multiplied in the parameter's own precision, where that is more
            dtype = jnp.promote_types(sum_dtype(delta.dtype), sum_dtype(value.dtype))
            return separate.reshape(1, -1).astype(dtype)

        axes = ((), tuple(sorted(order)))
        tap = Tap(None, Materialized, value.leaf, value.box, *axes, right_fn)
        return self.add(value.value, tap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _kept_product(multiply: Callable[[Any, Any], Any], y: Any, a: Any, w: Any) -> Any:
    """A known y = a W."""
    del multiply, a, w
    return y


@_kept_product.defjvp
def _kept_product_jvp(multiply: Callable, primals: tuple, tangents: tuple) -> tuple[Any, Any]:
    y, a, w = primals
    if not jnp.issubdtype(a.dtype, np.inexact):
        return y, jnp.zeros_like(y)
    return y, multiply(tangents[1], w)  # linear in a; w is held fixed where taps are added


def evaluate(jaxpr: core.Jaxpr, consts: Sequence, arguments: Sequence, taps: Taps) -> list:
    """Results of a program of which some arguments are parameters (``Ref``).

    A result that is a parameter itself stays a ``Ref``.
    """
    values: dict[Any, Any] = dict(zip(jaxpr.constvars, consts, strict=True))
    values.update(zip(jaxpr.invars, arguments, strict=True))

    def read(atom: Any) -> Any:
        return atom.val if isinstance(atom, core.Literal) else values[atom]

    for equation in jaxpr.eqns:
        operands = [read(atom) for atom in equation.invars]
        values.update(zip(equation.outvars, apply(equation, operands, taps), strict=True))
    return [read(atom) for atom in jaxpr.outvars]


def _bind(equation: Any, operands: Sequence) -> Sequence:
    """Results of one equation on plain arrays, through the public way to run a program."""
    arguments = {
        atom: operand
        for atom, operand in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, core.Literal)
    }
    origin = core.DebugInfo(__name__, equation.primitive.name, None, None)
    alone = core.Jaxpr(
        (), list(arguments), equation.outvars, [equation], equation.effects, debug_info=origin
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*arguments.values())


def apply(equation: Any, operands: Sequence[Any], taps: Taps) -> Sequence[Any]:
    """Results of one equation on arrays and parameters (``Ref``), with a tap at each use."""
    operands = list(operands)
    if not any(isinstance(operand, Ref) for operand in operands):
        return _bind(equation, operands)
    if equation.primitive.name == STOP_GRADIENT:
        return _bind(equation, [operand.value for operand in operands])
    if (program := called_program(equation)) is not None:
        return evaluate(*program, operands, taps)
    if (counts := unrolled_counts(equation)) is not None:
        return _unrolled_scan(equation.params, *counts, operands, taps)
    if (rule := rule_of(equation)) is not None:
        result = rule.apply(equation, operands, taps)
        if result is not None:
            return [result]
    return _bind(equation, [taps.whole(operand) for operand in operands])


def called_program(equation: Any) -> tuple[core.Jaxpr, Sequence] | None:
    """What a call without a derivative rule of its own runs, and its constants."""
    if equation.primitive.name not in TRANSPARENT_CALLS:
        return None
    return opened(equation.params.get("jaxpr", equation.params.get("call_jaxpr")))


def opened(program: Any) -> tuple[core.Jaxpr, Sequence]:
    """A nested program and its constants, whether JAX keeps it open or closed."""
    closed = getattr(program, "jaxpr", program)
    return closed, getattr(program, "consts", ())


def inner_program(equation: Any) -> core.Jaxpr | None:
    """The program inside a call or a loop; ``None`` for a plain operation."""
    program = equation.params.get("jaxpr", equation.params.get("call_jaxpr"))
    return None if program is None else opened(program)[0]


def scan_counts(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """How many operands of a loop are constants and how many its state.

    ``None`` where this version of JAX records the counts in a way that we do not know.
    """
    if "num_consts" in settings:  # JAX 0.10
        return settings["num_consts"], settings["num_carry"]
    if "ft_in" in settings:  # JAX 0.12
        consts, carry, _ = settings["ft_in"].unpack()
        return len(consts), len(carry)
    return None


def unrolled_counts(equation: Any) -> tuple[int, int] | None:
    """The same of a loop that is unrolled; ``None`` for any other operation.

    Parameters of a loop that is too long are materialized: exact, but expensive.
    """
    settings = equation.params
    if equation.primitive.name != "scan" or not 0 < settings["length"] <= MAX_UNROLLED_STEPS:
        return None
    return scan_counts(settings)


def _unrolled_scan(
    settings: dict, num_consts: int, num_carry: int, operands: list, taps: Taps
) -> list:
    """A loop over layers, unrolled."""
    consts = operands[:num_consts]
    carry = operands[num_consts : num_consts + num_carry]
    # an axis merged of several cannot be stepped through as a view
    stacked = [
        taps.whole(x) if isinstance(x, Ref) and len(x.axes[0]) > 1 else x
        for x in operands[num_consts + num_carry :]
    ]
    body, length = opened(settings["jaxpr"]), settings["length"]
    steps = range(length - 1, -1, -1) if settings["reverse"] else range(length)
    per_step: list[list] = [[] for _ in range(length)]
    for step in steps:
        slices = [_index(x, step) for x in stacked]
        results = evaluate(*body, [*consts, *carry, *slices], taps)
        carry = results[:num_carry]
        per_step[step] = [taps.whole(y) for y in results[num_carry:]]
    return [*carry, *(jnp.stack(ys) for ys in zip(*per_step, strict=True))]


def _index(x: Any, step: int) -> Any:
    """``x[step]``; of a parameter, a reference to that slice."""
    if not isinstance(x, Ref):
        return lax.index_in_dim(x, step, keepdims=False)
    box = x.box
    for axis in x.axes[0]:  # one, or none where the loop has a single step
        box = _shrunk(box, axis, step, step + 1)
    value = lax.index_in_dim(x.value, step, keepdims=False)
    return dataclasses.replace(x, value=value, box=box, axes=x.axes[1:])


def _shrunk(box: tuple, axis: int, start: int, stop: int) -> tuple:
    offset = box[axis][0]
    return (*box[:axis], (offset + start, offset + stop), *box[axis + 1 :])


# Views: the same parameter, entry for entry, in another arrangement.


def _transposed(equation: Any, operands: list, taps: Taps) -> Ref | None:
    del taps  # a view is no use
    (ref,) = operands
    axes = tuple(ref.axes[i] for i in equation.params["permutation"])
    return dataclasses.replace(ref, value=_bind(equation, [ref.value])[0], axes=axes)


def _reshaped(equation: Any, operands: list, taps: Taps) -> Ref | None:
    """Axes merged, separated where they had been merged, added or dropped at length one."""
    del taps
    if len(operands) != 1:  # a shape that is known at run time only
        return None
    (ref,) = operands
    value = _bind(equation, [ref.value])[0]
    axes = _regrouped(ref, value.shape) if value.size == ref.value.size else None
    return None if axes is None else dataclasses.replace(ref, value=value, axes=axes)


def _regrouped(ref: Ref, shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...] | None:
    """The axes of ``ref``, in their order, grouped into a new shape; None if one would split."""
    left = [axis for axes in ref.axes for axis in axes]
    groups = []
    for length in shape:
        group: list[int] = []
        while math.prod(ref.lengths(group)) < length and left:
            group.append(left.pop(0))
        if math.prod(ref.lengths(group)) != length:
            return None
        groups.append(tuple(group))
    return tuple(groups)


def _recast(equation: Any, operands: list, taps: Taps) -> Ref | None:
    """A cast; behind a rounding one, another rounds the sum of a gradient's terms: no view."""
    del taps  # a view is no use
    (ref,) = operands
    value = _bind(equation, [ref.value])[0]
    if ref.is_rounded and value.dtype != ref.value.dtype:
        return None
    return dataclasses.replace(ref, value=value)


def _sliced(equation: Any, operands: list, taps: Taps) -> Ref | None:
    del taps  # a view is no use
    (ref,) = operands
    settings = equation.params
    box, axes = ref.box, list(ref.axes)
    spans = zip(settings["start_indices"], settings["limit_indices"], strict=True)
    for i, (start, stop) in enumerate(spans):
        if stop - start == ref.value.shape[i]:
            continue
        if len(axes[i]) != 1:  # a slice of merged axes is no box
            return None
        box = _shrunk(box, axes[i][0], start, stop)
        axes[i] = axes[i] if stop - start > 1 else ()
    return dataclasses.replace(
        ref, value=_bind(equation, [ref.value])[0], box=box, axes=tuple(axes)
    )


# Uses with a cheap form.


def _dot_general(equation: Any, operands: list, taps: Taps) -> Any:
    """Y = a W, contracted over any axes of W, on either side."""
    contracted, batched = equation.params["dimension_numbers"]
    side = [isinstance(operand, Ref) for operand in operands].index(True)
    ref, a = operands[side], operands[1 - side]
    if isinstance(a, Ref) or any(batched):
        return None
    contracted_w, contracted_a = contracted[side], contracted[1 - side]
    free_w = [i for i in range(ref.value.ndim) if i not in contracted_w]
    free_a = [i for i in range(a.ndim) if i not in contracted_a]
    row_order = [axis for i in contracted_w for axis in ref.axes[i]]
    column_order = [axis for i in free_w for axis in ref.axes[i]]
    num_tokens = math.prod(a.shape[i] for i in free_a)
    dtype = jnp.promote_types(a.dtype, equation.outvars[0].aval.dtype)

    def right_fn(delta: Any) -> Any:
        # y has the free axes of the first operand, then those of the second
        if side == 0:
            delta = jnp.moveaxis(delta, range(len(free_w)), range(-len(free_w), 0))
        return ref.by_axis(delta, column_order, num_tokens)

    factor = taps.factor(
        a,
        (dtype, *map(tuple, (free_a, contracted_a, row_order, ref.lengths(row_order)))),
        lambda: ref.by_axis(
            a.transpose(*free_a, *contracted_a).astype(dtype), row_order, num_tokens
        )[None],
    )

    def multiply(a: Any, w: Any) -> Any:
        return _bind(equation, [w, a] if side == 0 else [a, w])[0]

    axes = (tuple(sorted(row_order)), tuple(sorted(column_order)))
    tap = Tap(factor, Outer, ref.leaf, ref.box, *axes, right_fn)
    return taps.add(taps.product(multiply, a, ref.value), tap)


def _gather(equation: Any, operands: list, taps: Taps) -> Any:
    """Y = W[ids]: whole rows of a table and nothing else."""
    ref, indices = operands
    numbers, settings = equation.params["dimension_numbers"], equation.params
    if not isinstance(ref, Ref) or isinstance(indices, Ref):
        return None
    y = _bind(equation, [ref.value, indices])[0]
    num_rows, *row = ref.value.shape
    takes_rows = (
        numbers.collapsed_slice_dims == numbers.start_index_map == (0,)
        and tuple(settings["slice_sizes"]) == (1, *row)
        and tuple(numbers.offset_dims) == tuple(range(indices.ndim - 1, y.ndim))
        and list(ref.axes[0]) == sorted(ref.axes[0])
    )
    if not takes_rows:
        return None
    mode = settings["mode"]
    num_ids = math.prod(indices.shape[:-1])

    def ids() -> Any:
        flat = indices.reshape(-1)
        # in the ids' own type, which may not reach the table's end
        last = min(num_rows - 1, int(jnp.iinfo(flat.dtype).max))
        clipped = jnp.clip(flat, 0, last)
        within = clipped.astype(jnp.int32)
        if mode != lax.GatherScatterMode.FILL_OR_DROP:
            return within
        return jnp.where(flat == clipped, within, -1)  # a constant filled in has no gradient

    order = [axis for axes in ref.axes[1:] for axis in axes]

    def right_fn(delta: Any) -> Any:
        return ref.by_axis(delta, order, num_ids)

    axes = (tuple(ref.axes[0]), tuple(sorted(order)))
    factor = taps.factor(indices, (num_rows, mode), ids)
    return taps.add(y, Tap(factor, Lookup, ref.leaf, ref.box, *axes, right_fn))


class Rule(NamedTuple):
    """An operation with a cheap form, and when it holds.

    Everywhere: all lengths positive; the result, and what of the operands is a parameter, real
    floats of 16 bits or more, since the derivative of a cast to fewer rounds as much; the other
    operands real.  Whatever has no rule, or not here, is differentiated whole.
    """

    # from the equation, its operands and the taps; None where it does not hold after all
    apply: Callable[[Any, list, Taps], Any]
    # each setting of the primitive, and the values that are understood
    settings: Mapping[str, Callable[[Any], bool]]
    is_view: bool = False  # the same entries in another arrangement


def _any(value: Any) -> bool:
    del value
    return True


def _unset(value: Any) -> bool:
    return value is None


def _ones(strides: Any) -> bool:
    return all(stride == 1 for stride in strides or ())


_GATHER_MODES = (
    lax.GatherScatterMode.CLIP,
    lax.GatherScatterMode.FILL_OR_DROP,
    lax.GatherScatterMode.PROMISE_IN_BOUNDS,
)

# fmt: off
RULES: dict[str, Rule] = {
    "transpose": Rule(_transposed, {"permutation": _any}, is_view=True),
    "reshape": Rule(
        _reshaped, {"new_sizes": _any, "dimensions": _unset, "sharding": _unset}, is_view=True
    ),
    "squeeze": Rule(_reshaped, {"dimensions": _any}, is_view=True),
    "broadcast_in_dim": Rule(
        _reshaped,
        {"shape": _any, "broadcast_dimensions": _any, "sharding": _unset},
        is_view=True,
    ),
    "convert_element_type": Rule(
        _recast, {"new_dtype": _any, "weak_type": _any, "sharding": _unset}, is_view=True
    ),
    "slice": Rule(
        _sliced, {"start_indices": _any, "limit_indices": _any, "strides": _ones}, is_view=True
    ),
    "dot_general": Rule(
        _dot_general,
        {
            "dimension_numbers": _any,
            "precision": _any,  # how the product is rounded
            "preferred_element_type": _any,  # the result's, which is checked
            "out_sharding": _unset,
        },
    ),
    "gather": Rule(
        _gather,
        {
            "dimension_numbers": lambda numbers: not numbers.operand_batching_dims,
            "slice_sizes": _any,
            "mode": lambda mode: mode in _GATHER_MODES,
            "fill_value": _any,
            "unique_indices": _any,  # these two are promises
            "indices_are_sorted": _any,
        },
    ),
}
# fmt: on


def rule_of(equation: Any) -> Rule | None:
    """The cheap form of an operation on a parameter, if all that it presumes holds."""
    rule = RULES.get(equation.primitive.name)
    if rule is None or not equation.params.keys() <= rule.settings.keys():
        return None
    entering = [atom.aval for atom in equation.invars]
    (result,) = (variable.aval for variable in equation.outvars)
    holds = (
        all(understood(equation.params[name]) for name, understood in rule.settings.items()
            if name in equation.params)
        and all(all(aval.shape) and _is_real(aval.dtype) for aval in (*entering, result))
        and is_plain_float(result.dtype)
    )  # fmt: skip
    return rule if holds else None


def is_plain_float(dtype: Any) -> bool:
    """Whether numbers of a type have derivatives of the same precision."""
    return jnp.issubdtype(dtype, np.floating) and dtype.itemsize > 1


def _is_real(dtype: Any) -> bool:
    return is_plain_float(dtype) or jnp.issubdtype(dtype, np.integer) or dtype == np.bool_
