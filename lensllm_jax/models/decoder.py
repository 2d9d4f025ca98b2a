r"""Decoder: a causal transformer language model, described by one config.

With token ids :math:`x_1..x_s` it gives the logits of each next token,
:math:`z_i = h_i^{(l)} W_{\mathrm{head}}`, where :math:`h^{(j)}` is the state after block
:math:`j`.  Blocks are scanned: their parameters carry a leading axis ``l``, and one block
is compiled whatever the depth.

Sources: Radford et al. (2019) for the pre-norm block, Zhang et al. (2022) for OPT's
variants (post-norm, projected embeddings).

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.models.decoder import Decoder, DecoderConfig
    >>> config = DecoderConfig(vocab_size=11, max_positions=8, d_model=8, num_layers=2,
    ...                        num_heads=2, d_ff=16)
    >>> model = Decoder(config)
    >>> ids = jnp.array([[1, 2, 3]])
    >>> params = model.init(jax.random.key(0), ids, jnp.ones_like(ids))["params"]
    >>> model.apply({"params": params}, ids, jnp.ones_like(ids)).shape
    (1, 3, 11)
"""

import dataclasses

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.models.layers import (
    FeedForward,
    SelfAttention,
    causal_mask,
    dense,
    embedding,
    layer_norm,
)
from lensllm_jax.typing import Array


@dataclasses.dataclass(frozen=True)
class DecoderConfig:
    """What distinguishes one decoder from another.

    Attributes:
        vocab_size: rows of the embedding table.
        max_positions: longest sequence, in tokens.
        d_model: width of the hidden state.
        num_layers: blocks.
        num_heads: attention heads of a block.
        d_ff: inner width of the feed-forward network.
        activation: Hugging Face's name of its activation.
        norm_epsilon: added to variances.
        pre_norm: normalise before each sub-layer (else after its residual sum).
        final_norm: normalise once more before the head.
        use_bias: whether dense layers of the blocks have biases.
        d_embedding: width of the embedding; where it differs from ``d_model``, two
            projections without bias lead in and out.
        position_offset: rows of the position table before position 0.
        positions_from_mask: count positions over unmasked tokens (else over all).
        tied_head: whether the head is the embedding table.
    """

    vocab_size: int
    max_positions: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    activation: str = "gelu_new"
    norm_epsilon: float = 1e-5
    pre_norm: bool = True
    final_norm: bool = True
    use_bias: bool = True
    d_embedding: int | None = None
    position_offset: int = 0
    positions_from_mask: bool = False
    tied_head: bool = True

    def __post_init__(self):
        for name in ("vocab_size", "max_positions", "d_model", "num_layers", "num_heads", "d_ff"):
            checks.positive(name, getattr(self, name))
        if self.d_model % self.num_heads:
            raise checks.UserError(
                f"`d_model` must be a multiple of `num_heads`, got {self.d_model} and "
                f"{self.num_heads}"
            )
        checks.positive("norm_epsilon", self.norm_epsilon)

    @property
    def embedding_width(self) -> int:
        """Width of the embedding table's rows."""
        return self.d_embedding or self.d_model


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each with norm and residual.

    Attributes:
        config: the decoder it belongs to.
        dtype: computing type; ``None`` takes the parameters'.
    """

    config: DecoderConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, mask):
        """States ``(b*s, d)`` after the block, and ``None`` as ``nn.scan`` wants."""
        c = self.config
        attention = SelfAttention(
            c.d_model, c.num_heads, use_bias=c.use_bias, dtype=self.dtype, name="attention"
        )
        feed_forward = FeedForward(
            c.d_model, c.d_ff, c.activation, use_bias=c.use_bias, dtype=self.dtype,
            name="feed_forward",
        )  # fmt: skip
        for norm_name, sublayer in (
            ("attention_norm", lambda x: attention(x, mask)),
            ("feed_forward_norm", feed_forward),
        ):
            norm = layer_norm(epsilon=c.norm_epsilon, dtype=self.dtype, name=norm_name)
            x = x + sublayer(norm(x)) if c.pre_norm else norm(x + sublayer(x))
        return x, None


class Decoder(nn.Module):
    """A causal language model.

    Attributes:
        config: its shape and variants.
        dtype: computing type; ``None`` takes the parameters'.
        unroll_layers: write the blocks out instead of looping (same parameters; slower to
            compile, sometimes faster to run).
        remat: recompute each block in the backward pass (less memory, about a third more
            time).
    """

    config: DecoderConfig
    dtype: jnp.dtype | None = None
    unroll_layers: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self, input_ids: Int[Array, "b s"], attention_mask: Int[Array, "b s"]
    ) -> Float[Array, "b s v"]:
        """Next-token logits at every position.

        Args:
            input_ids: token ids.
            attention_mask: 1 at tokens, 0 at padding.

        Returns:
            Logits; those at padding mean nothing.

        Raises:
            UserError: if the sequence is longer than the position table.
        """
        c = self.config
        b, s = input_ids.shape
        if s > c.max_positions:
            raise checks.UserError(
                f"`input_ids` must have at most {c.max_positions} tokens (the model's positions), "
                f"got {s}: shorten the texts with `max_length`"
            )
        table = embedding(c.vocab_size, c.embedding_width, dtype=self.dtype, name="embed")
        x = table(input_ids.reshape(b * s))
        if c.embedding_width != c.d_model:
            x = dense(c.d_model, use_bias=False, dtype=self.dtype, name="project_in")(x)
        positions = embedding(
            c.max_positions + c.position_offset, c.d_model, dtype=self.dtype, name="positions"
        )
        x = x + positions(self.position_ids(attention_mask).reshape(b * s))
        block = nn.remat(Block, prevent_cse=False) if self.remat else Block
        x, _ = nn.scan(
            block,
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=nn.broadcast,
            length=c.num_layers,
            unroll=c.num_layers if self.unroll_layers else 1,
        )(c, self.dtype, name="blocks")(x, causal_mask(attention_mask))
        if c.final_norm:
            x = layer_norm(epsilon=c.norm_epsilon, dtype=self.dtype, name="final_norm")(x)
        if c.embedding_width != c.d_model:
            x = dense(c.embedding_width, use_bias=False, dtype=self.dtype, name="project_out")(x)
        if c.tied_head:
            logits = table.attend(x)
        else:
            logits = dense(c.vocab_size, use_bias=False, dtype=self.dtype, name="head")(x)
        return logits.reshape(b, s, c.vocab_size)

    def position_ids(self, attention_mask: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """Row of the position table for each token.

        Args:
            attention_mask: 1 at tokens, 0 at padding.

        Returns:
            Row numbers, the offset included.
        """
        c = self.config
        if c.positions_from_mask:
            # padding counts as position -1, the row below the offset, as OPT does
            position = jnp.cumsum(attention_mask, axis=1) * attention_mask - 1
        else:
            position = jnp.broadcast_to(
                jnp.arange(attention_mask.shape[1])[None], attention_mask.shape
            )
        return position + c.position_offset
