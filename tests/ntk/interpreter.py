"""Runs a traced program in NumPy, operation by operation: nothing is compiled.

Compiling is nearly all of the time of a tiny program that runs once.  Operations that are not
listed here run by JAX, which compiles each of them once for its shapes.  ``structured_kernel`` and
``product`` are compared with ``dense_kernel``, all of them run in this way.

Example:
    >>> import jax, jax.numpy as jnp
    >>> program = jax.make_jaxpr(lambda x: jnp.tanh(x @ x.T).sum())(np.eye(2))
    >>> [round(float(y), 6) for y in run(program, [np.eye(2)])]
    [1.523188]
"""

import itertools
import string

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.extend import core

from lensllm_jax.ntk import operator
from lensllm_jax.ntk.structured import sweeps
from lensllm_jax.ntk.structured.chunks import Plan
from lensllm_jax.ntk.structured.contractions import parameter_kernels
from lensllm_jax.ntk.structured.taps import opened, scan_counts

CALLS = {
    "jit", "pjit", "closed_call", "core_call", "remat2", "checkpoint", "custom_jvp_call",
    "custom_vjp_call", "custom_vjp_call_jaxpr",
}  # fmt: skip


def run(program, arguments):
    """The results of a closed jaxpr."""
    with np.errstate(all="ignore"):
        return _run(*opened(program), arguments)


def structured_kernel(f, params, sides, *, kept_bytes=0.0):
    """Theta (n, m, k, k) by the sweeps, of one or two sides of examples."""
    programs = sweeps._programs(f, params, sides)
    k = programs[0].num_outputs
    sizes = [len(jax.tree.leaves(x)[0]) for x in sides]

    def kernel(params, sides):
        leaves = jax.tree.leaves(params)
        blocks = [
            sweeps.forward_sweep(
                program, leaves, jax.tree.leaves(x), Plan(n, n, None), kept_bytes=kept_bytes
            )
            for program, x, n in zip(programs, sides, sizes, strict=True)
        ]
        theta = jnp.zeros((sizes[0], sizes[-1], k, k))
        for _, terms in sweeps.backward_sweep(leaves, blocks):
            theta += parameter_kernels(*terms, trace=False, mesh=None).sum(0)
        return theta

    (theta,) = _interpreted(kernel, params, sides)
    return theta


def product(f, params, sides, vectors):
    """Theta v (c, n, ...) of vectors (c, m, ...) as ``ntk_matvec`` computes it, blocks of two."""
    rows, columns = (operator._Blocks.of(f, params, x, 2) for x in (sides[0], sides[-1]))

    def products(params, rows, columns, vectors):
        return jax.vmap(lambda v: operator._matvec(f, params, rows, columns, v))(vectors)

    (blocked,) = _interpreted(products, params, rows.x, columns.x, columns.cut(vectors))
    return rows.join(blocked)


def dense_kernel(f, params, sides):
    """Theta (n, m, k, k) as the product of dense Jacobians."""
    jacobians = []
    for x in sides:
        n, k = (*jax.eval_shape(f, params, x).shape, 1)[:2]
        leaves = _interpreted(jax.jacrev(f), params, x)
        jacobians.append(
            np.concatenate([leaf.reshape(n, k, leaf.size // (n * k)) for leaf in leaves], axis=2)
        )
    return np.einsum("iap,jbp->ijab", jacobians[0], jacobians[-1])


def _interpreted(f, *arguments):
    return run(jax.make_jaxpr(f)(*arguments), jax.tree.leaves(arguments))


def _run(jaxpr, consts, arguments):
    values = dict(zip(jaxpr.constvars, map(_plain, consts), strict=True))
    values.update(zip(jaxpr.invars, map(_plain, arguments), strict=True))

    def read(atom):
        if isinstance(atom, core.Literal):
            return np.asarray(atom.val, atom.aval.dtype)
        return values[atom]

    for equation in jaxpr.eqns:
        results = _apply(equation, [read(atom) for atom in equation.invars])
        for variable, result in zip(equation.outvars, results, strict=True):
            is_key = _is_key(variable.aval)
            values[variable] = result if is_key else np.asarray(result, variable.aval.dtype)
    return [read(atom) for atom in jaxpr.outvars]


def _plain(value):
    return value if _is_key(value) else np.asarray(value)


def _is_key(value):
    """Whether it is a random key, which NumPy does not know."""
    dtype = getattr(value, "dtype", None)
    return dtype is not None and jax.dtypes.issubdtype(dtype, jax.dtypes.extended)


def _apply(equation, operands):
    name, settings = equation.primitive.name, equation.params
    if name in CALLS:
        inner = settings.get("jaxpr", settings.get("call_jaxpr", settings.get("fun_jaxpr")))
        return _run(*opened(inner), operands)
    if name in SEVERAL_RESULTS:
        return SEVERAL_RESULTS[name](settings, operands)
    has_keys = any(map(_is_key, operands))
    if name in ELEMENTWISE and not has_keys:
        return [ELEMENTWISE[name](*operands)]
    if name in ARRAYS and not has_keys:
        result = ARRAYS[name](equation, *operands)
        if result is not None:
            return [result]
    return _by_jax(equation, operands)


def _by_jax(equation, operands):
    """One operation as a program of its own.

    As the taps do it, and not by their code: an oracle shares none with what it checks.
    """
    variables = {
        atom: operand
        for atom, operand in zip(equation.invars, operands, strict=True)
        if not isinstance(atom, core.Literal)
    }
    origin = core.DebugInfo(__name__, equation.primitive.name, None, None)
    alone = core.Jaxpr(
        (), list(variables), equation.outvars, [equation], equation.effects, debug_info=origin
    )
    return core.jaxpr_as_fun(core.ClosedJaxpr(alone, ()))(*variables.values())


def _scan(settings, operands):
    num_consts, num_carry = scan_counts(settings)
    consts, carry = operands[:num_consts], operands[num_consts : num_consts + num_carry]
    stacked, length = operands[num_consts + num_carry :], settings["length"]
    order = range(length)[::-1] if settings["reverse"] else range(length)
    per_step = {}
    body = opened(settings["jaxpr"])
    for step in order:
        results = _run(*body, [*consts, *carry, *(x[step] for x in stacked)])
        carry, per_step[step] = results[:num_carry], results[num_carry:]
    if length:
        return [*carry, *map(np.stack, zip(*(per_step[i] for i in range(length)), strict=True))]
    shapes = [variable.aval for variable in body[0].outvars[num_carry:]]
    return [*carry, *(np.zeros((0, *shape.shape), shape.dtype) for shape in shapes)]


def _while(settings, operands):
    first, second = settings["cond_nconsts"], settings["body_nconsts"]
    state = operands[first + second :]
    while True:
        (goes_on,) = _run(*opened(settings["cond_jaxpr"]), [*operands[:first], *state])
        if not np.any(goes_on):
            return state
        moved = _run(*opened(settings["body_jaxpr"]), [*operands[first : first + second], *state])
        # a condition that is batched: some examples have come to the end of theirs
        state = [
            np.where(goes_on.reshape(goes_on.shape + (1,) * (new.ndim - goes_on.ndim)), new, old)
            for new, old in zip(moved, state, strict=True)
        ]


def _cond(settings, operands):
    which = int(np.clip(operands[0], 0, len(settings["branches"]) - 1))
    return _run(*opened(settings["branches"][which]), operands[1:])


ELEMENTWISE = {
    "add": np.add, "add_any": np.add, "sub": np.subtract, "mul": np.multiply, "neg": np.negative,
    "max": np.maximum, "min": np.minimum, "abs": np.abs, "sign": np.sign, "exp": np.exp,
    "log": np.log, "log1p": np.log1p, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    "asinh": np.arcsinh, "sqrt": np.sqrt, "rsqrt": lambda x: 1 / np.sqrt(x), "square": np.square,
    "rem": np.fmod, "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal,
    "gt": np.greater, "ge": np.greater_equal, "and": np.bitwise_and, "or": np.bitwise_or,
    "is_finite": np.isfinite, "real": np.real, "imag": np.imag, "conj": np.conj,
    "complex": lambda x, y: x + 1j * y, "stop_gradient": lambda x: x, "copy": lambda x: x,
}  # fmt: skip


def _broadcast(equation, x):
    shape, axes = equation.params["shape"], equation.params["broadcast_dimensions"]
    lengths = [1] * len(shape)
    for axis, length in zip(axes, x.shape, strict=True):
        lengths[axis] = length
    return np.broadcast_to(x.reshape(lengths), shape)


def _convert(equation, x):
    dtype = equation.params["new_dtype"]
    return (x.real if np.iscomplexobj(x) and np.dtype(dtype).kind != "c" else x).astype(dtype)


def _dot_general(equation, a, b):
    contracted, batched = equation.params["dimension_numbers"]
    letters = iter(string.ascii_letters)
    names = [[next(letters) for _ in x.shape] for x in (a, b)]
    for pairs in (contracted, batched):
        for i, j in zip(*pairs, strict=True):
            names[1][j] = names[0][i]
    shared = [names[0][i] for i in batched[0]]
    gone = {names[0][i] for i in contracted[0]} | set(shared)
    free = [name for name in itertools.chain(*names) if name not in gone]
    equation = "{},{}->{}".format(*map("".join, (*names, [*shared, *free])))
    return np.einsum(equation, a, b)


def _dynamic_slice(equation, x, *starts):
    sizes = equation.params["slice_sizes"]
    spans = zip(starts, x.shape, sizes, strict=True)
    first = [int(np.clip(start, 0, length - size)) for start, length, size in spans]
    return x[tuple(slice(a, a + size) for a, size in zip(first, sizes, strict=True))]


def _slice(equation, x):
    settings = equation.params
    steps = settings["strides"] or (1,) * x.ndim
    spans = zip(settings["start_indices"], settings["limit_indices"], steps, strict=True)
    return x[tuple(slice(*span) for span in spans)]


def _reshape(equation, x):
    order = equation.params.get("dimensions")
    return (x if order is None else x.transpose(order)).reshape(equation.outvars[0].aval.shape)


def _pad(equation, x, value):
    config = equation.params["padding_config"]
    spread = [
        max(0, length + (length - 1) * inside)
        for length, (_, _, inside) in zip(x.shape, config, strict=True)
    ]
    edges = [(max(low, 0), max(high, 0)) for low, high, _ in config]
    y = np.full([sum(edge) + length for edge, length in zip(edges, spread, strict=True)], value)
    axes = list(zip(edges, spread, config, strict=True))
    y[tuple(slice(low, low + n, inside + 1) for (low, _), n, (_, _, inside) in axes)] = x
    return y[
        tuple(
            slice(max(-low, 0), length + min(high, 0))
            for (low, high, _), length in zip(config, y.shape, strict=True)
        )
    ]


def _split(settings, operands):
    sizes, axis = settings["sizes"], settings["axis"]
    return np.split(operands[0], np.cumsum(sizes)[:-1], axis)


SEVERAL_RESULTS = {"scan": _scan, "while": _while, "cond": _cond, "split": _split}


ARRAYS = {
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _convert,
    "dot_general": _dot_general,
    "dynamic_slice": _dynamic_slice,
    "slice": _slice,
    "reshape": _reshape,
    "squeeze": lambda equation, x: x.reshape(equation.outvars[0].aval.shape),
    "pad": _pad,
    "div": lambda equation, x, y: x / y if x.dtype.kind in "fc" else None,
    "integer_pow": lambda equation, x: x ** equation.params["y"],
    "transpose": lambda equation, x: x.transpose(equation.params["permutation"]),
    "rev": lambda equation, x: np.flip(x, equation.params["dimensions"]),
    "concatenate": lambda equation, *xs: np.concatenate(xs, equation.params["dimension"]),
    "select_n": lambda equation, which, *cases: (
        np.where(which, *cases[::-1]) if which.dtype == bool else None
    ),
    "reduce_sum": lambda equation, x: x.sum(tuple(equation.params["axes"])),
    "reduce_max": lambda equation, x: x.max(tuple(equation.params["axes"])),
    "iota": lambda equation, *_: lax.broadcasted_iota(
        equation.params["dtype"], equation.params["shape"], equation.params["dimension"]
    ) if len(equation.params["shape"]) != 1 else np.arange(equation.params["shape"][0]),
}  # fmt: skip
