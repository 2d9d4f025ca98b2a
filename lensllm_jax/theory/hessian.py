r"""Quadratic forms of the displacement in the Hessian of the per-sample loss.

The theorem's form, one block i and one example at a time, with every negative eigenvalue of the
block's Hessian set to zero:

.. math:: v_i^\top H_i^+ v_i = \|v_i\|^2 \int \max(\lambda, 0)\, d\mu_i(\lambda), \qquad
    h_i = \max_{(x, y)} v_i^\top H_i^+ [\ell(f(x), y)] v_i,

:math:`\mu_i` the measure that :math:`v_i / \|v_i\|` puts on the spectrum of :math:`H_i`.  Lanczos'
iteration (matfree, full reorthogonalisation) turns m Hessian-vector products into nodes and
weights of Gauss quadrature for it.  max(lambda, 0) is not smooth at 0, so no rule bounds the error;
what the last three products changed estimates it.  Products never leave the block: the Hessian is
block-exact, and each example in memory takes m + 4 vectors of one block; two are the least
(:func:`least_bytes`).

What others compute instead is here under its own name:

* plain: :math:`v_i^\top H_i v_i`, no eigenvalue cut off; may be negative;
* joint (Ju et al. 2022, their code): :math:`v_i^\top (H v)_i` with the Hessian of *all* weights, so
  that cross terms :math:`v_i^\top H_{ij} v_j` come in;
* batch means: the joint form of the mean loss of a batch, the average of its examples' forms; the
  largest over batches is below the largest over examples.

Example:
    >>> from lensllm_jax.theory.blocks import weight_blocks
    >>> loss = lambda params, x: jnp.sum(x * params["w"] ** 2) / 2  # its Hessian is diag(x)
    >>> params, moved = {"w": jnp.zeros(3)}, {"w": jnp.array([1.0, 2.0, 3.0])}
    >>> (forms,) = block_forms(loss, params, moved, np.array([[1.0, 1.0, -1.0]]),
    ...                        weight_blocks(params), num_matvecs=3)
    >>> forms.positive.round(4).tolist(), forms.plain.round(4).tolist()  # 1 + 4, and - 9
    ([5.0], [-4.0])
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.special
from jaxtyping import Float

from lensllm_jax import checks, linalg
from lensllm_jax.theory.blocks import Block
from lensllm_jax.typing import Array, Params

# of one example, a scalar, twice differentiable; the same object reuses its compiled program
Loss = Callable[[Params, Any], Array]
NUM_MATVECS = 16
_NUM_LAST = 3  # products whose effect estimates the error
MAX_BYTES = 2**30  # of Lanczos vectors
_NUM_WORKING = 4  # vectors besides the m of the basis, by the compiled program's own account
_MIN_AT_ONCE = 2  # one at a time XLA keeps copies of the basis, more than two examples take


class BlockForms(NamedTuple):
    """Forms of one block, one entry per example, in the unit of the loss."""

    name: str  # of the block
    positive: Float[np.ndarray, " n"]  # v^T H^+ v
    error: Float[np.ndarray, " n"]  # estimate for ``positive``; rounding alone where exact
    plain: Float[np.ndarray, " n"]  # v^T H v

    @property
    def h(self) -> float:
        """The largest over examples: a lower bound of the largest over the distribution."""
        return float(self.positive.max())


def block_forms(
    loss: Loss,
    params: Params,
    moved: Params,
    examples: Any,
    blocks: Sequence[Block],
    *,
    num_matvecs: int = NUM_MATVECS,
    max_bytes: int = MAX_BYTES,
) -> tuple[BlockForms, ...]:
    """The theorem's forms, one per block.

    Args:
        loss: of one example.
        params: where the Hessian is taken, the fine-tuned weights.
        moved: v, a tree like ``params``.
        examples: a tree of arrays with a leading axis of n examples.
        blocks: of ``params``.
        num_matvecs: m; a block of fewer weights takes as many as it has, and is then exact.
        max_bytes: memory of the Lanczos vectors.

    Raises:
        UserError: if a form is not finite, naming block and example; if ``max_bytes`` does not
            hold two examples of the largest block.
    """
    checks.positive("num_matvecs", num_matvecs)
    least = least_bytes(params, blocks, num_matvecs=num_matvecs)
    if max_bytes < least:
        raise checks.UserError(
            f"`max_bytes` must be {least} or more for {num_matvecs} products in the largest block, "
            f"got {max_bytes}: give more, or lower `num_matvecs`"
        )
    forms = []
    for block in blocks:
        v = jnp.asarray(block.take(moved))
        squared = float(jnp.sum(v.astype(jnp.result_type(float)) ** 2))
        num = len(jax.tree.leaves(examples)[0])
        if squared == 0.0:
            zero = np.zeros(num)
            forms.append(BlockForms(block.name, zero, zero, zero))
            continue
        depth = min(num_matvecs, v.size)
        at_once = _at_once(num, max_bytes // _bytes_of_one(v, num_matvecs))
        matrices = np.asarray(
            _lanczos(loss, params, v, examples, block.unnamed, depth, at_once), np.float64
        )
        eps = float(jnp.finfo(v.dtype).eps)
        rows = [_quadrature(matrix, v.size, eps) for matrix in matrices]
        positive, error, plain = squared * np.array(rows).T
        for what, values in (("v^T H v", plain), ("v^T H^+ v", positive)):
            checks.finite(f"{what} of {block.name}, by example", values)
        forms.append(BlockForms(block.name, positive, error, plain))
    return tuple(forms)


def least_bytes(params: Params, blocks: Sequence[Block], *, num_matvecs: int) -> int:
    """The smallest ``max_bytes`` of :func:`block_forms`: two examples of the largest block."""
    weights = (jnp.asarray(block.take(params)) for block in blocks)
    return _MIN_AT_ONCE * max(_bytes_of_one(part, num_matvecs) for part in weights)


def _bytes_of_one(weights: Array, num_matvecs: int) -> int:
    """Lanczos vectors of one example."""
    vectors = min(num_matvecs, weights.size) + _NUM_WORKING
    return int(vectors * weights.size * weights.dtype.itemsize)


def _at_once(num: int, room: int) -> int:
    """Most examples per step; a last step of fewer has memory of its own, besides the others'."""
    fitting = (k for k in range(min(num, room), _MIN_AT_ONCE, -1) if k + num % k <= room)
    return next(fitting, min(num, _MIN_AT_ONCE))


@functools.partial(jax.jit, static_argnums=(0, 5, 6))
def _lanczos(loss: Loss, params, v, examples, block: Block, depth: int, at_once: int):
    """H of every example's iteration, (n, m, m)."""
    weights = jnp.asarray(block.take(params))

    def one(example):
        def product(flat):
            def gradient(w):
                return jax.grad(lambda u: loss(block.put(params, u), example))(w)

            return jax.jvp(gradient, (weights,), (flat.reshape(v.shape),))[1].ravel()

        return linalg.lanczos(product, v.ravel(), depth).hessenberg

    return jax.lax.map(one, examples, batch_size=at_once)


def _quadrature(matrix: np.ndarray, size: int, eps: float) -> tuple[float, float, float]:
    """Integral of max(lambda, 0), an estimate of its error, and integral of lambda."""
    diagonal, below = np.diag(matrix), np.diag(matrix, -1)
    if not np.isfinite(diagonal[0]):
        return float("nan"), float("nan"), float("nan")
    depth = linalg.krylov_depth(diagonal, below, eps=eps)
    rules = []
    for m in range(max(1, depth - _NUM_LAST), depth + 1):
        rule = linalg.gauss_quadrature(linalg.tridiagonal(diagonal[:m], below[: m - 1]))
        rules.append(float(rule.weights @ np.maximum(rule.nodes, 0.0)))
    rounding = 10 * eps * float(np.abs(diagonal[:depth]).max() + 1e-300)
    exact = depth < len(diagonal) or depth == size
    change = 0.0 if exact else float(np.ptp(rules))
    return rules[-1], change + rounding, float(diagonal[0])


def joint_forms(
    loss: Loss, params: Params, moved: Params, examples: Any, blocks: Sequence[Block]
) -> Float[np.ndarray, "n num_blocks"]:
    """v_i^T (H v)_i with the Hessian of all weights; those outside ``blocks`` do not move.

    Raises:
        UserError: if a form is not finite.
    """
    forms = np.asarray(_joint(loss, params, moved, examples, tuple(blocks)), np.float64)
    return checks.finite("v^T (H v), by example and block", forms)


@functools.partial(jax.jit, static_argnums=(0, 4))
def _joint(loss: Loss, params, moved, examples, blocks: tuple[Block, ...]):
    start = jax.tree.map(jnp.zeros_like, params)
    for block in blocks:
        start = block.put(start, block.take(moved))

    def one(example):
        product = jax.jvp(jax.grad(lambda p: loss(p, example)), (params,), (start,))[1]
        return jnp.stack([jnp.vdot(block.take(start), block.take(product)) for block in blocks])

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, examples)


def batch_means(
    forms: Float[np.ndarray, "n num_blocks"], *, batch_size: int
) -> Float[np.ndarray, "num_batches num_blocks"]:
    """Joint forms of the mean loss of batches, from those by example; the last partial batch drops.

    Raises:
        UserError: if there are fewer examples than one batch.
    """
    checks.positive("batch_size", batch_size)
    count = len(forms) // batch_size
    if count == 0:
        raise checks.UserError(f"`batch_size` must be at most {len(forms)}, got {batch_size}")
    return forms[: count * batch_size].reshape(count, batch_size, -1).mean(1)


class Trace(NamedTuple):
    """Hutchinson's estimate."""

    value: float  # mean over probes
    low: float  # lower end of Student's interval
    high: float  # upper end
    level: float  # coverage, if means over probes are normal


def hessian_trace(
    loss: Loss,
    params: Params,
    examples: Any,
    blocks: Sequence[Block],
    *,
    num_probes: int = 32,
    level: float = 0.9,
    seed: int = 0,
) -> Trace:
    r"""Trace of the mean loss's Hessian over ``blocks``: :math:`E\, z^\top H z`, signs z.

    Cross terms between blocks average out; an interval of no width means a diagonal Hessian.

    Raises:
        UserError: with fewer than two probes, or a product that is not finite.
    """
    if num_probes < 2:
        raise checks.UserError(f"`num_probes` must be 2 or more, got {num_probes}")
    values = np.asarray(
        _probes(loss, params, examples, tuple(blocks), num_probes, jax.random.key(seed)), np.float64
    )
    checks.finite("z^T H z, by probe", values)
    half = scipy.special.stdtrit(num_probes - 1, 0.5 + 0.5 * level)
    half = float(half * values.std(ddof=1) / np.sqrt(num_probes))
    mean = float(values.mean())
    return Trace(mean, mean - half, mean + half, level)


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def _probes(loss: Loss, params, examples, blocks: tuple[Block, ...], num_probes: int, key):
    def mean_gradient(p):
        def add(total, example):
            return jax.tree.map(jnp.add, total, jax.grad(loss)(p, example)), None

        total = jax.lax.scan(add, jax.tree.map(jnp.zeros_like, p), examples)[0]
        return jax.tree.map(lambda g: g / len(jax.tree.leaves(examples)[0]), total)

    def one(key):
        z = jax.tree.map(jnp.zeros_like, params)
        for i, block in enumerate(blocks):
            weights = block.take(params)
            signs = jax.random.rademacher(jax.random.fold_in(key, i), weights.shape, weights.dtype)
            z = block.put(z, signs)
        product = jax.jvp(mean_gradient, (params,), (z,))[1]
        return sum(jnp.vdot(a, b) for a, b in zip(*map(jax.tree.leaves, (z, product)), strict=True))

    with jax.default_matmul_precision("highest"):
        return jax.lax.map(one, jax.random.split(key, num_probes))


def gradient_variance(loss: Loss, params: Params, examples: Any, blocks: Sequence[Block]) -> float:
    r"""Trace of the covariance of one example's gradient over ``blocks``: an unbiased estimate.

    The gradient of the mean loss of n independent examples has :math:`\sigma^2 / n` (Eq 22).

    Raises:
        UserError: with one example, or a gradient that is not finite.
    """
    n = len(jax.tree.leaves(examples)[0])
    if n < 2:
        raise checks.UserError(f"`examples` must be 2 or more for a variance, got {n}")
    mean, squares = _moments(loss, params, examples, tuple(blocks))
    spread = (float(squares) - n * float(mean)) / (n - 1)
    return float(checks.finite("variance of the gradient", np.array(spread)))


@functools.partial(jax.jit, static_argnums=(0, 3))
def _moments(loss: Loss, params, examples, blocks: tuple[Block, ...]):
    """Squared length of the mean gradient, and sum of squared lengths."""

    def norm(tree):
        return sum(jnp.vdot(block.take(tree), block.take(tree)) for block in blocks)

    def add(carry, example):
        total, squares = carry
        gradient = jax.grad(loss)(params, example)
        return (jax.tree.map(jnp.add, total, gradient), squares + norm(gradient)), None

    start = jax.tree.map(jnp.zeros_like, params), jnp.zeros(())
    (total, squares), _ = jax.lax.scan(add, start, examples)
    n = len(jax.tree.leaves(examples)[0])
    return norm(total) / n**2, squares
