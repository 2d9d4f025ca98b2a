r"""Read-out: from a language model's logits to the few outputs whose kernel is taken.

A kernel over all logits would have :math:`(s v)^2` entries a pair of examples.  Each read-out
here is a pure function of ONE example's logits and labels, differentiable in the logits, and
comes with its target y, so that the residual :math:`f_0 - y` of the NTK loss is defined:

=============== ====== =============================================== ==================
read-out        k      f                                               y
=============== ====== =============================================== ==================
loss            1      mean negative log-likelihood, nats per token    0
target_logprob  1      mean log-probability, nats per token            0, that is log 1
label_logits    labels logits of the label tokens at the first target  one-hot
projected_      chosen random projections of the logits at all targets projected one-hot
logits
=============== ====== =============================================== ==================

Labels hold ``IGNORE`` (-100) where no token is to be predicted.  In a causal model logits at
position i predict label i + 1 and ``shift=True`` aligns them; an encoder-decoder's logits stand
at their label already (``shift=False``).

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.ntk.readout import target_logprob
    >>> logits = jnp.zeros((3, 5))  # uniform over five tokens
    >>> labels = jnp.array([-100, 4, 2])
    >>> float(target_logprob(logits, labels, shift=True))  # -log 5
    -1.6094...
"""

import dataclasses
import enum
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.extend import random
from jax.typing import DTypeLike
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.language_modelling import align, target_logprobs
from lensllm_jax.typing import IGNORE, Array


class Readout(enum.StrEnum):
    """Which outputs of a language model the kernel is of."""

    LOSS = "loss"
    TARGET_LOGPROB = "target_logprob"
    LABEL_LOGITS = "label_logits"
    PROJECTED_LOGITS = "projected_logits"


class Distribution(enum.StrEnum):
    """What the entries of a random projection are drawn from; both have mean 0 and variance 1."""

    RADEMACHER = "rademacher"  # +1 or -1: the least variance of the trace
    GAUSSIAN = "gaussian"


@dataclasses.dataclass(frozen=True)
class Projection:
    """Which random projections ``projected_logits`` takes.

    Attributes:
        num_projections: k, outputs of an example.
        seed: of the draw.
        distribution: of its entries.
    """

    num_projections: int = 8
    seed: int = 0
    distribution: Distribution | str = Distribution.RADEMACHER

    def __post_init__(self):
        checks.positive("num_projections", self.num_projections)
        checks.not_negative("seed", self.seed)
        checks.one_of("distribution", self.distribution, list(Distribution))

    def directions(self, num_targets: int, vocabulary: int, dtype: DTypeLike) -> jax.Array:
        r"""The directions R / sqrt(k), (t, k, v).

        Those of the i-th target depend on i, v and the settings alone, so that padding changes
        nothing.

        Args:
            num_targets: t.
            vocabulary: v.
            dtype: of the entries.

        Returns:
            The directions, drawn anew each time: they are cheaper to draw than to keep.
        """
        shape = (self.num_projections, vocabulary)

        def of_target(i: jax.Array) -> jax.Array:
            # raw bits: typed keys have no place in a program that is differentiated part by part
            key = jnp.stack([jnp.uint32(self.seed), i])
            bits = random.threefry_2x32(key, jnp.arange(math.prod(shape), dtype=jnp.uint32))
            if self.distribution == Distribution.RADEMACHER:
                return (1 - 2 * (bits & 1).astype(dtype)).reshape(shape)
            # 23 bits at the middle of their cell, so that neither 0 nor 1 is met in float32
            uniform = ((bits >> 9).astype(dtype) + 0.5) * 2.0**-23
            return jax.scipy.special.ndtri(uniform).reshape(shape)

        directions = jax.vmap(of_target)(jnp.arange(num_targets, dtype=jnp.uint32))
        return directions / np.sqrt(self.num_projections).astype(dtype)


def target_logprob(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> Float[Array, ""]:
    r"""Mean log-probability of the target tokens, in nats per token; y = 0.

    .. math:: \frac{1}{|T|} \sum_{i \in T} \log \mathrm{softmax}(z_i)_{y_i},
              \qquad T = \{i : y_i \ne -100\}

    Args:
        logits: one example's logits.
        labels: its labels, at least one of them a token.
        shift: whether logits at position i predict label i + 1.

    Returns:
        A scalar, zero or below; NaN where no label is a token.

    Example:
        >>> float(target_logprob(jnp.zeros((1, 2)), jnp.array([1]), shift=False))
        -0.6931...
    """
    logprobs, is_target = target_logprobs(logits, labels, shift=shift)
    return jnp.sum(logprobs) / jnp.sum(is_target)


def loss(logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool) -> Float[Array, ""]:
    """Mean loss of the target tokens, in nats per token; y = 0.

    It is minus ``target_logprob``: the kernel is the same, the residual changes sign.

    Args:
        logits: one example's logits.
        labels: its labels, at least one of them a token.
        shift: whether logits at position i predict label i + 1.

    Returns:
        A scalar, zero or above; NaN where no label is a token.

    Example:
        >>> float(loss(jnp.zeros((1, 2)), jnp.array([1]), shift=False))
        0.6931...
    """
    return -target_logprob(logits, labels, shift=shift)


def label_logits(
    logits: Float[Array, "s v"],
    labels: Int[Array, " s"],
    label_tokens: Int[Array, " k"],
    *,
    shift: bool,
) -> Float[Array, " k"]:
    """Logits of the label tokens where the first target token is predicted; y is one-hot.

    Args:
        logits: one example's logits.
        labels: its labels; the first that is a token says where.
        label_tokens: the tokens that name the classes.
        shift: whether logits at position i predict label i + 1.

    Returns:
        One logit a class.

    Example:
        >>> logits = jnp.array([[0.0, 1.0, 2.0], [3.0, 4.0, 5.0]])
        >>> label_logits(logits, jnp.array([-100, 2]), jnp.array([0, 2]), shift=True)
        Array([0., 2.], dtype=float32)
    """
    logits, labels = align(logits, labels, shift=shift)
    first = jnp.argmax(labels != IGNORE)  # argmax gives the first True
    return logits[first][label_tokens]


def one_hot_targets(
    labels: Int[Array, "b s"], label_tokens: Int[Array, " k"], *, shift: bool
) -> Float[np.ndarray, "b k"]:
    """The targets y of ``label_logits``.

    Args:
        labels: labels of each example.
        label_tokens: the tokens that name the classes.
        shift: whether logits at position i predict label i + 1; then the first label, which
            nothing predicts, does not count.

    Returns:
        One row an example: 1 at its class; all zeros where its first target token is none
        of the classes.

    Example:
        >>> one_hot_targets(np.array([[-100, 7]]), np.array([5, 7]), shift=True)
        array([[0., 1.]])
    """
    labels = np.asarray(labels)[:, int(shift) :]
    first = np.argmax(labels != IGNORE, axis=1)
    token = labels[np.arange(len(labels)), first]
    return (token[:, None] == np.asarray(label_tokens)[None, :]).astype(np.float64)


def projected_logits(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], projection: Projection, *, shift: bool
) -> Float[Array, " k"]:
    r"""Random projections of all logits at the target tokens; y is that of their one-hot codes.

    .. math:: f_a = \frac{1}{\sqrt k} \sum_{i \in T} \sum_{j=1}^{v} R_{aij}\, z_{ij},
              \qquad E[R_{aij}] = 0, \; E[R_{aij} R_{bi'j'}] = [aij = bi'j']

    with i counting the targets of an example and one R for all examples, so that the sum over
    outputs :math:`\sum_a \Theta_{aa}` has the expectation :math:`\sum_{ij} \nabla z_{ij}^\top
    \nabla z_{ij}'`: the trace of the kernel over all logits, target beside target (Hutchinson
    1990).

    Args:
        logits: one example's logits.
        labels: its labels; those that are tokens say where.
        projection: which projections.
        shift: whether logits at position i predict label i + 1.

    Returns:
        One output a projection.

    Example:
        >>> two = Projection(num_projections=2)
        >>> f = projected_logits(jnp.eye(3), jnp.array([-100, 2, -100]), two, shift=False)
        >>> abs(f).round(4).tolist()  # one entry of 1 with a sign, over the root of two
        [0.7071, 0.7071]
    """
    logits, labels = align(logits, labels, shift=shift)
    is_target = labels != IGNORE
    order = jnp.argsort(~is_target, stable=True)  # the targets first, as they stand
    targets = jnp.where(is_target[order][:, None], logits[order], 0)
    num_positions, vocabulary = logits.shape
    directions = projection.directions(num_positions, vocabulary, logits.dtype)
    return jnp.einsum("tkv,tv->k", directions, targets)


def projected_targets(
    labels: Int[Array, "b s"], vocabulary: int, projection: Projection, *, shift: bool
) -> Float[np.ndarray, "b k"]:
    """The targets y of ``projected_logits``: the projections of one-hot codes.

    Args:
        labels: labels of each example.
        vocabulary: v.
        projection: which projections.
        shift: whether logits at position i predict label i + 1.

    Returns:
        One row an example.

    Example:
        >>> projected_targets(np.array([[-100, 1]]), 5, Projection(4), shift=True).shape
        (1, 4)
    """

    def of_one(labels: Array) -> Array:
        codes = jax.nn.one_hot(jnp.roll(labels, -1) if shift else labels, vocabulary)
        return projected_logits(codes, labels, projection, shift=shift)

    return np.asarray(jax.lax.map(of_one, jnp.asarray(labels)))
