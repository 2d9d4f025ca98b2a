r"""Layer: the few operations that every language model here is composed of.

Every parameter enters through a standard Flax operation - ``nn.Dense`` (matrix and bias),
``nn.Embed`` (lookup, and the tied head through ``attend``), ``nn.LayerNorm`` (scale and
bias), ``nn.RMSNorm`` (scale) - so that a kernel engine which knows those few knows every
model.

Hidden states travel flat, ``(b*s, d)``: on a CPU one large matrix product is far faster
than ``b`` small ones, and only attention needs to see the batch.

Attention is that of Vaswani et al. (2017), section 3.2:

.. math:: \mathrm{softmax}(\mathrm{cap}(c\, Q K^\top) + B + M)\, V

with :math:`c = d_k^{-1/2}` and neither cap nor position bias B there; what families vary is
those three, how many heads share a key (Ainslie et al., 2023), and how positions enter Q and K.

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
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax
from jaxtyping import Bool, Float, Int

from lensllm_jax import checks
from lensllm_jax.models.products import dense_dot, is_bfloat16_on_cpu, tied_head
from lensllm_jax.models.rotary import rotate
from lensllm_jax.typing import Array

# Hugging Face's name -> function.  "gelu" there is the exact one, "gelu_new" the tanh form.
ACTIVATIONS: Mapping[str, Callable] = {
    "gelu": partial(jax.nn.gelu, approximate=False),
    "gelu_new": partial(jax.nn.gelu, approximate=True),
    "gelu_fast": partial(jax.nn.gelu, approximate=True),
    "gelu_pytorch_tanh": partial(jax.nn.gelu, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
    "swish": jax.nn.silu,
}

INITIAL_STDDEV = 0.02  # Radford et al. (2019); every family here trains from it


def activation_fn(name: str) -> Callable:
    """The elementwise function that Hugging Face calls ``name``.

    Raises:
        UserError: if it is no key of ``ACTIVATIONS``.
    """
    return ACTIVATIONS[checks.one_of("activation_function", name, ACTIVATIONS)]


def dense(
    features: int, *, use_bias: bool, name: str, dtype: jnp.dtype | None = None, wide: bool = False
) -> nn.Dense:
    """A dense layer :math:`x W + c` with this project's initial weights.

    ``wide``: c is added in float32 at least, and the sum stays so.
    """
    dot = dense_dot if is_bfloat16_on_cpu(dtype) else lax.dot_general
    return nn.Dense(
        features,
        use_bias=use_bias,
        dtype=dtype,
        dot_general=partial(_widened, dot) if wide else dot,
        kernel_init=nn.initializers.normal(INITIAL_STDDEV),
        name=name,
    )


def _widened(dot: Callable, *args: Any, **kwargs: Any) -> Array:
    product = dot(*args, **kwargs)
    return product.astype(jnp.promote_types(product.dtype, jnp.float32))


def embedding(
    num_rows: int, features: int, *, name: str, dtype: jnp.dtype | None = None,
    stddev: float = INITIAL_STDDEV,
):  # fmt: skip
    """A lookup table ``(num_rows, features)`` with initial weights of this standard deviation."""
    return nn.Embed(
        num_rows,
        features,
        dtype=dtype,
        embedding_init=nn.initializers.normal(stddev),
        name=name,
    )


def tied_logits(table: nn.Embed, x: Float[Array, "m d"]) -> Float[Array, "m v"]:
    """The logits of states x by the table of embeddings."""
    if is_bfloat16_on_cpu(table.dtype):
        return tied_head(x, table.embedding)
    return table.attend(x)


def layer_norm(*, epsilon: float, name: str, dtype: jnp.dtype | None = None) -> nn.LayerNorm:
    """Layer normalisation (Ba et al., 2016), the variance computed in two passes.

    The one-pass variance E[x^2] - E[x]^2 loses digits on states with a large mean, which
    trained checkpoints have; parity with PyTorch needs the exact one.
    """
    return nn.LayerNorm(epsilon=epsilon, use_fast_variance=False, dtype=dtype, name=name)


def rms_norm(*, epsilon: float, name: str, dtype: jnp.dtype | None = None) -> nn.RMSNorm:
    """Division by the root mean square (Zhang and Sennrich, 2019), and a scale."""
    return nn.RMSNorm(epsilon=epsilon, dtype=dtype, name=name)


# The two normalisations, as a config names them.
NORMS: Mapping[str, Callable[..., nn.Module]] = {"layer": layer_norm, "rms": rms_norm}


def soft_cap(x: Array, cap: float | None) -> Array:
    r"""Keeps numbers within ``(-cap, cap)``: :math:`\mathrm{cap} \tanh(x / \mathrm{cap})`."""
    return x if cap is None else cap * jnp.tanh(x / cap)


def check_length(num_tokens: int, max_positions: int) -> None:
    """Raises ``UserError`` for a text (padding included) longer than a model's positions."""
    if num_tokens > max_positions:
        raise checks.UserError(
            f"`input_ids` must have at most {max_positions} tokens (the model's positions), "
            f"got {num_tokens}: shorten the texts (`max_bytes`)"
        )


def scanned(block: Any, length: int, *, in_axes: Any, unroll: bool, remat: bool) -> Any:
    """The module class of a loop over layers: one is compiled, parameters lead with an axis l.

    Args:
        block: the Flax module of one block, ``(x, *inputs) -> (x, None)``.
        length: how many blocks.
        in_axes: for each input, ``nn.broadcast`` or the axis along which blocks differ.
        unroll: write the blocks out instead of looping (same parameters).
        remat: recompute each block in the backward pass.
    """
    return nn.scan(
        nn.remat(block, prevent_cse=False) if remat else block,
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=in_axes,
        length=length,
        unroll=length if unroll else 1,
    )


def causal_mask(attention_mask: Int[Array, "b s"]) -> Bool[Array, "b 1 s s"]:
    """True where a query may see a key (last axis): itself, the past, and no padding."""
    s = attention_mask.shape[1]
    past = jnp.tril(jnp.ones((s, s), bool))
    return past[None, None] & (attention_mask != 0)[:, None, None, :]


def window_mask(num_positions: int, window: Array | int) -> Bool[Array, "1 1 s s"]:
    """True where a key is less than ``window`` positions before the query (Child et al., 2019)."""
    position = jnp.arange(num_positions)
    return (position[None, :] > position[:, None] - window)[None, None]


def attend(
    query: Float[Array, "q h d"], key: Float[Array, "k g d"], value: Float[Array, "k g d"],
    mask: Bool[Array, "1 #q k"], *, scale: float | None = None, cap: float | None = None,
    bias: Float[Array, "h q k"] | None = None,
) -> Float[Array, "q h d"]:  # fmt: skip
    """Scaled dot-product attention of one example, softmax in at least float32.

    Args:
        query: of h heads.
        key: of g heads, each serving h / g neighbouring heads of the queries.
        value: of the same g heads.
        mask: True where a query (row) may see a key (column).
        scale: factor of the scores (default: d^-0.5).
        cap: soft bound of the scores.
        bias: added to the scores, head by head.
    """
    h, g = query.shape[1], key.shape[1]
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    # softmax(cap(c Q K^T) + B + M) V
    grouped = (query * scale).reshape(query.shape[0], g, h // g, query.shape[2])
    scores = jnp.einsum("qgrd,kgd->grqk", grouped, key).reshape(h, len(query), len(key))
    capped = soft_cap(scores.astype(jnp.promote_types(scores.dtype, jnp.float32)), cap)
    biased = capped if bias is None else capped + bias
    # finfo.min, not -inf: a row of padding alone must stay finite
    weights = jax.nn.softmax(jnp.where(mask, biased, jnp.finfo(biased.dtype).min), axis=-1)
    weights = weights.astype(value.dtype).reshape(g, h // g, len(query), len(key))
    return jnp.einsum("grqk,kgd->qgrd", weights, value).reshape(query.shape)


class Attention(nn.Module):
    """Multi-head attention on flat hidden states, to the states themselves or to a memory's.

    Attributes:
        d_model: width of the output.
        num_heads: heads of the queries.
        num_kv_heads: heads of keys and values, each serving several of the queries.
        head_dim: width of a head.
        use_bias: whether query, key and value have biases.
        use_output_bias: whether the output has one.
        scale: factor of the scores (default: head_dim^-0.5).
        cap: soft bound of the scores.
        norm: of each head's queries and keys, a key of ``NORMS``; ``None`` leaves them.
        norm_epsilon: of those norms.
        joint_norm: whether they are over all heads at once.
        dtype: computing type; ``None`` takes the parameters'.
    """

    d_model: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    use_bias: bool
    use_output_bias: bool
    scale: float | None = None
    cap: float | None = None
    norm: str | None = None
    norm_epsilon: float = 1e-5
    joint_norm: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, mask, *, memory=None, rotary=None, bias=None, factor=None):
        """Attended states ``(b*q, d)``.

        Args:
            x: states of the queries, ``(b*q, d)``.
            mask: True where a query may see a key, ``(b, 1, q or 1, k)``.
            memory: states of keys and values, ``(b*k, d)`` (default: ``x``).
            rotary: cosines and sines that rotate queries and keys, each ``(s, half)``.
            bias: added to the scores, ``(h, q, k)``.
            factor: a further factor of the scores, before the cap.
        """
        b, memory = mask.shape[0], x if memory is None else memory
        # Biases of queries and keys may be a hundred times what they are added to (Qwen2.5), and
        # cancel in the softmax: with them bfloat16 would round away what decides.
        query, key, value = (
            self._project(name, states, num_heads, wide=name != "value").reshape(
                b, -1, num_heads, self.head_dim
            )
            for name, states, num_heads in (
                ("query", x, self.num_heads),
                ("key", memory, self.num_kv_heads),
                ("value", memory, self.num_kv_heads),
            )
        )
        if self.norm is not None:
            query, key = (
                self._normed(NORMS[self.norm], name, states)
                for name, states in (("query_norm", query), ("key_norm", key))
            )
        if rotary is not None:
            rotated = jax.vmap(partial(rotate, cosine=rotary[0], sine=rotary[1]))
            query, key = rotated(query), rotated(key)
        if factor is not None:
            query = query * factor.astype(query.dtype)
        attend_example = partial(attend, scale=self.scale, cap=self.cap, bias=bias)
        attended = jax.vmap(attend_example)(query, key, value, mask).reshape(len(x), -1)
        return dense(self.d_model, use_bias=self.use_output_bias, dtype=self.dtype, name="out")(
            attended
        )

    def _normed(self, kind, name, states):
        norm = kind(epsilon=self.norm_epsilon, dtype=self.dtype, name=name)
        joint = states.reshape(*states.shape[:-2], -1) if self.joint_norm else states
        return norm(joint).reshape(states.shape)

    def _project(self, name, states, num_heads, *, wide):
        return dense(
            num_heads * self.head_dim,
            use_bias=self.use_bias,
            dtype=self.dtype,
            wide=wide,
            name=name,
        )(states)


class FeedForward(nn.Module):
    r"""The position-wise network :math:`\phi(x W_1 + c_1) W_2 + c_2`.

    Gated (Shazeer, 2020), it is :math:`(\phi(x W_g + c_g) \odot (x W_1 + c_1)) W_2 + c_2`.

    Attributes:
        d_model: width of the hidden state.
        d_ff: inner width.
        activation: Hugging Face's name of :math:`\phi`.
        use_bias: whether there are constants c.
        gated: whether there is a gate.
        dtype: computing type; ``None`` takes the parameters'.
    """

    d_model: int
    d_ff: int
    activation: str
    use_bias: bool
    gated: bool = False
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x):
        """States ``(b*s, d)`` from states ``(b*s, d)``."""
        layer = partial(dense, use_bias=self.use_bias, dtype=self.dtype)
        phi = activation_fn(self.activation)
        inner = layer(self.d_ff, name="up")(x)
        inner = phi(layer(self.d_ff, name="gate")(x)) * inner if self.gated else phi(inner)
        return layer(self.d_model, name="down")(inner)
