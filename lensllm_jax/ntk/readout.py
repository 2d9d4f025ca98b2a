r"""Read-out: from a language model's logits to the few outputs whose kernel is taken.

A kernel over all logits would have :math:`(s v)^2` entries per pair of examples.  Each read-out
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
from lensllm_jax.typing import IGNORE, ApplyFn, Array, Batch, Params


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
    """Which random projections ``projected_logits`` takes."""

    num_projections: int = 8  # k, outputs of an example
    seed: int = 0  # of the draw
    distribution: Distribution | str = Distribution.RADEMACHER  # of its entries

    def __post_init__(self):
        checks.positive("num_projections", self.num_projections)
        checks.not_negative("seed", self.seed)
        checks.one_of("distribution", self.distribution, list(Distribution))

    def directions(self, num_targets: int, vocabulary: int, dtype: DTypeLike) -> jax.Array:
        r"""The directions R / sqrt(k), (t, k, v), drawn anew each time: cheaper than to store.

        Those of the i-th target depend on i, v and the settings alone, so that padding changes
        nothing.
        """
        shape = (self.num_projections, vocabulary)

        def per_target(i: jax.Array) -> jax.Array:
            # raw bits: typed keys have no place in a program that is differentiated part by part
            key = jnp.stack([jnp.uint32(self.seed), i])
            bits = random.threefry_2x32(key, jnp.arange(math.prod(shape), dtype=jnp.uint32))
            if self.distribution == Distribution.RADEMACHER:
                return (1 - 2 * (bits & 1).astype(dtype)).reshape(shape)
            # 23 bits at the middle of their cell, so that neither 0 nor 1 is met in float32
            uniform = ((bits >> 9).astype(dtype) + 0.5) * 2.0**-23
            return jax.scipy.special.ndtri(uniform).reshape(shape)

        directions = jax.vmap(per_target)(jnp.arange(num_targets, dtype=jnp.uint32))
        return directions / np.sqrt(self.num_projections).astype(dtype)


def target_logprob(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> Float[Array, ""]:
    r"""Mean log-probability of the target tokens, in nats per token; y = 0.

    .. math:: \frac{1}{|T|} \sum_{i \in T} \log \mathrm{softmax}(z_i)_{y_i},
              \qquad T = \{i : y_i \ne -100\}

    NaN where no label is a token.
    """
    logprobs, is_target = target_logprobs(logits, labels, shift=shift)
    return jnp.sum(logprobs) / jnp.sum(is_target)


def loss(logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool) -> Float[Array, ""]:
    """Minus ``target_logprob``: the kernel is the same, the residual changes sign."""
    return -target_logprob(logits, labels, shift=shift)


def label_logits(
    logits: Float[Array, "s v"],
    labels: Int[Array, " s"],
    label_tokens: Int[Array, " k"],
    *,
    shift: bool,
) -> Float[Array, " k"]:
    """Logits of the label tokens where the first target token is predicted; y is one-hot."""
    logits, labels = align(logits, labels, shift=shift)
    first = jnp.argmax(labels != IGNORE)  # argmax gives the first True
    return logits[first][label_tokens]


def one_hot_targets(
    labels: Int[Array, "b s"], label_tokens: Int[Array, " k"], *, shift: bool
) -> Float[np.ndarray, "b k"]:
    """The targets y of ``label_logits``: 1 at the class of the first target token.

    All zeros where that token is none of the classes.  Under ``shift`` the first label, which
    nothing predicts, does not count.
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
    \nabla z_{ij}'`: the trace of the kernel over all logits, target by target (Hutchinson 1990).

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
    """The targets y of ``projected_logits``: the projections of one-hot codes."""

    def per_example(labels: Array) -> Array:
        codes = jax.nn.one_hot(jnp.roll(labels, -1) if shift else labels, vocabulary)
        return projected_logits(codes, labels, projection, shift=shift)

    return np.asarray(jax.lax.map(per_example, jnp.asarray(labels)))


@dataclasses.dataclass(frozen=True)
class ReadoutFn:
    """``f(params, batch) -> (n,) | (n, k)``: a read-out after a model.

    Equal fields make equal functions, so that they share a compiled program.
    """

    apply_fn: ApplyFn  # params, batch -> logits
    readout: Readout
    shift: bool  # logits at position i predict label i + 1
    label_tokens: tuple[int, ...] = ()  # of label_logits
    projection: Projection | None = None  # of projected_logits, which has one by default

    def __post_init__(self):
        if self.readout is Readout.PROJECTED_LOGITS and self.projection is None:
            object.__setattr__(self, "projection", Projection())  # the way of frozen dataclasses

    def __call__(self, params: Params, batch: Batch) -> Array:
        """The outputs of each example of ``batch``."""
        logits = self.apply_fn(params, batch)
        return jax.vmap(self.per_example)(logits, batch["labels"])

    def per_example(self, logits: Array, labels: Array) -> Array:
        """The outputs of one example from its logits (s, v) and labels (s,)."""
        if self.readout is Readout.LABEL_LOGITS:
            tokens = jnp.asarray(self.label_tokens)
            return label_logits(logits, labels, tokens, shift=self.shift)
        if self.projection is not None:
            return projected_logits(logits, labels, self.projection, shift=self.shift)
        scalar = {Readout.LOSS: loss, Readout.TARGET_LOGPROB: target_logprob}
        return scalar[self.readout](logits, labels, shift=self.shift)

    def targets(self, batch: Batch, vocabulary: int, dtype: np.dtype) -> Float[np.ndarray, "n k"]:
        """The y of each example; ``vocabulary`` counts the logits of a position."""
        labels = np.asarray(batch["labels"])
        if self.projection is not None:
            projected = projected_targets(labels, vocabulary, self.projection, shift=self.shift)
            return projected.astype(dtype)
        if self.readout is Readout.LABEL_LOGITS:
            tokens = np.asarray(self.label_tokens)
            return one_hot_targets(labels, tokens, shift=self.shift).astype(dtype)
        return np.zeros((len(labels), 1), dtype)
