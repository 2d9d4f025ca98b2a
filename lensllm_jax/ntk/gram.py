r"""Gram matrix of the Jacobian: the exact empirical neural tangent kernel.

For outputs :math:`f_a(x; \theta)`, :math:`a = 1..k`, the kernel of two examples is

.. math:: \Theta_{ab}(x, x') = \nabla_\theta f_a(x)^\top\, \nabla_\theta f_b(x')

(Jacot et al. 2018; equation 8 of LensLLM, arXiv 2505.03793).  One quantity, several algorithms:
``NtkMethod``.
"""

import functools
import math
import numbers
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TypedDict, Unpack

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Inexact

from lensllm_jax import checks, padding
from lensllm_jax.ntk import neural_tangents
from lensllm_jax.ntk.cost import largest_block_size, spare_bytes
from lensllm_jax.ntk.function import TracedFn, check_rows, chosen_paths, function_of, slash_joined
from lensllm_jax.ntk.method import NtkMethod, OutputReduction
from lensllm_jax.ntk.store import TileMap, TileStore, kernel_settings
from lensllm_jax.ntk.structured import sweeps
from lensllm_jax.ntk.structured.chunks import Resources
from lensllm_jax.ntk.structured.gradients import sum_dtype
from lensllm_jax.typing import ApplyFn, Array, Params


class Tile(NamedTuple):
    """A rectangle of the kernel."""

    rows: slice
    columns: slice


class Execution(TypedDict, total=False):
    """How a kernel is computed where memory, devices or time are short; its numbers stay.

    Attributes:
        block_size: examples of a tile's side, and so in memory at once; all unless said otherwise.
        memory_budget: for "structured", bytes above what the process holds, from which the block
            size follows.
        devices: for "structured", devices that share the examples of each tile.
        store: folder for each finished tile, so that a killed run resumes; the processes of
            ``jax.distributed`` share the tiles.
        map_tiles: with ``store``, what calls the function of a tile for each missing one, such as
            ``lensllm_jax.runs.executors.RayTiles``.
        residuals: for "structured", whether the backward sweep computes the matrix products of the
            forward sweep again: "recompute"; "keep", which holds them, as many numbers as the
            recorded terms of all parameters; "auto" unless said otherwise, which keeps what fits
            into ``memory_budget`` beside the tile, and nothing without a budget.
        check_rows: compare two rows of outputs with their examples alone; True by default.
    """

    block_size: int | None
    memory_budget: float | int | None
    devices: Sequence[jax.Device] | None
    store: str | os.PathLike | None
    map_tiles: TileMap | None
    residuals: str
    check_rows: bool


class KernelOptions(Execution, total=False):
    """The options of ``empirical_ntk``, for functions that pass them on."""

    method: NtkMethod | str
    output_reduction: OutputReduction | str
    parameters: str | None


# the kernel of a block of rows and one of columns, the tile; None stands for the same block
_BlockFn = Callable[[Any, Any, Tile], Array]


def empirical_ntk(
    f: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    output_reduction: OutputReduction | str = OutputReduction.NONE,
    parameters: str | None = None,
    **execution: Unpack[Execution],
) -> Inexact[np.ndarray, "n m"] | Inexact[np.ndarray, "n m k k"]:
    """The kernel of two sets of examples.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).  Output i may depend on example i alone
            (no batch normalisation), which is checked of two examples.
        params: pytree of floating arrays.
        x1: pytree of arrays whose leading axis counts the n examples of the rows.
        x2: the same for the m columns, perhaps of other lengths; ``None`` stands for ``x1``, and
            then only half of the kernel is computed.
        method: the algorithm.
        output_reduction: of the k x k outputs of a pair: "none" keeps them, "sum" is the trace
            over a = b, "mean" the trace divided by k.
        parameters: the kernel of these alone, the others held fixed: globs of slash-joined paths,
            separated by commas, such as "blocks/*,*/bias"; ``None`` takes all.
        **execution: ``block_size``, ``memory_budget``, ``devices``, ``store``, ``map_tiles``,
            ``residuals``, ``check_rows``: see ``Execution``.

    Returns:
        Shape (n, m, k, k), in the order of neural-tangents; (n, m) after a reduction, and
        wherever ``f`` gives (n,).  It lives in the host's memory.

    Raises:
        UserError: if shapes or settings do not fit, or the kernel is not finite.
        ImportError: if the method needs neural-tangents and it is not installed.

    Example:
        >>> import jax.numpy as jnp
        >>> two = lambda w, x: jnp.stack([x @ w, 2 * (x @ w)], axis=1)
        >>> x = jnp.array([[1.0], [3.0]])
        >>> empirical_ntk(two, jnp.zeros(1), x).shape
        (2, 2, 2, 2)
        >>> empirical_ntk(two, jnp.zeros(1), x, output_reduction="mean")
        array([[ 2.5,  7.5],
               [ 7.5, 22.5]], dtype=float32)
    """
    method = NtkMethod(checks.one_of("method", method, list(NtkMethod)))
    reduction = _checked_reduction(output_reduction)
    block_size, memory_budget, devices, store, map_tiles, residuals, rows_checked = _execution(
        **execution
    )
    f = function_of(f, params, parameters)
    x1, x2 = as_arrays(x1), as_arrays(x2)
    f, n, m = check_inputs(f, params, x1, x2, rows_checked=rows_checked)
    block = max(n, m) if block_size is None else count("block_size", block_size)
    if memory_budget is not None:
        if block_size is not None or method is not NtkMethod.STRUCTURED:
            raise checks.UserError(
                '`memory_budget` must come without `block_size` and with method "structured", got '
                f"{block_size} and {method.value!r}"
            )
        block = largest_block_size(f, params, x1, x2, memory_budget=memory_budget)
    kept_bytes = math.inf if residuals == "keep" else 0.0
    if residuals == "auto" and memory_budget is not None:
        kept_bytes = spare_bytes(f, params, x1, x2, block, memory_budget=memory_budget)
    block_fn = _block_fn(f, params, method, reduction, Resources(_mesh(devices), kept_bytes))

    def tile_fn(tile: Tile) -> Array:
        rows = padding.take(x1, tile.rows.start, min(block, n))
        columns = None
        if x2 is not None or tile.rows != tile.columns:
            columns = padding.take(x1 if x2 is None else x2, tile.columns.start, min(block, m))
        theta = block_fn(rows, columns, tile)
        return theta[: tile.rows.stop - tile.rows.start, : tile.columns.stop - tile.columns.start]

    shape: dict[str, Any] = {"block_size": block, "symmetric": x2 is None}
    if store is not None:
        settings = kernel_settings(
            f, params, x1, x2, block_size=block, method=method, reduction=reduction,
            parameters=parameters, num_devices=1 if devices is None else len(devices),
            kept_bytes=kept_bytes,
        )  # fmt: skip
        tile_store = TileStore.open(Path(store), settings)
        tile_store.fill(tiles(n, m, **shape), tile_fn, map_tiles=map_tiles)
        tile_fn = tile_store.read
    return assemble(tile_fn, n, m, **shape)


def _execution(
    block_size: Any = None, memory_budget: Any = None, devices: Any = None, store: Any = None,
    map_tiles: Any = None, residuals: str = "auto", check_rows: bool = True,
) -> tuple:  # fmt: skip
    """The options of ``Execution``; any other is a TypeError."""
    checks.one_of("residuals", residuals, ("auto", "keep", "recompute"))
    if not isinstance(store, str | os.PathLike | None):
        raise checks.UserError(f"`store` must be the path of a folder, got {store!r}")
    if map_tiles is not None and store is None:
        raise checks.UserError(f"`map_tiles` must come with `store`, got {map_tiles} without one")
    return block_size, memory_budget, devices, store, map_tiles, residuals, check_rows


def count(name: str, value: Any) -> int:
    """``value``, if it is a positive whole number, else ``UserError``."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise checks.UserError(f"`{name}` must be a positive whole number, got {value!r}")
    return checks.positive(name, int(value))


def _checked_reduction(reduction: OutputReduction | str) -> OutputReduction:
    return OutputReduction(checks.one_of("output_reduction", reduction, list(OutputReduction)))


def _block_fn(
    f: ApplyFn,
    params: Params,
    method: NtkMethod,
    reduction: OutputReduction,
    resources: Resources,
) -> _BlockFn:
    if method is NtkMethod.STRUCTURED:
        return functools.partial(_structured_block, f, params, reduction, resources)
    if resources.mesh is None:
        return functools.partial(_neural_tangents_block, f, params, reduction, method)
    raise checks.UserError(
        f"`devices` must be left out for method {method.value!r}, got {resources.mesh.size}: only "
        '"structured" shares its examples between devices'
    )


def _structured_block(
    f: ApplyFn, params: Params, reduction: OutputReduction, resources: Resources, x1: Any,
    x2: Any, tile: Tile,
) -> Array:  # fmt: skip
    first = (tile.rows.start, tile.columns.start)
    trace, divisor = _trace_and_divisor(num_outputs(f, params, x1), reduction)
    theta = sweeps.structured_ntk(f, params, x1, x2, trace=trace, resources=resources, first=first)
    return theta / divisor


def _neural_tangents_block(
    f: ApplyFn, params: Params, reduction: OutputReduction, method: NtkMethod, x1: Any, x2: Any,
    tile: Tile,
) -> Array:  # fmt: skip
    del tile
    k = num_outputs(f, params, x1)
    trace, divisor = _trace_and_divisor(k, reduction)
    # where outputs are traced, neural-tangents gives the mean over them
    traced = k is not None and trace
    theta = neural_tangents.tile(
        f, params, x1, x2, implementation=method.name, trace_axes=(1,) if traced else ()
    )
    return theta.astype(sum_dtype(theta.dtype)) * (k // divisor if traced and k else 1)


def _trace_and_divisor(k: int | None, reduction: OutputReduction) -> tuple[bool, int]:
    """Whether to sum over equal outputs, and by what to divide the sum."""
    trace = k is None or reduction is not OutputReduction.NONE
    return trace, k if k is not None and reduction is OutputReduction.MEAN else 1


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh | None:
    if devices is None:
        return None
    if not isinstance(devices, Sequence) or not all(isinstance(d, jax.Device) for d in devices):
        raise checks.UserError(
            f"`devices` must be a list of JAX devices, got {devices!r}: such as jax.devices()"
        )
    if not len(devices):
        raise checks.UserError("`devices` must name at least one device, got none")
    return Mesh(np.asarray(devices), ("examples",))


def parameter_group_ntk(
    f: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    group_of: Callable[[str], str],
    output_reduction: OutputReduction | str = OutputReduction.NONE,
    parameters: str | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    r"""The kernel part by part: which layer contributes how much.

    :math:`\Theta = \sum_W J_W J_W^\top` is a sum over parameters; each group's part is the kernel
    of f with all other parameters fixed.

    Args:
        f: this, and all but ``group_of``, as for ``empirical_ntk``.
        params: its parameters.
        x1: examples of the rows.
        x2: examples of the columns.
        group_of: from the path of a parameter, such as ``"['blocks']['up']['kernel'][3]"`` (the
            slice of a stacked parameter at its end), to the name of its group.
        output_reduction: of the k x k outputs.
        parameters: as for ``empirical_ntk``; the others are in no group and cost a forward pass.
        devices: those that share the examples.

    Returns:
        Kernels by group, which add up to ``empirical_ntk``.

    Raises:
        UserError: as ``empirical_ntk``.

    Example:
        >>> import jax.numpy as jnp
        >>> f = lambda params, x: x @ params["w"] + params["b"]
        >>> params = {"w": jnp.zeros(2), "b": jnp.zeros(())}
        >>> parts = parameter_group_ntk(f, params, jnp.eye(2), group_of=lambda path: path)
        >>> {path: theta.tolist() for path, theta in sorted(parts.items())}
        {"['b']": [[1.0, 1.0], [1.0, 1.0]], "['w']": [[1.0, 0.0], [0.0, 1.0]]}
    """
    reduction = _checked_reduction(output_reduction)
    x1, x2 = as_arrays(x1), as_arrays(x2)
    f, *_ = check_inputs(function_of(f, params, parameters), params, x1, x2)
    trace, divisor = _trace_and_divisor(num_outputs(f, params, x1), reduction)
    parts: dict[str, np.ndarray] = {}
    resources = Resources(_mesh(devices))
    for part in sweeps.kernel_by_parameter(f, params, x1, x2, trace=trace, resources=resources):
        for name, theta in zip(part.names, np.asarray(part.theta) / divisor, strict=True):
            group = group_of(name)
            parts[group] = parts[group] + theta if group in parts else theta
    if not parts:  # f uses no parameter
        zeros = np.asarray(sweeps.structured_ntk(f, params, x1, x2, trace=trace)) / divisor
        chosen = chosen_paths(params, parameters)
        paths = [path for path, _ in jax.tree.leaves_with_path(params)]
        names = [jax.tree_util.keystr(path) for path in paths if slash_joined(path) in chosen]
        parts = {group_of(name): zeros for name in names}
    return parts


def assemble(
    tile_fn: Callable[[Tile], Array], n: int, m: int, *, block_size: int, symmetric: bool
) -> np.ndarray:
    """The n x m kernel out of its tiles, in the host's memory.

    ``tile_fn`` computes one rectangle, (rows, columns) or (rows, columns, k, k); if ``symmetric``,
    those on and above the diagonal, and the rest is mirrored.
    """
    theta = None
    for tile in tiles(n, m, block_size=block_size, symmetric=symmetric):
        values = np.asarray(tile_fn(tile))
        if theta is None:
            theta = np.empty((n, m, *values.shape[2:]), values.dtype)
        theta[tile.rows, tile.columns] = values
        if symmetric and tile.rows != tile.columns:
            # Θ_ab(x, x') = Θ_ba(x', x): examples and outputs swap together
            swapped = (1, 0, 3, 2)[: values.ndim]
            theta[tile.columns, tile.rows] = values.transpose(swapped)
    assert theta is not None
    return theta


def tiles(n: int, m: int, *, block_size: int, symmetric: bool) -> Iterator[Tile]:
    """The rectangles that cover an n x m kernel, or the upper half of a symmetric one, row by row.

    Example:
        >>> [(t.rows.start, t.columns.start) for t in tiles(3, 3, block_size=2, symmetric=True)]
        [(0, 0), (0, 2), (2, 2)]
    """
    for row in range(0, n, block_size):
        for column in range(row if symmetric else 0, m, block_size):
            yield Tile(
                slice(row, min(row + block_size, n)), slice(column, min(column + block_size, m))
            )


def as_arrays(x: Any) -> Any:
    """A batch as it is; lists of numbers as one array."""
    if not isinstance(x, list | tuple) or not all(map(_is_number, jax.tree.leaves(x))):
        return x
    try:
        return np.asarray(x)
    except ValueError as error:
        raise checks.UserError(
            f"`x1` must hold examples of one shape, got a list that is no array: {error}"
        ) from error


def _is_number(leaf: Any) -> bool:
    return isinstance(leaf, numbers.Number)


def check_examples(name: str, x: Any) -> int:
    """The common length of the leading axes of the pytree that the caller calls ``name``.

    Raises:
        UserError: if there is no array, no leading axis, no example, or the lengths differ.
    """
    _check_arrays(name, x)
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or lengths & {None, 0}:
        raise checks.UserError(
            f"`{name}` must hold arrays with one common leading axis of examples, got shapes "
            f"{shapes}"
        )
    return shapes[0][0]


def num_outputs(f: ApplyFn, params: Params, x: Any, *, name: str = "x1") -> int | None:
    """Outputs of one example: k where ``f`` gives (n, k), ``None`` where it gives (n,).

    Raises:
        UserError: if ``f`` gives another shape, no floating array, or not one row for each example.
    """
    n = check_examples(name, x)
    try:
        out = jax.eval_shape(f, params, x)
    except (TypeError, ValueError) as error:
        raise checks.UserError(
            f"`f(params, {name})` must run on shapes alone, as JAX traces it, got an error "
            f"({str(error).splitlines()[0]}): look at the shapes of `{name}`"
        ) from error
    fits = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) in (1, 2) and out.shape[0] == n
    fits = fits and 0 not in out.shape
    if not fits or not jax.numpy.issubdtype(out.dtype, np.floating):
        raise checks.UserError(
            f"`f(params, x)` must be one floating array of shape ({n},) or ({n}, k), got {out}: "
            "reduce a language model's logits with a read-out first"
        )
    return out.shape[1] if len(out.shape) == 2 else None


def check_inputs(
    f: ApplyFn, params: Params, x1: Any, x2: Any, *,
    rows_checked: bool = True, names: tuple[str, str] = ("x1", "x2"),
) -> tuple[TracedFn, int, int]:  # fmt: skip
    """The function with its program, and the numbers of examples, once all fits together.

    Raises:
        UserError: if something does not.
    """
    sides = {name: x for name, x in zip(names, (x1, x2), strict=True) if x is not None}
    counts = [check_examples(name, x) for name, x in {names[0]: x1, **sides}.items()]
    check_params(params)
    structures = [str(jax.tree.structure(x)) for x in (x1, x2)]
    if x2 is not None and len(set(structures)) > 1:
        raise checks.UserError("`x2` must be a pytree like `x1`, {}, got {}".format(*structures))
    outputs = [num_outputs(f, params, x, name=name) for name, x in sides.items()]
    if len(set(outputs)) > 1:
        raise checks.UserError(
            "`f(params, x2)` must have as many outputs of an example as `f(params, x1)`, "
            f"{outputs[0]}, got {outputs[1]}"
        )
    for name, x in sides.items():
        _check_one_example(name, f, params, x)
    traced = TracedFn.of(f, params, *sides.values())
    if rows_checked:
        for name, x in sides.items():
            check_rows(name, traced, params, x)
    return traced, counts[0], counts[-1]


def _check_one_example(name: str, f: ApplyFn, params: Params, x: Any) -> None:
    """One example must have one row: more come from an array that f closes over."""
    one = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), x)
    try:
        got: Any = jax.eval_shape(f, params, one).shape
    except (TypeError, ValueError) as error:
        got = f"an error ({str(error).splitlines()[0]})"
    if isinstance(got, str) or got[0] != 1:
        raise checks.UserError(
            f"`f(params, {name})` must have one row for one example, got {got}: an array with an "
            f"entry for each example, which f closes over, belongs into `{name}`"
        )


def check_params(params: Params) -> None:
    """Checks that a tree has parameters, all of them with gradients.

    Raises:
        UserError: if it is empty or holds an array that is not floating.
    """
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise checks.UserError("`params` must hold at least one array, got an empty pytree")
    _check_arrays("params", params)
    for path, leaf in leaves:
        if not jax.numpy.issubdtype(jax.numpy.result_type(leaf), np.floating):
            raise checks.UserError(
                f"`params` must hold floating arrays, got {jax.numpy.result_type(leaf)} at "
                f"{jax.tree_util.keystr(path)}: close over what is no parameter"
            )


def _check_arrays(name: str, tree: Any) -> None:
    for path, leaf in jax.tree.leaves_with_path(tree):
        if not hasattr(leaf, "dtype") and not _is_number(leaf):
            raise checks.UserError(
                f"`{name}` must hold arrays, got {type(leaf).__name__} at "
                f"{jax.tree_util.keystr(path) or 'its root'}: close over what is no array"
            )
