r"""Encoder-decoder: a transformer that reads a text and writes another, described by one config.

The encoder sees all of its input, :math:`h_1..h_s`; the decoder sees its own past and, through
cross attention, the encoder's states; the logits of label i are
:math:`z_i = c\, g_i W_{\mathrm{head}} + e`.  One table of embeddings serves both sides.  Both
stacks are scanned: their parameters carry a leading axis ``l``, and one block of each is
compiled whatever the depth.

Sources: Vaswani et al. (2017); Raffel et al. (2020) for T5's relative positions and
root-mean-square norms; Lewis et al. (2020) for BART's learned positions and post-norm blocks.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.models.encoder_decoder import EncoderDecoderConfig, StackConfig
    >>> stack = StackConfig(num_layers=2, num_heads=2, head_dim=4, d_ff=16)
    >>> config = EncoderDecoderConfig(vocab_size=11, max_positions=8, d_model=8,
    ...                               encoder=stack, decoder=stack)
    >>> ids = jnp.array([[1, 2, 3]])
    >>> arguments = (ids, jnp.ones_like(ids), jnp.array([[0, 5]]))
    >>> params = config.module().init(jax.random.key(0), *arguments)["params"]
    >>> config.module().apply({"params": params}, *arguments).shape
    (1, 2, 11)
"""

import dataclasses
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from lensllm_jax import checks
from lensllm_jax.models.decoder import BlockForm
from lensllm_jax.models.family import CONSTANT
from lensllm_jax.models.layers import (
    NORMS,
    Attention,
    FeedForward,
    activation_fn,
    causal_mask,
    check_length,
    dense,
    embedding,
    scanned,
    tied_logits,
)
from lensllm_jax.models.relative import Buckets, RelativeBias
from lensllm_jax.typing import IGNORE, Array, Batch


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Size of the encoder or of the decoder.

    Attributes:
        num_layers: blocks.
        num_heads: attention heads of a block.
        head_dim: width of a head.
        d_ff: inner width of the feed-forward network.
        buckets: of relative positions; ``None`` where positions are a learned table.
        table_per_block: whether each block has a table of those buckets (else one serves all).
    """

    num_layers: int
    num_heads: int
    head_dim: int
    d_ff: int
    buckets: Buckets | None = None
    table_per_block: bool = False

    def __post_init__(self):
        for name in ("num_layers", "num_heads", "head_dim", "d_ff"):
            checks.positive(name, getattr(self, name))


@dataclasses.dataclass(frozen=True)
class EncoderDecoderConfig:
    """What distinguishes one encoder-decoder from another.

    Attributes:
        vocab_size: rows of the embedding table.
        d_model: width of the hidden state.
        encoder: size of the encoder.
        decoder: size of the decoder.
        max_positions: rows of the position tables, tokens; ``None`` with relative positions,
            which end nowhere.
        position_offset: rows of the position tables before position 0.
        activation: Hugging Face's name of the feed-forward network's activation.
        gated: whether that network has a gate.
        norm: "layer" or "rms".
        norm_epsilon: added to variances.
        block_form: how a block is composed, PRE_NORM or POST_NORM.
        embedding_norm: normalise embeddings before the first block.
        final_norm: normalise the states after the last block, of either stack.
        use_bias: whether dense layers have biases.
        query_scale: factor of the attention scores (default: head_dim^-0.5).
        embedding_scale: factor of looked-up embeddings.
        tied_head: whether the head is the embedding table.
        head_scale: factor of the states before the head.
        logit_bias: whether constants are added to the logits.
        decoder_start_token_id: what the decoder reads first.
        pad_token_id: what it reads where the label before is none.
        embedding_stddev: of the table's initial weights.
    """

    is_encoder_decoder: ClassVar[bool] = True

    vocab_size: int
    d_model: int
    encoder: StackConfig
    decoder: StackConfig
    max_positions: int | None = None
    position_offset: int = 0
    activation: str = "relu"
    gated: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    block_form: BlockForm = BlockForm.PRE_NORM
    embedding_norm: bool = False
    final_norm: bool = True
    use_bias: bool = False
    query_scale: float | None = None
    embedding_scale: float = 1.0
    tied_head: bool = True
    head_scale: float = 1.0
    logit_bias: bool = False
    decoder_start_token_id: int = 0
    pad_token_id: int = 0
    embedding_stddev: float = 0.02

    def __post_init__(self):
        for name in ("vocab_size", "d_model", "norm_epsilon", "embedding_scale",
                     "head_scale", "embedding_stddev"):  # fmt: skip
            checks.positive(name, getattr(self, name))
        for name in ("max_positions", "query_scale"):
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        for name in ("decoder_start_token_id", "pad_token_id"):
            token = getattr(self, name)
            if not 0 <= token < self.vocab_size:
                raise checks.UserError(
                    f"`{name}` must be a token below {self.vocab_size}, got {token!r}"
                )
        checks.one_of("norm", self.norm, NORMS)
        checks.one_of("block_form", self.block_form, (BlockForm.PRE_NORM, BlockForm.POST_NORM))
        activation_fn(self.activation)
        for name in ("encoder", "decoder"):
            if (getattr(self, name).buckets is None) == (self.max_positions is None):
                raise checks.UserError(
                    f"`{name}.buckets` must be given where `max_positions` is None, and nowhere "
                    f"else, got {getattr(self, name).buckets} and {self.max_positions}"
                )

    def module(self, **settings: Any) -> "EncoderDecoder":
        """The Flax module; settings are ``dtype``, ``unroll_layers``, ``remat``."""
        return EncoderDecoder(self, **settings)

    def arguments(self, batch: Batch) -> tuple[Array | None, ...]:
        """The module's arguments: ``input_ids``, ``attention_mask`` (b, s), ``decoder_input_ids``.

        The last are (b, u); where absent, they are the ``labels`` (b, u) shifted right.  Behind
        them stands ``logits_to_keep``.
        """
        written = batch.get("decoder_input_ids")
        if written is None:
            written = self.shift_right(batch["labels"])
        kept = batch.get("logits_to_keep")
        return batch["input_ids"], batch["attention_mask"], written, kept

    def shift_right(self, labels: Int[Array, "b u"]) -> Int[Array, "b u"]:
        """The decoder's input: the start token, then all labels but the last, padding for -100."""
        start = jnp.full_like(labels[:, :1], self.decoder_start_token_id)
        shifted = jnp.concatenate([start, labels[:, :-1]], axis=1)
        return jnp.where(shifted == IGNORE, self.pad_token_id, shifted)


def relative_bias(size: StackConfig, dtype: jnp.dtype | None) -> RelativeBias:
    """The table of a stack's relative positions, or of one of its blocks."""
    assert size.buckets is not None
    return RelativeBias(size.buckets, size.num_heads, dtype, name="relative_bias")


class Block(nn.Module):
    """One block: self-attention, in a decoder cross attention, feed-forward."""

    config: EncoderDecoderConfig
    size: StackConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, mask, bias, memory, memory_mask):
        """States ``(b*s, d)`` after the block, and ``None`` as ``nn.scan`` wants."""
        c = self.config
        if self.size.table_per_block:
            bias = relative_bias(self.size, self.dtype)(mask.shape[-1])
        x = self._residual("attention", x, lambda x: self._attention("attention")(
            x, mask, bias=bias))  # fmt: skip
        if memory is not None:
            x = self._residual("cross_attention", x, lambda x: self._attention("cross_attention")(
                x, memory_mask, memory=memory))  # fmt: skip
        feed_forward = FeedForward(
            c.d_model, self.size.d_ff, c.activation, use_bias=c.use_bias, gated=c.gated,
            dtype=self.dtype, name="feed_forward",
        )  # fmt: skip
        return self._residual("feed_forward", x, feed_forward), None

    def _attention(self, name):
        c, heads = self.config, self.size.num_heads
        return Attention(
            c.d_model, heads, heads, self.size.head_dim, use_bias=c.use_bias,
            use_output_bias=c.use_bias, scale=c.query_scale, dtype=self.dtype, name=name,
        )  # fmt: skip

    def _residual(self, name, x, sublayer):
        """The sub-layer with its norm and residual sum: x + F(N(x)), or N(x + F(x))."""
        c = self.config
        norm = NORMS[c.norm](epsilon=c.norm_epsilon, dtype=self.dtype, name=f"{name}_norm")
        if c.block_form is BlockForm.PRE_NORM:
            return x + sublayer(norm(x))
        return norm(x + sublayer(x))


class Stack(nn.Module):
    """The encoder or the decoder: from embeddings to states; attributes as ``EncoderDecoder``'s."""

    config: EncoderDecoderConfig
    size: StackConfig
    dtype: jnp.dtype | None = None
    unroll_layers: bool = False
    remat: bool = False

    @nn.compact
    def __call__(self, x, mask, memory=None, memory_mask=None):
        """States after the last block.

        Args:
            x: embeddings, ``(b*s, d)``.
            mask: True where a query may see a key, ``(b, 1, s or 1, s)``.
            memory: what a decoder's cross attention sees, ``(b*k, d)``.
            memory_mask: True where it may, ``(b, 1, 1, k)``.
        """
        c = self.config
        b, s = mask.shape[0], mask.shape[-1]
        bias = None
        if self.size.buckets is not None and not self.size.table_per_block:
            bias = relative_bias(self.size, self.dtype)(s)
        if self.size.buckets is None:
            x = x + self._positions(s, c.max_positions)(
                jnp.tile(jnp.arange(s) + c.position_offset, b)
            )
        if c.embedding_norm:
            x = self._norm("embedding_norm")(x)
        blocks = scanned(
            Block, self.size.num_layers, in_axes=nn.broadcast,
            unroll=self.unroll_layers, remat=self.remat,
        )(c, self.size, self.dtype, name="blocks")  # fmt: skip
        x, _ = blocks(x, mask, bias, memory, memory_mask)
        return self._norm("final_norm")(x) if c.final_norm else x

    def _norm(self, name):
        c = self.config
        return NORMS[c.norm](epsilon=c.norm_epsilon, dtype=self.dtype, name=name)

    def _positions(self, num_positions, max_positions):
        c = self.config
        check_length(num_positions, max_positions)
        rows = max_positions + c.position_offset
        return embedding(rows, c.d_model, dtype=self.dtype, name="positions")


class EncoderDecoder(nn.Module):
    """A language model that reads one text and writes another.

    Attributes:
        config: its shape and variants.
        dtype: computing type; ``None`` takes the parameters'.
        unroll_layers: write the blocks out instead of looping (same parameters; slower to
            compile, sometimes faster to run).
        remat: recompute each block in the backward pass (less memory, about a third more
            time).
    """

    config: EncoderDecoderConfig
    dtype: jnp.dtype | None = None
    unroll_layers: bool = False
    remat: bool = False

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "b s"],
        attention_mask: Int[Array, "b s"],
        decoder_input_ids: Int[Array, "b u"],
        logits_to_keep: Int[Array, " m"] | None = None,
    ) -> Float[Array, "b u v"] | Float[Array, "m v"]:
        """Logits of the label at every position of the decoder; without a label, meaningless.

        Args:
            input_ids: tokens that the encoder reads.
            attention_mask: 1 at its tokens, 0 at padding.
            decoder_input_ids: tokens that the decoder reads, padded on the right.
            logits_to_keep: positions of the decoder, row after row, whose logits alone are
                computed.

        Raises:
            UserError: if a sequence is longer than the model's positions.
        """
        c = self.config
        b, u = decoder_input_ids.shape
        table = embedding(
            c.vocab_size, c.d_model, dtype=self.dtype, name="embed", stddev=c.embedding_stddev
        )
        encoder, decoder = (
            Stack(c, size, self.dtype, self.unroll_layers, self.remat, name=name)
            for name, size in (("encoder", c.encoder), ("decoder", c.decoder))
        )
        read_mask = (attention_mask != 0)[:, None, None, :]
        memory = encoder(table(input_ids.reshape(-1)) * c.embedding_scale, read_mask)
        # padding stands on the right there, where no token looks
        written_mask = causal_mask(jnp.ones_like(decoder_input_ids))
        written = table(decoder_input_ids.reshape(-1)) * c.embedding_scale
        x = decoder(written, written_mask, memory, read_mask) * c.head_scale
        if logits_to_keep is not None:
            x = x[logits_to_keep]
        if c.tied_head:
            logits = tied_logits(table, x)
        else:
            logits = dense(c.vocab_size, use_bias=False, dtype=self.dtype, name="head")(x)
        if c.logit_bias:
            bias = Constant((1, c.vocab_size), name="logit_bias")()
            logits = logits + bias.astype(logits.dtype)
        return logits.reshape(b, u, c.vocab_size) if logits_to_keep is None else logits


class Constant(nn.Module):
    """Numbers of a checkpoint that are added but never trained: their gradient is zero.

    A leaf of this name in the parameter tree: loaded and saved with the parameters, not counted
    as such.
    """

    shape: tuple[int, ...]

    @nn.compact
    def __call__(self):
        """The numbers."""
        return jax.lax.stop_gradient(self.param(CONSTANT, nn.initializers.zeros, self.shape))
