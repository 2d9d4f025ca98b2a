r"""Gram matrix of the Jacobian: the exact empirical neural tangent kernel.

For outputs :math:`f_a(x; \theta)`, :math:`a = 1..k`, the kernel of two examples is

.. math:: \Theta_{ab}(x, x') = \nabla_\theta f_a(x)^\top\, \nabla_\theta f_b(x')

(Jacot et al. 2018; equation 8 of LensLLM, arXiv 2505.03793).  One quantity, several algorithms:
``NtkMethod``.

Example:
    >>> import jax.numpy as jnp
    >>> from lensllm_jax.ntk.gram import empirical_ntk
    >>> f = lambda params, x: x @ params  # linear, so the Jacobian is x
    >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> empirical_ntk(f, jnp.zeros(2), x)
    array([[1., 1.],
           [1., 5.]], dtype=float32)
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Inexact

from lensllm_jax import checks, padding
from lensllm_jax.ntk import neural_tangents
from lensllm_jax.ntk.cost import largest_block_size
from lensllm_jax.ntk.method import NtkMethod, OutputReduction
from lensllm_jax.ntk.store import TileStore, kernel_settings
from lensllm_jax.ntk.structured import sweeps
from lensllm_jax.typing import ApplyFn, Array, Params


class Tile(NamedTuple):
    """A rectangle of the kernel."""

    rows: slice
    columns: slice


def empirical_ntk(
    f: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    method: NtkMethod | str = NtkMethod.STRUCTURED,
    output_reduction: OutputReduction | str = OutputReduction.NONE,
    block_size: int | None = None,
    memory_budget: float | int | None = None,
    devices: Sequence[jax.Device] | None = None,
    store: str | os.PathLike | None = None,
) -> Inexact[np.ndarray, "n m"] | Inexact[np.ndarray, "n m k k"]:
    r"""The kernel :math:`\Theta_{ab}(x, x') = \nabla_\theta f_a(x)^\top \nabla_\theta f_b(x')`.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k).  Output i may depend on example i alone
            (no batch normalisation); this is not checked.
        params: pytree of floating arrays.
        x1: pytree of arrays whose leading axis counts the n examples of the rows.
        x2: the same for the m columns; ``None`` stands for ``x1``, and then only half of the
            kernel is computed.
        method: the algorithm.
        output_reduction: what becomes of the k x k outputs of a pair: "none" keeps them,
            "sum" is the trace over a = b, "mean" the trace divided by k.
        block_size: examples of a tile's side, and so in memory at once; ``None`` takes all.
        memory_budget: for "structured", bytes above what the process holds already, from which
            the block size follows (``cost.largest_block_size``).
        devices: for "structured", devices that share the examples of each tile; ``None`` takes
            the default one.
        store: folder that keeps each finished tile, so that a run that was killed goes on;
            several processes of ``jax.distributed`` share the tiles.  The numbers are the same.

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
    reduction = OutputReduction(
        checks.one_of("output_reduction", output_reduction, list(OutputReduction))
    )
    n, m = _check_inputs(f, params, x1, x2)
    block = max(n, m) if block_size is None else int(checks.positive("block_size", block_size))
    if memory_budget is not None:
        if block_size is not None or method is not NtkMethod.STRUCTURED:
            raise checks.UserError(
                '`memory_budget` must come without `block_size` and with method "structured", got '
                f"{block_size} and {method.value!r}"
            )
        block = largest_block_size(f, params, x1, x2, memory_budget=memory_budget)

    if method is NtkMethod.STRUCTURED:
        of_blocks = _structured_tile_fn(f, params, reduction, _mesh(devices))
    elif devices is None:
        of_blocks = _bridged_tile_fn(f, params, method, reduction)
    else:
        raise checks.UserError(
            f"`devices` must be left out for method {method.value!r}, got {len(devices)}: only "
            '"structured" shares its examples between devices'
        )

    def tile_fn(tile: Tile) -> Array:
        rows = Block(x1, tile.rows, min(block, n))
        columns = Block(x1 if x2 is None else x2, tile.columns, min(block, m))
        same = x2 is None and tile.rows == tile.columns
        theta = of_blocks(rows, None if same else columns)
        return theta[: tile.rows.stop - tile.rows.start, : tile.columns.stop - tile.columns.start]

    if store is None:
        theta = assemble(tile_fn, n, m, block_size=block, symmetric=x2 is None)
    else:
        theta = _assemble_in_store(
            store, f, params, x1, x2, tile_fn, method=method, reduction=reduction,
            block_size=block, num_devices=1 if devices is None else len(devices),
        )  # fmt: skip
    return checks.finite("theta (the computed kernel)", theta)


class Block(NamedTuple):
    """Some examples of a pytree, not yet taken out of it."""

    x: Any
    rows: slice
    size: int

    def take(self) -> Any:
        """The examples, the last one repeated up to ``size``.

        A last, smaller block would compile a second program; what it repeats is cut off from
        the result.
        """
        return padding.take(self.x, self.rows.start, self.size)


def _bridged_tile_fn(
    f: ApplyFn, params: Params, method: NtkMethod, reduction: OutputReduction
) -> Callable[[Block, Block | None], Array]:  # fmt: skip
    def of_blocks(rows: Block, columns: Block | None) -> Array:
        left, right = rows.take(), None if columns is None else columns.take()
        k = num_outputs(f, params, left)
        is_traced, divisor = _traced_and_scaled(k, reduction)
        if k is None or not is_traced:
            return neural_tangents.tile(f, method.name, (), left, right, params)
        # where outputs are traced, the bridge gives the mean over them
        mean = neural_tangents.tile(f, method.name, (1,), left, right, params)
        return mean * (k // divisor)

    return of_blocks


def _structured_tile_fn(
    f: ApplyFn, params: Params, reduction: OutputReduction, mesh: Mesh | None
) -> Callable[[Block, Block | None], Array]:  # fmt: skip
    def of_blocks(rows: Block, columns: Block | None) -> Array:
        x1 = rows.take()
        trace, scale = _traced_and_scaled(num_outputs(f, params, x1), reduction)
        right = None if columns is None else columns.take()
        return sweeps.structured_ntk(f, params, x1, right, trace=trace, mesh=mesh) / scale

    return of_blocks


def _traced_and_scaled(k: int | None, reduction: OutputReduction) -> tuple[bool, int]:
    """Whether to sum over equal outputs, and by what to divide the sum."""
    is_traced = k is None or reduction is not OutputReduction.NONE
    return is_traced, k if k is not None and reduction is OutputReduction.MEAN else 1


def _mesh(devices: Sequence[jax.Device] | None) -> Mesh | None:
    if devices is None:
        return None
    if not len(devices):
        raise checks.UserError("`devices` must name at least one device, got none")
    return Mesh(np.asarray(devices), ("examples",))


def _assemble_in_store(
    path: str | os.PathLike, f: ApplyFn, params: Params, x1: Any, x2: Any,
    tile_fn: Callable[[Tile], Array], *, block_size: int, **settings: Any,
) -> np.ndarray:  # fmt: skip
    n, m = num_examples("x1", x1), num_examples("x1", x1 if x2 is None else x2)
    kernel = kernel_settings(f, params, x1, x2, block_size=block_size, **settings)
    kept = TileStore.open(Path(path), kernel)
    shape: dict[str, Any] = {"block_size": block_size, "symmetric": x2 is None}
    kept.fill(tiles(n, m, **shape), tile_fn)
    return assemble(kept.read, n, m, **shape)


def parameter_group_ntk(
    f: ApplyFn,
    params: Params,
    x1: Any,
    x2: Any = None,
    *,
    group_of: Callable[[str], str],
    output_reduction: OutputReduction | str = OutputReduction.NONE,
    devices: Sequence[jax.Device] | None = None,
) -> dict[str, np.ndarray]:
    r"""The kernel part by part: which layer carries it.

    The kernel is a sum over parameters,
    :math:`\Theta = \sum_W J_W J_W^\top`; each group's part is a kernel of its own, that of f
    with all other parameters held fixed.

    Args:
        f: as for ``empirical_ntk``.
        params: its parameters.
        x1: examples of the rows.
        x2: examples of the columns; ``None`` stands for ``x1``.
        group_of: from the path of a parameter, such as ``"['blocks']['up']['kernel'][3]"`` (the
            slice of a stacked parameter at its end), to the name of its group.
        output_reduction: as for ``empirical_ntk``.
        devices: as for ``empirical_ntk``.

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
    reduction = OutputReduction(
        checks.one_of("output_reduction", output_reduction, list(OutputReduction))
    )
    _check_inputs(f, params, x1, x2)
    trace, scale = _traced_and_scaled(num_outputs(f, params, x1), reduction)
    parts: dict[str, np.ndarray] = {}
    for share in sweeps.kernel_by_parameter(f, params, x1, x2, trace=trace, mesh=_mesh(devices)):
        for name, theta in zip(share.names, np.asarray(share.theta) / scale, strict=True):
            group = group_of(name)
            parts[group] = parts[group] + theta if group in parts else theta
    return parts


def assemble(
    tile_fn: Callable[[Tile], Array], n: int, m: int, *, block_size: int, symmetric: bool
) -> np.ndarray:
    """The n x m kernel out of its tiles.

    Args:
        tile_fn: computes one rectangle, (rows, columns) or (rows, columns, k, k).
        n: rows.
        m: columns.
        block_size: largest side of a tile.
        symmetric: compute the tiles on and above the diagonal and mirror the rest.

    Returns:
        The kernel, in the host's memory.
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
    """The rectangles that cover an n x m kernel, or the upper half of a symmetric one.

    Args:
        n: rows.
        m: columns.
        block_size: largest side.
        symmetric: leave out what lies below the diagonal.

    Yields:
        Tiles, row by row.

    Example:
        >>> [(t.rows.start, t.columns.start) for t in tiles(3, 3, block_size=2, symmetric=True)]
        [(0, 0), (0, 2), (2, 2)]
    """
    for row in range(0, n, block_size):
        for column in range(row if symmetric else 0, m, block_size):
            yield Tile(
                slice(row, min(row + block_size, n)), slice(column, min(column + block_size, m))
            )


def num_examples(name: str, x: Any) -> int:
    """The common length of the leading axes of a pytree.

    Args:
        name: what the caller calls it.
        x: the pytree.

    Returns:
        The number of examples.

    Raises:
        UserError: if there is no array, no leading axis, no example, or the lengths differ.
    """
    shapes = [np.shape(leaf) for leaf in jax.tree.leaves(x)]
    lengths = {shape[0] if shape else None for shape in shapes}
    if len(lengths) != 1 or lengths & {None, 0}:
        raise checks.UserError(
            f"`{name}` must hold arrays with one common leading axis of examples, got shapes "
            f"{shapes}"
        )
    return shapes[0][0]


def num_outputs(f: ApplyFn, params: Params, x: Any) -> int | None:
    """Outputs of one example: k where ``f`` gives (n, k), ``None`` where it gives (n,).

    Args:
        f: the function.
        params: its parameters.
        x: its examples.

    Returns:
        k or ``None``.

    Raises:
        UserError: if ``f`` gives another shape or no floating array.
    """
    n = num_examples("x1", x)
    out = jax.eval_shape(f, params, x)
    fits = isinstance(out, jax.ShapeDtypeStruct) and len(out.shape) in (1, 2) and out.shape[0] == n
    if not fits or not np.issubdtype(out.dtype, np.floating):
        raise checks.UserError(
            f"`f(params, x)` must be one floating array of shape ({n},) or ({n}, k), got {out}: "
            "reduce a language model's logits with a read-out first"
        )
    return out.shape[1] if len(out.shape) == 2 else None


def _check_inputs(f: ApplyFn, params: Params, x1: Any, x2: Any) -> tuple[int, int]:
    """The numbers n and m of examples, once all inputs fit each other."""
    n = num_examples("x1", x1)
    m = n if x2 is None else num_examples("x2", x2)
    check_params(params)
    structures = [str(jax.tree.structure(x)) for x in (x1, x2)]
    if x2 is not None and len(set(structures)) > 1:
        raise checks.UserError("`x2` must be a pytree like `x1`, {}, got {}".format(*structures))
    num_outputs(f, params, x1)
    return n, m


def check_params(params: Params) -> None:
    """Refuses a tree without parameters, or with some that have no gradient.

    Args:
        params: the tree.

    Raises:
        UserError: if it is empty or holds an array that is not floating.
    """
    leaves = jax.tree.leaves_with_path(params)
    if not leaves:
        raise checks.UserError("`params` must hold at least one array, got an empty pytree")
    for path, leaf in leaves:
        if not jax.numpy.issubdtype(jax.numpy.result_type(leaf), np.floating):
            raise checks.UserError(
                f"`params` must hold floating arrays, got {jax.numpy.result_type(leaf)} at "
                f"{jax.tree_util.keystr(path)}: close over what is no parameter"
            )
