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

import enum

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from lensllm_jax.typing import Array

IGNORE = -100  # the label of a position that predicts nothing, as in PyTorch and Hugging Face


class Readout(enum.StrEnum):
    """Which outputs of a language model the kernel is of."""

    LOSS = "loss"
    TARGET_LOGPROB = "target_logprob"
    LABEL_LOGITS = "label_logits"


def align(
    logits: Float[Array, "s v"], labels: Int[Array, " s"], *, shift: bool
) -> tuple[Float[Array, "t v"], Int[Array, " t"]]:
    """Logits beside the labels that they predict.

    Args:
        logits: one example's logits.
        labels: its labels.
        shift: whether logits at position i predict label i + 1.

    Returns:
        Both, one position shorter if shifted.
    """
    return (logits[:-1], labels[1:]) if shift else (logits, labels)


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
    logits, labels = align(logits, labels, shift=shift)
    is_target = labels != IGNORE
    token = jnp.where(is_target, labels, 0)
    chosen = jnp.take_along_axis(logits, token[:, None], axis=-1)[:, 0]
    logprob = chosen - jax.nn.logsumexp(logits, axis=-1)
    return jnp.sum(jnp.where(is_target, logprob, 0.0)) / jnp.sum(is_target)


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
