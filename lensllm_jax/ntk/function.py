r"""The function whose kernel is taken: what it runs, and that its rows are independent.

A kernel :math:`\Theta_{ij}` of two examples exists only where output i of f depends on example i
alone.  ``check_rows`` compares a row with the same example alone.

Compiled programs are stored by function.  A function may change, though, without becoming another
object (a constant that it closes over is set anew), or have no hash.  ``TracedFn`` is the
function together with the SHA-256 of its program: constants, nested programs and all.

Example:
    >>> import jax.numpy as jnp
    >>> y = {"scale": 1.0}
    >>> f = lambda w, x: x @ w * y["scale"]
    >>> before = TracedFn.of(f, jnp.ones(2), jnp.ones((3, 2)))
    >>> y["scale"] = 2.0
    >>> before == TracedFn.of(f, jnp.ones(2), jnp.ones((3, 2)))
    False
"""

import dataclasses
import fnmatch
import functools
import hashlib
import re
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from lensllm_jax import checks, padding
from lensllm_jax.typing import ApplyFn, Array, Params

# by bytes of the least precise float in the program: two sizes of a batch round differently, each
# rounding a thousand times or more below these
_ROW_TOLERANCE = {8: 1e-6, 4: 1e-3, 2: 5e-2, 1: 0.5}
_PERTURBATION = 1e-2  # of parameters at which all rows are equal, such as a head of zeros
_ADDRESS = re.compile(r" at 0x[0-9a-f]+|0x[0-9a-f]{6,}")


@dataclasses.dataclass(frozen=True, eq=False)
class TracedFn:
    """A function that is equal to itself as long as it runs the same program."""

    f: ApplyFn
    digest: str  # SHA-256 of its program, and of its derivative where that has rules of its own
    float_bytes: int  # of the least precise float in it
    callbacks: tuple[str, ...]  # primitives that call back into Python

    @classmethod
    def of(cls, f: ApplyFn, params: Params, *sides: Any) -> "TracedFn":
        """Traces ``f`` for one example of each side.

        Raises:
            UserError: if an array is traced itself: a kernel is computed outside ``jax.jit``.
        """
        if isinstance(f, cls):
            return f
        _check_not_traced((params, sides, jnp.zeros(())))  # any array is, within a trace
        walk, shapes = _Walk(), jax.tree.map(_shape, params)
        for x in sides:
            one = jax.tree.map(_one_example, x)
            walk.closed(jax.make_jaxpr(lambda p, x: f(p, x))(shapes, one))
            if walk.has_rules:
                walk.closed(jax.make_jaxpr(functools.partial(_gradients, f))(shapes, one))
        return cls(f, walk.digest.hexdigest(), walk.float_bytes, tuple(sorted(walk.callbacks)))

    def __call__(self, params: Params, x: Any) -> Array:
        """The outputs of ``f``."""
        return self.f(params, x)

    def __eq__(self, other: object) -> bool:
        """Whether both are one function that runs one program."""
        if not isinstance(other, TracedFn) or self.digest != other.digest:
            return False
        try:
            return self.f is other.f or bool(self.f == other.f)
        except (TypeError, ValueError):  # a dataclass of arrays has no truth value
            return False

    def __hash__(self) -> int:
        """By the program."""
        return hash(self.digest)


@dataclasses.dataclass(frozen=True)
class FunctionOfSome:
    """A function of some of its parameters: the others are held fixed, without a gradient."""

    f: ApplyFn
    chosen: frozenset[str]  # slash-joined paths

    def __call__(self, params: Params, x: Any) -> Array:
        """The outputs of ``f``."""

        def held(path: Any, leaf: Array) -> Array:
            return leaf if slash_joined(path) in self.chosen else lax.stop_gradient(leaf)

        return self.f(jax.tree.map_with_path(held, params), x)


def function_of(f: ApplyFn, params: Params, parameters: str | None) -> ApplyFn:
    """``f`` as a function of the parameters of ``chosen_paths`` alone.

    Example:
        >>> params = {"head": {"kernel": jnp.ones(2), "bias": jnp.ones(())}}
        >>> f = lambda p, x: x @ p["head"]["kernel"] + p["head"]["bias"]
        >>> sorted(function_of(f, params, "*/bias, *ker*").chosen)
        ['head/bias', 'head/kernel']
    """
    return f if parameters is None else FunctionOfSome(f, chosen_paths(params, parameters))


def chosen_paths(params: Params, parameters: str | None) -> frozenset[str]:
    """Slash-joined paths of some parameters.

    Args:
        params: all of them.
        parameters: globs of paths, separated by commas; ``None`` stands for all.

    Raises:
        UserError: if a glob matches none.
    """
    paths = [slash_joined(path) for path, _ in jax.tree.leaves_with_path(params)]
    if parameters is None:
        return frozenset(paths)
    chosen: set[str] = set()
    for glob in str(parameters).split(","):
        matched = fnmatch.filter(paths, glob.strip())
        if not matched:
            raise checks.UserError(
                "`parameters` must be globs, separated by commas, that match paths such as "
                f"{', '.join(paths[:1])!r}, got {glob!r}, which matches none"
            )
        chosen.update(matched)
    return frozenset(chosen)


def slash_joined(path: Any) -> str:
    """The path of a leaf, such as blocks/up/kernel."""
    return jax.tree_util.keystr(path, simple=True, separator="/")


def check_rows(name: str, f: TracedFn, params: Params, x: Any) -> None:
    """Checks that a row of outputs is that of its example alone.

    The first example and the last one unlike it are each compared, alone, with the row that they
    have beside the other: the forward passes of four examples.  Both, since a sum over all rows up
    to one's own, or a state carried from row to row, leaves the first as it is.

    Args:
        name: what the caller calls ``x``.
        f: the function.
        params: its parameters; where they make all rows equal, others close by are taken.
        x: the examples.

    Raises:
        UserError: if they differ by more than rounding.
    """
    pair = [0, _last_unlike_first(x)]
    difference = None
    for perturbed in (False, True):
        both, *ones = (
            np.asarray(_outputs(f, params, padding.take_rows(x, rows), perturbed), np.float64)
            for rows in (pair, pair[:1], pair[1:])
        )
        both, alone = both.reshape(2, -1), np.concatenate(ones).reshape(2, -1)
        if not (np.isfinite(both).all() and np.isfinite(alone).all()):
            break
        tolerance = _ROW_TOLERANCE[f.float_bytes] * np.abs(both).max(initial=0.0)
        worst = int(np.argmax(np.abs(both - alone))) if both.size else 0
        if not both.size or abs(both.flat[worst] - alone.flat[worst]) <= tolerance:
            difference = None
        elif difference is None:
            example, beside = (pair, pair[::-1])[worst >= both.shape[1]]
            difference = both.flat[worst], example, beside, alone.flat[worst]
        # where rows are equal, or a difference may be the rounding of a small rest, look elsewhere
        if difference is None and not np.array_equal(both[0], both[1]):
            return
    if difference is not None:
        raise checks.UserError(
            f"`f(params, {name})` must compute each row from its own example alone, got "
            "{:.6g} for example {} beside example {} and {:.6g} alone: take statistics over the "
            "batch and divisions by its size out of f, or leave this check out with "
            "check_rows=False".format(*difference)
        )


def _last_unlike_first(x: Any) -> int:
    """The last example that differs from the first, or the last: equal ones have equal means."""
    n = padding.num_examples(x)
    differs = np.zeros(n, bool)
    for leaf in jax.tree.leaves(x):
        is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        rows = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        differs |= (rows != rows[:1]).any(axis=tuple(range(1, rows.ndim)))
    return int(np.flatnonzero(differs)[-1]) if differs.any() else n - 1


@functools.partial(jax.jit, static_argnums=(0, 3))
def _outputs(f: TracedFn, params: Params, x: Any, perturbed: bool) -> Array:
    def moved(leaf: Array) -> Array:
        angles = jnp.arange(jnp.size(leaf)) % 97
        return leaf + _PERTURBATION * jnp.cos(angles).reshape(jnp.shape(leaf)).astype(leaf.dtype)

    return f(jax.tree.map(moved, params) if perturbed else params, x)


def _check_not_traced(tree: Any) -> None:
    if any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(tree)):
        raise checks.UserError(
            "`params` and `x` must hold numbers, got what jax.jit, jax.vmap or jax.grad traces: "
            "a kernel is computed outside of them, since it compiles its own programs"
        )


def _shape(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _gradients(f: ApplyFn, params: Params, x: Any) -> Params:
    """Derivatives in the parameters, mapped over examples, so that every custom rule runs."""

    def of_one(one: Any) -> Params:
        out, pullback = jax.vjp(lambda p: f(p, jax.tree.map(lambda leaf: leaf[None], one)), params)
        return pullback(jnp.ones_like(out))

    return jax.vmap(of_one)(x)


def _one_example(leaf: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct((1, *jnp.shape(leaf)[1:]), jnp.result_type(leaf))


class _Walk:
    """Adds up what a program consists of; names are numbers in its own order."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.float_bytes = 8
        self.callbacks: set[str] = set()
        self.has_rules = False  # what a derivative or a map of it runs is not in the program

    def closed(self, program: core.ClosedJaxpr) -> None:
        self.value(tuple(program.consts))
        self.jaxpr(program.jaxpr)

    def jaxpr(self, jaxpr: core.Jaxpr) -> None:
        names: dict[Any, int] = {}
        for variable in (*jaxpr.constvars, *jaxpr.invars):
            self.text(names.setdefault(variable, len(names)), self.type(variable))
        for equation in jaxpr.eqns:
            name = equation.primitive.name
            self.text(name)
            self.has_rules |= name.startswith("custom_")
            if "callback" in name:
                self.callbacks.add(name)
            for atom in equation.invars:
                self.atom(atom, names)
            for setting, value in sorted(equation.params.items()):
                self.text(setting)
                self.value(value, by_identity="callback" in name)
            for variable in equation.outvars:
                self.text(names.setdefault(variable, len(names)), self.type(variable))
        for atom in jaxpr.outvars:
            self.atom(atom, names)

    def atom(self, atom: Any, names: Mapping[Any, int]) -> None:
        if isinstance(atom, core.Literal):
            self.text(self.type(atom))
            self.value(atom.val)
        else:
            self.text(names[atom])

    def type(self, atom: Any) -> str:
        dtype = getattr(atom.aval, "dtype", None)
        if dtype is not None and jnp.issubdtype(dtype, np.floating):
            self.float_bytes = min(self.float_bytes, dtype.itemsize)
        return str(atom.aval)

    def value(self, value: Any, *, by_identity: bool = False) -> None:
        """What a setting holds: a program, numbers, a function, or several of them."""
        if isinstance(value, core.ClosedJaxpr):
            self.closed(value)
        elif isinstance(value, core.Jaxpr):
            self.jaxpr(value)
        elif isinstance(value, np.ndarray | np.generic | jax.Array):
            _check_not_traced(value)
            if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
                value = jax.random.key_data(value)
            array = np.asarray(value)
            self.text(array.dtype, array.shape)
            self.digest.update(array.tobytes())
        elif isinstance(value, tuple | list):
            self.text("(")
            for member in value:
                self.value(member, by_identity=by_identity)
            self.text(")")
        elif isinstance(value, Mapping):
            self.value(tuple(sorted(value.items(), key=str)), by_identity=by_identity)
        elif by_identity:  # with the addresses of functions
            self.text(repr(value))
        else:
            self.text(_described(value))

    def text(self, *parts: Any) -> None:
        self.digest.update(" ".join(map(str, parts)).encode())
        self.digest.update(b"\0")


def _described(value: Any) -> str:
    """A setting in words that are the same in every process."""
    if isinstance(value, Callable):  # type: ignore[arg-type]
        module = getattr(value, "__module__", "")
        return f"{module}.{getattr(value, '__qualname__', type(value).__name__)}"
    return _ADDRESS.sub("", repr(value))
