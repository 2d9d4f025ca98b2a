r"""The kernel as an operator: products :math:`\Theta v`, and the NTK loss from them alone.

With the Jacobian :math:`J` of all outputs (n*k, p), the kernel is :math:`\Theta = J J^\top` and

.. math:: \Theta v = J\,(J^\top v):

one reverse-mode pass over the examples gives :math:`J^\top v`, shaped like the parameters, and the
transpose of such a pass multiplies it by :math:`J`.  Neither :math:`J` nor :math:`\Theta` is ever
materialized: memory is that of one block of examples and of two copies of the parameters.

Lanczos' iteration turns m such products into a tridiagonal :math:`T` whose eigenvalues and
eigenvectors are the nodes and weights of Gauss quadrature for the measure that a residual r
puts on the spectrum of :math:`\Theta` (Golub and Meurant 2010, *Matrices, Moments and
Quadrature with Applications*, ch. 6 and 7):

.. math:: F(t) = r^\top e^{-2 \eta t \Theta} r \approx |r|^2\, e_1^\top e^{-2 \eta t T} e_1 .

All derivatives of even order of the integrand are positive and those of odd order negative, so
that Gauss' rule lies below F, and Gauss and Radau's, with one node at or below the smallest
eigenvalue, lies above: the difference bounds the error at every t.  That is a theorem about the
products as they were computed; how far their rounding moved them is measured, by what of
Lanczos' matrix is not tridiagonal, and so an estimate.

Example:
    >>> import jax.numpy as jnp, numpy as np
    >>> from lensllm_jax.ntk.operator import ntk_matvec
    >>> f = lambda params, x: x @ params  # linear, so that the kernel is x x^T
    >>> x = jnp.array([[1.0, 0.0], [1.0, 2.0]])
    >>> ntk_matvec(f, jnp.zeros(2), x, np.array([1.0, 1.0]))
    array([2., 6.], dtype=float32)
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Inexact

from lensllm_jax import checks, linalg, padding
from lensllm_jax.linalg import NtkSpectrum, Steps
from lensllm_jax.ntk import gram
from lensllm_jax.ntk.gram import num_outputs
from lensllm_jax.typing import ApplyFn, Array, Params

BLOCK_SIZE = 64  # examples in memory at once: enough for the matrix products to be large


class MatrixFreeNtkLoss(NamedTuple):
    """F at the requested times, and what gives it at any other."""

    loss: Float[np.ndarray, "..."]  # F(t), a lower bound but for rounding
    error: Float[np.ndarray, "..."]  # bounds |loss - F|, if the products' rounding is as measured
    spectrum: NtkSpectrum  # the rule: m nodes and weights in place of n eigenvalues
    num_matvecs: int  # m; fewer than requested where they already give F exactly


def ntk_matvec(
    f: ApplyFn,
    params: Params,
    x: Any,
    v: Inexact[Array, "..."],
    *,
    x2: Any = None,
    block_size: int = BLOCK_SIZE,
    check_rows: bool = True,
) -> Inexact[np.ndarray, "..."]:
    r"""The product :math:`\Theta(x, x_2)\, v`, without the kernel.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), output i of example i alone.
        params: pytree of floating arrays.
        x: pytree of arrays whose leading axis counts the n examples of the rows.
        v: the vector, shaped like ``f(params, x2)``: (m,) or (m, k); or several of them along one
            more leading axis, which share the pass through the model.
        x2: the examples of the columns; ``None`` stands for ``x``.
        block_size: examples in memory at once.
        check_rows: compare two rows of outputs with their examples alone.

    Returns:
        Shaped like ``f(params, x)``, with the leading axis of ``v`` where it has one.

    Raises:
        UserError: if shapes do not fit, or an entry of ``v`` or of the product is not finite.
    """
    block_size = gram.count("block_size", block_size)
    x, x2 = gram.as_arrays(x), gram.as_arrays(x2)
    traced, *_ = gram.check_inputs(f, params, x, x2, rows_checked=check_rows, names=("x", "x2"))
    rows = _Blocks.of(traced, params, x, block_size)
    columns = rows if x2 is None else _Blocks.of(traced, params, x2, block_size)
    v = checks.finite("v", checks.real("v", v).astype(rows.dtype))
    if v.shape != columns.shape and v.shape[1:] != columns.shape:
        raise checks.UserError(
            f"`v` must have shape {columns.shape}, that of the outputs, or one more leading axis, "
            f"got {v.shape}"
        )
    vectors = v.reshape(-1, *columns.shape)
    product = _matvecs(traced, params, rows.x, columns.x, columns.cut(vectors))
    return checks.finite("theta v", rows.join(np.asarray(product)).reshape(_like(v, columns, rows)))


def ntk_loss_matrix_free(
    f: ApplyFn,
    params: Params,
    x: Any,
    residual: Float[Array, " n"] | Float[Array, "n k"],
    *,
    learning_rate: float,
    steps: Steps,
    num_matvecs: int = 50,
    block_size: int = BLOCK_SIZE,
    check_rows: bool = True,
) -> MatrixFreeNtkLoss:
    r""":math:`F(\Theta, t) = \| e^{-\eta \Theta t} r \|_2^2` from products :math:`\Theta v` alone.

    Args:
        f: ``f(params, x)`` with outputs (n,) or (n, k), output i of example i alone.
        params: pytree of floating arrays.
        x: pytree of arrays whose leading axis counts the n training examples.
        residual: :math:`r = f_0(X) - y`, shaped like the outputs.
        learning_rate: :math:`\eta`, for a loss summed over examples.
        steps: :math:`t` in optimizer steps, one number or an array of them.
        num_matvecs: m, products with the kernel; each is a pass over all examples.
        block_size: examples in memory at once.
        check_rows: compare two rows of outputs with their examples alone.

    Returns:
        F in the shape of ``steps``, a bound of its error, and the rule that gives it.

    Raises:
        UserError: if shapes or settings do not fit, or a product is not finite.

    Example:
        >>> f = lambda params, x: x @ params
        >>> x = jnp.diag(jnp.array([1.0, 0.1, 0.0]))
        >>> remaining = ntk_loss_matrix_free(
        ...     f, jnp.zeros(3), x, np.ones(3), learning_rate=0.5, steps=[0.0, 1.0, 1e3])
        >>> remaining.loss.round(4).tolist()  # e^{-1} + e^{-0.01} + 1 at t = 1
        [3.0, 2.3579, 1.0]
    """
    num_matvecs = gram.count("num_matvecs", num_matvecs)
    block_size = gram.count("block_size", block_size)
    x = gram.as_arrays(x)
    traced, *_ = gram.check_inputs(f, params, x, None, rows_checked=check_rows, names=("x", "x2"))
    blocks = _Blocks.of(traced, params, x, block_size)
    r = checks.finite("residual", checks.real("residual", residual).astype(np.float64))
    checks.shape("residual", r, blocks.shape)
    norm = float(np.linalg.norm(r))
    start = (r / norm if norm else np.ones_like(r)).astype(blocks.dtype)
    start, counted = (blocks.cut(a[None])[0] for a in (start, np.ones_like(start)))
    krylov = _lanczos(traced, params, blocks.x, start, counted, min(num_matvecs, r.size))
    rules = _rules(krylov, norm**2, learning_rate)
    t = np.asarray(steps, np.float64)
    loss, upper = rules.gauss.loss(t), rules.radau.loss(t)
    error = np.maximum(upper - loss, 0.0) + np.minimum(
        _moved(rules, norm, blocks.dtype, t), norm**2
    )
    # sums of r.size squares in float64, each off by r.size eps / 2 at most, and eigenvectors
    error += (10 + r.size) * np.finfo(np.float64).eps * norm**2
    return MatrixFreeNtkLoss(loss, error, rules.gauss, len(rules.gauss.eigenvalues))


def _moved(rules: "_Rules", norm: float, dtype: np.dtype, t: np.ndarray) -> np.ndarray:
    r"""How far rounding moves F, to first order.

    The products are those of :math:`\Theta + E`, :math:`\|E\| \le \delta`.  With
    :math:`c = 2 \eta t` F moves by

    .. math:: |\int_0^c r^\top e^{-s\Theta} E\, e^{-(c-s)\Theta} r\, ds|
              \le c\, \delta\, |r|\, |e^{-c\Theta} r| ,

    since :math:`\log |e^{-s\Theta} r|` is convex in s.

    * From below: Gauss' rule, its nodes raised to zero, is at most F of :math:`\Theta + E`: once.
    * From above: no eigenvalue of :math:`\Theta + E + \delta I` is negative.  Its Radau rule has
      every node :math:`\delta` higher and the given one at zero, and is at most the one whose nodes
      are raised to zero; it lies up to :math:`2 \delta` from :math:`\Theta`: twice.

    The start r rounded to a relative :math:`\epsilon` adds
    :math:`2 |r^\top e^{-c\Theta} \Delta r| \le 2 \epsilon |r| |e^{-c\Theta} r|`.
    """
    rate = 2.0 * rules.gauss.learning_rate * t
    eps = float(np.finfo(dtype).eps)
    later = np.sqrt(rules.radau.loss(2.0 * t))  # |exp(-cΘ) r|
    return np.asarray(2.0 * (rate * rules.rounding + eps) * norm * later)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """Examples in blocks of one size, so that one program serves them all.

    The last block repeats the last example; the weights of what it repeats are zero.
    """

    x: Any  # every leaf (blocks, block_size, ...)
    shape: tuple[int, ...]  # of the outputs: (n,) or (n, k)
    dtype: np.dtype  # of the outputs

    @classmethod
    def of(cls, f: ApplyFn, params: Params, x: Any, block_size: int) -> "_Blocks":
        n = padding.num_examples(x)
        k = num_outputs(f, params, x)
        block = min(block_size, n)
        out = jax.eval_shape(f, params, x)
        blocked = padding.stack_blocks(jax.tree.map(_on_host, x), block)
        return cls(blocked, (n,) if k is None else (n, k), out.dtype)

    def cut(self, vectors: np.ndarray) -> np.ndarray:
        """(c, n, ...) to (c, blocks, block_size, ...), filled up with zeros."""
        num_blocks, block = jax.tree.leaves(self.x)[0].shape[:2]
        missing = num_blocks * block - self.shape[0]
        filled = np.pad(vectors, [(0, 0), (0, missing)] + [(0, 0)] * (vectors.ndim - 2))
        return filled.reshape(len(vectors), num_blocks, block, *self.shape[1:])

    def join(self, blocked: np.ndarray) -> np.ndarray:
        """What ``cut`` took apart."""
        return blocked.reshape(len(blocked), -1, *self.shape[1:])[:, : self.shape[0]]


def _on_host(leaf: Any) -> Any:
    """An array that NumPy indexes without compiling; random keys, which it does not know, stay."""
    return leaf if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key) else np.asarray(leaf)


def _like(v: np.ndarray, columns: _Blocks, rows: _Blocks) -> tuple[int, ...]:
    """The shape of a product: that of ``v`` with the rows' examples for the columns'."""
    return v.shape[: v.ndim - len(columns.shape)] + rows.shape


def _matvec(f: ApplyFn, params: Params, rows: Any, columns: Any, v: jax.Array) -> jax.Array:
    """J (J^T v), both passes block by block; v (blocks, block_size, ...)."""

    def pull(total: Params, block: tuple) -> tuple[Params, None]:
        x, weights = block
        _, pullback = jax.vjp(lambda p: f(p, x), params)
        return jax.tree.map(jnp.add, total, pullback(weights)[0]), None

    direction, _ = jax.lax.scan(pull, jax.tree.map(jnp.zeros_like, params), (columns, v))

    def push(x: Any) -> jax.Array:
        # the transpose of J^T, and no forward mode, which functions with a reverse rule lack
        out, pullback = jax.vjp(lambda p: f(p, x), params)
        return jax.linear_transpose(lambda weights: pullback(weights)[0], out)(direction)[0]

    return jax.lax.map(push, rows)


@functools.partial(jax.jit, static_argnums=0)
def _matvecs(f: ApplyFn, params: Params, rows: Any, columns: Any, vectors: Array) -> jax.Array:
    """Products with several vectors (c, blocks, block_size, ...) in one pass."""
    with jax.default_matmul_precision("highest"):
        return jax.vmap(lambda v: _matvec(f, params, rows, columns, v))(vectors)


@functools.partial(jax.jit, static_argnums=(0, 5))
def _lanczos(
    f: ApplyFn, params: Params, x: Any, start: Array, counted: Array, num_matvecs: int
) -> linalg.Lanczos:
    def product(v: Array) -> jax.Array:
        # what the last block repeats has no weight in J^T v, and must gain none from J
        return jnp.asarray(counted) * _matvec(f, params, x, x, jnp.asarray(v))

    return linalg.lanczos(product, start, num_matvecs)


class _Rules(NamedTuple):
    gauss: NtkSpectrum  # F from below
    radau: NtkSpectrum  # F from above
    rounding: float  # norm of the error of the products


def _rules(krylov: linalg.Lanczos, squared_norm: float, learning_rate: float) -> _Rules:
    h = np.asarray(krylov.hessenberg)
    eps = float(np.finfo(h.dtype).eps)
    h = h.astype(np.float64)
    below = np.append(np.diag(h, -1), float(krylov.remainder))
    m = linalg.krylov_depth(np.diag(h), below, eps=eps)
    h = checks.finite("theta v (in Lanczos' iteration)", h[:m, :m])
    t = linalg.tridiagonal(np.diag(h), below[: m - 1])
    rounding = max(float(np.linalg.norm(h - t, 2)), 10 * eps * float(np.linalg.norm(t, 2)))
    gauss = linalg.gauss_quadrature(t)
    node = min(float(gauss.nodes[0]), 0.0) - rounding  # surely below every eigenvalue
    radau = linalg.gauss_radau_quadrature(t, float(below[m - 1]), node)

    def spectrum(rule: linalg.Quadrature) -> NtkSpectrum:
        return NtkSpectrum(np.maximum(rule.nodes, 0.0), squared_norm * rule.weights, learning_rate)

    return _Rules(spectrum(gauss), spectrum(radau), rounding)
