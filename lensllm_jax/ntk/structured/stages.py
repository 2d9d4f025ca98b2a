r"""Stages: segments of a model's program, such as one layer.

The computation of one example is partitioned where a loop over layers (``scan``) steps,

.. math:: f = S_m \circ \dots \circ S_1 ,

so that a kernel can be computed with one stage's activations in memory: values between stages are
stored, those inside are recomputed in the backward sweep.  All steps of a loop are calls of ONE
stage, compiled once whatever the depth.  A program without such a loop is a single stage.

A parameter enters a stage whole or as one slice of a stacked parameter (``Slot``).

Example:
    >>> import jax, jax.numpy as jnp
    >>> def f(w, x):  # four layers
    ...     return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, w)[0]
    >>> program = jax.make_jaxpr(f)(jnp.ones((4, 3, 3)), jnp.ones(3))
    >>> calls = partition(program, num_params=1).calls
    >>> [len(call.slots) for call in calls], calls[1].stage is calls[3].stage
    ([1, 2, 2, 2, 2, 1], True)
"""

import dataclasses
import enum
import functools
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.extend import core

from lensllm_jax.ntk.structured.taps import (
    STOP_GRADIENT,
    Ref,
    Taps,
    apply,
    called_program,
    evaluate,
    inner_program,
    opened,
    rule_of,
    scan_counts,
    unrolled_counts,
)

Key = tuple[int, int | None]  # a parameter, or a slice of a stacked one


class Source(enum.Enum):
    """Where an operand of a stage comes from."""

    PARAM = "param"  # a parameter: the same for all examples, with a gradient
    FIXED = "fixed"  # a parameter behind a stop_gradient
    CONSTANT = "constant"  # the same for all examples, without
    VALUE = "value"  # computed from the example


@dataclasses.dataclass(frozen=True)
class Slot:
    """One operand of a call."""

    source: Source
    index: int  # of the parameter (with or without gradient), constant or value
    step: int | None = None  # the slice of its first axis that enters; None for the whole
    dtype: Any = None  # what a parameter is cast to, once; None for its own


@dataclasses.dataclass(frozen=True, eq=False)
class Stage:
    """A segment of the program of one example; equal only to itself, so that it compiles once."""

    # operands (a ``Ref`` for each parameter) and taps to results
    run: Callable[[Sequence[Any], Taps], list[Any]]
    num_bytes: int  # of all values computed for one example
    num_flops: int  # of its matrix products


@dataclasses.dataclass(frozen=True)
class Call:
    """A stage with its operands in the program."""

    stage: Stage
    slots: tuple[Slot, ...]
    results: tuple[int, ...]  # the values that it computes


@dataclasses.dataclass(frozen=True)
class Schedule:
    """A program as a sequence of calls of its stages."""

    calls: tuple[Call, ...]
    constants: tuple[Any, ...]
    inputs: tuple[int, ...]  # the values that hold the example
    output: int  # the value that f returns
    active: frozenset[int]  # the values through which a parameter can reach the output

    @property
    def peak_stage_bytes(self) -> int:
        """The values of the largest stage, of one example."""
        return max(call.stage.num_bytes for call in self.calls)

    @property
    def num_flops(self) -> int:
        """Matrix products of one forward pass, of one example."""
        return sum(call.stage.num_flops for call in self.calls)

    def first_uses(self) -> dict[Key, int]:
        """The index of the call that each parameter, or slice of one, enters first."""
        first: dict[Key, int] = {}
        for index, call in enumerate(self.calls):
            for slot in call.slots:
                if slot.source is Source.PARAM:
                    first.setdefault((slot.index, slot.step), index)
        return first


def partition(program: core.ClosedJaxpr, *, num_params: int, loops: bool = True) -> Schedule:
    """Partitions a program at the steps of its loops over layers.

    Args:
        program: from ``jax.make_jaxpr(f)(params, *inputs)`` for one example, with one output.
        num_params: how many of its arguments are parameters; they come first.
        loops: whether to; without, the program is one stage.
    """
    schedule = _Partitioner(program, num_params, loops=loops).schedule()
    if _slices_and_wholes_meet(schedule):
        # one group of gradient terms cannot hold a slice and the whole: unrolled, it can
        schedule = _Partitioner(program, num_params, loops=False).schedule()
    return schedule


def _slices_and_wholes_meet(schedule: Schedule) -> bool:
    slots = {
        (slot.index, slot.step is None)
        for call in schedule.calls
        for slot in call.slots
        if slot.source is Source.PARAM
    }
    return any((leaf, not whole) in slots for leaf, whole in slots)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One operation outside of loops; names are numbers that occur once in a program."""

    apply: Callable[[Sequence[Any], Taps], Sequence[Any]]
    operands: tuple[int, ...]
    results: tuple[int, ...]
    # which results a parameter reaches, from the operands that it does
    active: Callable[[Sequence[bool]], Sequence[bool]]
    num_bytes: int = 0
    num_flops: int = 0


@dataclasses.dataclass(frozen=True)
class _Loop:
    """A loop over layers: every step takes ``fixed``, a state and the step's slices."""

    equation: Any
    operands: tuple[int, ...]
    results: tuple[int, ...]
    num_fixed: int
    num_state: int
    active: tuple[bool, ...]  # of each state: whether a parameter reaches it in some step


class _Partitioner:
    """Reads a program once, then groups its operations into calls of stages."""

    def __init__(self, program: core.ClosedJaxpr, num_params: int, *, loops: bool):
        self.loops = loops
        self.count = 0
        self.known: dict[int, Slot] = {}  # parameters (perhaps cast) and constants, by name
        self.views: dict[int, _Instruction] = {}  # rearranged parameters
        self.constants: list[Any] = []
        self.active: set[int] = set()
        self.parts: list[list[_Instruction] | _Loop] = [[]]
        names = [self.new() for _ in program.jaxpr.invars]
        for leaf, name in enumerate(names[:num_params]):
            self.known[name] = Slot(Source.PARAM, leaf)
        self.inputs = tuple(names[num_params:])
        (output,) = self.read(program.jaxpr, program.consts, names)
        self.output = self.new()
        # the last stage returns the output even where no operation made it
        self.instruct(_Instruction(_unchanged, (output,), (self.output,), tuple))

    def new(self) -> int:
        self.count += 1
        return self.count - 1

    def constant(self, value: Any) -> int:
        name = self.new()
        self.known[name] = Slot(Source.CONSTANT, len(self.constants))
        self.constants.append(value)
        return name

    def from_params(self, name: int) -> bool:
        is_param = name in self.known and self.known[name].source is not Source.CONSTANT
        return is_param or name in self.views

    def has_gradient(self, name: int) -> bool:
        """Whether a value is a parameter, perhaps rearranged, that is not held fixed."""
        while name in self.views and name not in self.known:
            (name, *_) = self.views[name].operands
        return name in self.known and self.known[name].source is Source.PARAM

    def instruct(self, instruction: _Instruction) -> None:
        if not isinstance(self.parts[-1], list):
            self.parts.append([])
        part = self.parts[-1]
        assert isinstance(part, list)
        part.append(instruction)
        self.mark(instruction.results, instruction.active(self.reached_by(instruction.operands)))

    def reached_by(self, names: Sequence[int]) -> list[bool]:
        """Which values a parameter reaches."""
        return [self.has_gradient(name) or name in self.active for name in names]

    def mark(self, names: Sequence[int], active: Sequence[bool]) -> None:
        self.active.update(itertools.compress(names, active))

    def read(self, jaxpr: core.Jaxpr, consts: Sequence, arguments: Sequence[int]) -> list[int]:
        names: dict[Any, int] = dict(zip(jaxpr.invars, arguments, strict=True))
        names.update(
            {var: self.constant(c) for var, c in zip(jaxpr.constvars, consts, strict=True)}
        )

        def name_of(atom: Any) -> int:
            return self.constant(atom.val) if isinstance(atom, core.Literal) else names[atom]

        for equation in jaxpr.eqns:
            operands = [name_of(atom) for atom in equation.invars]
            names.update(zip(equation.outvars, self.equation(equation, operands), strict=True))
        return [name_of(atom) for atom in jaxpr.outvars]

    def equation(self, equation: Any, operands: list[int]) -> Sequence[int]:
        if (program := called_program(equation)) is not None:
            return self.read(*program, operands)
        if (loop := self.loop(equation, operands)) is not None:
            self.parts.append(loop)
            self.mark(loop.results, loop.active)
            return loop.results
        results = tuple(self.new() for _ in equation.outvars)
        if equation.primitive.name == STOP_GRADIENT and operands[0] in self.known:
            slot = self.known[operands[0]]
            is_param = slot.source is Source.PARAM
            self.known[results[0]] = (
                dataclasses.replace(slot, source=Source.FIXED) if is_param else slot
            )
            return results
        instruction = _Instruction(
            functools.partial(apply, equation),
            tuple(operands),
            results,
            functools.partial(_active_results, equation),
            *_costs([equation]),
        )
        rule = rule_of(equation)
        if rule is None or not rule.is_view or not self.from_params(operands[0]):
            self.instruct(instruction)
            return results
        (operand, *_), (result,) = operands, results
        self.views[result] = instruction
        cast_before = operand not in self.known or self.known[operand].dtype is not None
        if equation.primitive.name == "convert_element_type" and not cast_before:
            dtype = equation.outvars[0].aval.dtype
            self.known[result] = dataclasses.replace(self.known[operand], dtype=dtype)
        return results

    def loop(self, equation: Any, operands: list[int]) -> _Loop | None:
        """The loop, if it steps through stacked parameters and can be partitioned."""
        counts = unrolled_counts(equation)
        if not self.loops or counts is None:
            return None
        num_fixed, num_state = counts
        stacked = operands[num_fixed + num_state :]
        if (
            len(equation.outvars) != num_state  # it stacks results of its steps
            or not any(self.from_params(name) for name in stacked)
            or any(name in self.views and name not in self.known for name in operands)
            or any(self.from_params(name) for name in operands[num_fixed : num_fixed + num_state])
            or any(name in self.active for name in stacked)
        ):
            return None
        state = []
        for name in operands[num_fixed : num_fixed + num_state]:
            state.append(self.new())  # a state must be a value, whatever it starts from
            self.instruct(_Instruction(_unchanged, (name,), (state[-1],), tuple))
        results = tuple(self.new() for _ in equation.outvars)
        entering = (*operands[:num_fixed], *state, *stacked)
        active = tuple(_active_results(equation, self.reached_by(entering)))
        return _Loop(equation, entering, results, num_fixed, num_state, active)

    def schedule(self) -> Schedule:
        calls: list[Call] = []
        needed = {self.output}
        for part in reversed(self.parts):
            added = [self.segment(part, needed)] if isinstance(part, list) else [*self.steps(part)]
            calls = added + calls
            needed |= {s.index for c in added for s in c.slots if s.source is Source.VALUE}
        return Schedule(
            tuple(call for call in calls if call.results),
            tuple(self.constants),
            self.inputs,
            self.output,
            frozenset(self.active),
        )

    def slot(self, name: int, step: int | None = None) -> Slot:
        known = self.known.get(name, Slot(Source.VALUE, name))
        return dataclasses.replace(known, step=step)

    def segment(self, part: list[_Instruction], needed: set[int]) -> Call:
        computed = {name for instruction in part for name in instruction.results}
        results = tuple(sorted(computed & needed))
        instructions = [*self.views_in(part), *part]
        inside = {name for instruction in instructions for name in instruction.results}
        entering = tuple(
            dict.fromkeys(n for i in instructions for n in i.operands if n not in inside)
        )

        def run(operands: Sequence[Any], taps: Taps) -> list[Any]:
            values = dict(zip(entering, operands, strict=True))
            for one in instructions:
                computed = one.apply([values[name] for name in one.operands], taps)
                values.update(zip(one.results, computed, strict=True))
            return [taps.whole(values[name]) for name in results]

        num_bytes = sum(instruction.num_bytes for instruction in part)
        num_flops = sum(instruction.num_flops for instruction in part)
        slots = tuple(self.slot(name) for name in entering)
        return Call(Stage(run, num_bytes, num_flops), slots, results)

    def views_in(self, part: list[_Instruction]) -> list[_Instruction]:
        """The views that a segment uses: each stage computes its own, so that none is stored."""
        views: dict[int, _Instruction] = {}
        open_names = [name for instruction in part for name in instruction.operands]
        while open_names:
            name = open_names.pop()
            if name in self.views and name not in views:
                views[name] = self.views[name]
                open_names += self.views[name].operands
        return [views[name] for name in sorted(views)]  # in the order of the program

    def steps(self, loop: _Loop) -> Iterator[Call]:
        settings = loop.equation.params
        jaxpr, consts = opened(settings["jaxpr"])

        def run(operands: Sequence[Any], taps: Taps) -> list[Any]:
            return [taps.whole(y) for y in evaluate(jaxpr, consts, operands, taps)]

        stage = Stage(run, *_costs(jaxpr.eqns))
        length, num_fixed = settings["length"], loop.num_fixed
        fixed, stacked = loop.operands[:num_fixed], loop.operands[num_fixed + loop.num_state :]
        state = loop.operands[num_fixed : num_fixed + loop.num_state]
        for i in range(length):
            step = length - 1 - i if settings["reverse"] else i
            last = i == length - 1
            results = loop.results if last else tuple(self.new() for _ in state)
            self.mark(results, loop.active)
            slots = (
                *(self.slot(name) for name in (*fixed, *state)),
                *(self.slot(name, step) for name in stacked),
            )
            yield Call(stage, slots, results)
            state = results


def _unchanged(operands: Sequence[Any], taps: Taps) -> Sequence[Any]:
    del taps
    return operands


def _active_results(equation: Any, entering: Sequence[bool]) -> list[bool]:
    """Which results a parameter may reach with a gradient, from the operands that it reaches."""
    reached = [any(entering)] * len(equation.outvars)
    if equation.primitive.name == STOP_GRADIENT:
        return [False]
    if (program := called_program(equation)) is not None:
        reached = _active_outputs(program[0], entering)
    elif equation.primitive.name == "scan" and (counts := scan_counts(equation.params)) is not None:
        num_fixed, num_state = counts
        flags, body = list(entering), opened(equation.params["jaxpr"])[0]
        for _ in range(num_state + 1):  # what reaches a state may reach others a step later
            reached = _active_outputs(body, flags)
            for i in range(num_state):
                flags[num_fixed + i] |= reached[i]
        reached = [*flags[num_fixed : num_fixed + num_state], *reached[num_state:]]
    return [
        flag and bool(jnp.issubdtype(variable.aval.dtype, np.inexact))
        for flag, variable in zip(reached, equation.outvars, strict=True)
    ]


def _active_outputs(jaxpr: core.Jaxpr, entering: Sequence[bool]) -> list[bool]:
    active = set(itertools.compress(jaxpr.invars, entering))

    def is_active(atom: Any) -> bool:
        return not isinstance(atom, core.Literal) and atom in active

    for equation in jaxpr.eqns:
        flags = _active_results(equation, [is_active(atom) for atom in equation.invars])
        active.update(itertools.compress(equation.outvars, flags))
    return [is_active(atom) for atom in jaxpr.outvars]


def _costs(equations: Iterable[Any]) -> tuple[int, int]:
    """Bytes of the values of equations, and operations of their matrix products."""
    num_bytes = num_flops = 0
    for equation in equations:
        inner = inner_program(equation)
        if inner is not None:
            repeats = equation.params.get("length", 1)
            inner_bytes, inner_flops = _costs(inner.eqns)
            # a loop keeps the values of all its steps for its backward pass
            num_bytes += repeats * inner_bytes
            num_flops += repeats * inner_flops
            continue
        avals = [variable.aval for variable in equation.outvars]
        num_bytes += sum(math.prod(a.shape) * a.dtype.itemsize for a in avals)
        if equation.primitive.name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            lengths = [equation.invars[0].aval.shape[axis] for axis in contracted]
            num_flops += 2 * math.prod(lengths) * math.prod(avals[0].shape)
    return num_bytes, num_flops


def operand(slot: Slot, value: Any, position: int) -> Any:
    """A stage's operand: of a parameter, or a slice taken already, a reference by position."""
    own_dtype = value.dtype
    value = value if slot.dtype is None else value.astype(slot.dtype)
    if slot.source is not Source.PARAM or not value.size:  # an empty one has no gradient
        return value
    return Ref.of(value, position, own_dtype)
