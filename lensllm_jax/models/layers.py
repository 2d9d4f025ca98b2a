r"""Layer: the few operations that every language model here is composed of.

Every parameter enters through a standard Flax operation - ``nn.Dense`` (matrix and bias),
``nn.Embed`` (lookup, and the tied head through ``attend``), ``nn.LayerNorm`` (scale and
bias) - so that a kernel engine which knows those few knows every model.

Hidden states travel flat, ``(b*s, d)``: on a CPU one large matrix product is far faster
than ``b`` small ones, and only attention needs to see the batch.

Attention is that of Vaswani et al. (2017), section 3.2:

.. math:: \mathrm{softmax}(Q K^\top / \sqrt{d_k} + M)\, V

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.models.layers import FeedForward
    >>> layer = FeedForward(d_model=8, d_ff=32, activation="gelu_new", use_bias=True)
    >>> params = layer.init(jax.random.key(0), jnp.ones((3, 8)))
    >>> layer.apply(params, jnp.ones((3, 8))).shape
    (3, 8)
"""

from collections.abc import Callable, Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.typing import Array

# Hugging Face's name -> function.  "gelu" there is the exact one, "gelu_new" the tanh form.
ACTIVATIONS: Mapping[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}

INITIAL_STDDEV = 0.02  # Radford et al. (2019); every family here trains from it


def activation_fn(name: str) -> Callable:
    """The activation that Hugging Face calls ``name``.

    Args:
        name: a key of ``ACTIVATIONS``.

    Returns:
        An elementwise function.

    Raises:
        UserError: if the name is unknown.
    """
    return ACTIVATIONS[checks.one_of("activation_function", name, ACTIVATIONS)]


def dense(features: int, *, use_bias: bool, name: str, dtype: jnp.dtype | None = None) -> nn.Dense:
    """A dense layer :math:`x W + c` with this project's initial weights.

    Args:
        features: width of the output.
        use_bias: whether :math:`c` exists.
        name: its key in the parameter tree.
        dtype: computing type; ``None`` takes the parameters'.

    Returns:
        The Flax module.
    """
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        kernel_init=nn.initializers.normal(INITIAL_STDDEV),
        name=name,
    )


def embedding(num_rows: int, features: int, *, name: str, dtype: jnp.dtype | None = None):
    """A lookup table ``(num_rows, features)`` with this project's initial weights.

    Args:
        num_rows: how many ids there are.
        features: width of a row.
        name: its key in the parameter tree.
        dtype: computing type; ``None`` takes the parameters'.

    Returns:
        The Flax module.
    """
    return nn.Embed(
        num_rows,
        features,
        dtype=dtype,
        embedding_init=nn.initializers.normal(INITIAL_STDDEV),
        name=name,
    )


def layer_norm(*, epsilon: float, name: str, dtype: jnp.dtype | None = None) -> nn.LayerNorm:
    """Layer normalisation (Ba et al., 2016), the variance computed in two passes.

    The one-pass variance E[x^2] - E[x]^2 loses digits on states with a large mean, which
    trained checkpoints have; parity with PyTorch needs the exact one.

    Args:
        epsilon: added to the variance.
        name: its key in the parameter tree.
        dtype: computing type; ``None`` takes the parameters'.

    Returns:
        The Flax module.
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def causal_mask(attention_mask: Int[Array, "b s"]) -> Bool[Array, "b 1 s s"]:
    """Which keys (last axis) each query may see: itself, the past, and no padding.

    Args:
        attention_mask: 1 at tokens, 0 at padding.

    Returns:
        True where attention is allowed, with an axis for the heads.
    """
    s = attention_mask.shape[1]
    past = jnp.tril(jnp.ones((s, s), bool))
    return past[None, None] & (attention_mask != 0)[:, None, None, :]


def attend(
    query: Float[Array, "s h d"], key: Float[Array, "s h d"], value: Float[Array, "s h d"],
    mask: Bool[Array, "1 s s"],
) -> Float[Array, "s h d"]:  # fmt: skip
    """Scaled dot-product attention of one example, softmax in at least float32.

    Args:
        query: what each position asks.
        key: what each position offers.
        value: what it then gives.
        mask: True where a query (row) may see a key (column).

    Returns:
        The weighted values.
    """
    # softmax(Q K^T / sqrt(d_k) + M) V
    scores = jnp.einsum("qhd,khd->hqk", query / jnp.sqrt(query.shape[-1]).astype(query.dtype), key)
    scores = scores.astype(jnp.promote_types(scores.dtype, jnp.float32))
    # finfo.min, not -inf: a row of padding alone must stay finite
    weights = jax.nn.softmax(jnp.where(mask, scores, jnp.finfo(scores.dtype).min), axis=-1)
    return jnp.einsum("hqk,khd->qhd", weights.astype(value.dtype), value)


class SelfAttention(nn.Module):
    """Multi-head self-attention on flat hidden states.

    Attributes:
        d_model: width of the hidden state.
        num_heads: heads, each ``d_model / num_heads`` wide.
        use_bias: whether the four projections have biases.
        dtype: computing type; ``None`` takes the parameters'.
    """

    d_model: int
    num_heads: int
    use_bias: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, mask):
        """Attended states ``(b*s, d)`` from ``x`` of the same shape and ``mask`` (b, 1, s, s)."""
        b, _, _, s = mask.shape
        heads = (b, s, self.num_heads, self.d_model // self.num_heads)
        query, key, value = (
            dense(self.d_model, use_bias=self.use_bias, dtype=self.dtype, name=name)(x).reshape(
                heads
            )
            for name in ("query", "key", "value")
        )
        attended = jax.vmap(attend)(query, key, value, mask).reshape(b * s, self.d_model)
        return dense(self.d_model, use_bias=self.use_bias, dtype=self.dtype, name="out")(attended)


class FeedForward(nn.Module):
    r"""The position-wise network :math:`\phi(x W_1 + c_1) W_2 + c_2`.

    Attributes:
        d_model: width of the hidden state.
        d_ff: inner width.
        activation: Hugging Face's name of :math:`\phi`.
        use_bias: whether :math:`c_1, c_2` exist.
        dtype: computing type; ``None`` takes the parameters'.
    """

    d_model: int
    d_ff: int
    activation: str
    use_bias: bool
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """States ``(b*s, d)`` from states ``(b*s, d)``."""
        inner = dense(self.d_ff, use_bias=self.use_bias, dtype=self.dtype, name="up")(x)
        inner = activation_fn(self.activation)(inner)
        return dense(self.d_model, use_bias=self.use_bias, dtype=self.dtype, name="down")(inner)
