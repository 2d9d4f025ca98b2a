r"""Decoder: a causal transformer language model, described by one config.

With token ids :math:`x_1..x_s` it gives the logits of each next token,
:math:`z_i = \mathrm{cap}(h_i^{(l)} W_{\mathrm{head}})`, where :math:`h^{(j)}` is the state
after block :math:`j`.  Blocks are scanned: their parameters carry a leading axis ``l``, and
one block is compiled whatever the depth.  What differs from layer to layer (attention window,
kind of rotation) is scanned along with the parameters, as numbers.

Sources: Radford et al. (2019) for the pre-norm block, Zhang et al. (2022) for OPT's
variants (post-norm, projected embeddings), Black et al. (2022) for the parallel block,
Touvron et al. (2023) for Llama's norms and gates, Gemma Team (2024) for norms on both sides
and soft caps.

Example:
    >>> import jax, jax.numpy as jnp
    >>> from lensllm_jax.models.decoder import DecoderConfig
    >>> config = DecoderConfig(vocab_size=11, max_positions=8, d_model=8, num_layers=2,
    ...                        num_heads=2, d_ff=16)
    >>> model = config.module()
    >>> ids = jnp.array([[1, 2, 3]])
    >>> params = model.init(jax.random.key(0), ids, jnp.ones_like(ids))["params"]
    >>> model.apply({"params": params}, ids, jnp.ones_like(ids)).shape
    (1, 3, 11)
"""

import dataclasses
import enum
from functools import partial
from typing import Any, ClassVar, NamedTuple

import flax.linen as nn
import jax.numpy as jnp
from jaxtyping import Float, Int

from lensllm_jax import checks
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
    soft_cap,
    tied_logits,
    window_mask,
)
from lensllm_jax.models.rotary import Rotary, rotary_table
from lensllm_jax.typing import Array, Batch


class BlockForm(enum.Enum):
    """How a block composes attention A and feed-forward F with norms N and residual sums."""

    PRE_NORM = "x + A(N(x)), then x + F(N(x))"
    POST_NORM = "N(x + A(x)), then N(x + F(x))"
    SANDWICH = "x + N(A(N(x))), then x + N(F(N(x)))"
    OUT_NORM = "x + N(A(x)), then x + N(F(x))"
    PARALLEL = "x + A(N(x)) + F(N(x)), two norms"
    PARALLEL_ONE_NORM = "x + A(N(x)) + F(N(x)), one norm"


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
        num_kv_heads: heads of keys and values (default: as many).
        head_dim: width of a head (default: ``d_model / num_heads``).
        activation: Hugging Face's name of the feed-forward network's activation.
        gated: whether that network has a gate.
        norm: "layer" or "rms".
        norm_epsilon: added to variances.
        block_form: how a block is composed.
        final_norm: normalise once more before the head.
        attention_bias: whether query, key and value have biases.
        output_bias: whether the output of attention has one.
        feed_forward_bias: whether the feed-forward layers have.
        query_key_norm: normalise each head's queries and keys.
        joint_query_key_norm: normalise them over all heads at once instead.
        query_scale: factor of the attention scores (default: head_dim^-0.5).
        inverse_layer_scale: divide that factor by the number of the layer, from 1.
        attention_cap: soft bound of the attention scores.
        logit_cap: soft bound of the logits.
        window: positions that a sliding layer sees, its own included.
        sliding_layers: whether each layer is one; empty if none is.
        rotaries: kinds of rotation; without any, positions are a learned table.
        rotary_of_layer: which of them each layer uses; empty if all use the first.
        d_embedding: width of the embedding; where it differs from ``d_model``, two
            projections without bias lead in and out.
        embedding_scale: factor of looked-up embeddings.
        position_offset: rows of the position table before position 0.
        positions_from_mask: count positions over unmasked tokens (else over all).
        tied_head: whether the head is the embedding table.
        head_bias: whether the head has a bias.
    """

    is_encoder_decoder: ClassVar[bool] = False

    vocab_size: int
    max_positions: int
    d_model: int
    num_layers: int
    num_heads: int
    d_ff: int
    num_kv_heads: int | None = None
    head_dim: int | None = None
    activation: str = "gelu_new"
    gated: bool = False
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    block_form: BlockForm = BlockForm.PRE_NORM
    final_norm: bool = True
    attention_bias: bool = True
    output_bias: bool = True
    feed_forward_bias: bool = True
    query_key_norm: bool = False
    joint_query_key_norm: bool = False
    query_scale: float | None = None
    inverse_layer_scale: bool = False
    attention_cap: float | None = None
    logit_cap: float | None = None
    window: int | None = None
    sliding_layers: tuple[bool, ...] = ()
    rotaries: tuple[Rotary, ...] = ()
    rotary_of_layer: tuple[int, ...] = ()
    d_embedding: int | None = None
    embedding_scale: float = 1.0
    position_offset: int = 0
    positions_from_mask: bool = False
    tied_head: bool = True
    head_bias: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "max_positions", "d_model", "num_layers", "num_heads", "d_ff",
                     "norm_epsilon", "embedding_scale"):  # fmt: skip
            checks.positive(name, getattr(self, name))
        for name in ("num_kv_heads", "head_dim", "query_scale", "attention_cap", "logit_cap",
                     "window", "d_embedding"):  # fmt: skip
            if getattr(self, name) is not None:
                checks.positive(name, getattr(self, name))
        checks.one_of("norm", self.norm, NORMS)
        activation_fn(self.activation)
        if self.head_dim is None and self.d_model % self.num_heads:
            raise checks.UserError(
                f"`d_model` must be a multiple of `num_heads`, got {self.d_model} and "
                f"{self.num_heads}"
            )
        if self.num_heads % self.kv_heads:
            raise checks.UserError(
                f"`num_heads` must be a multiple of `num_kv_heads`, got {self.num_heads} and "
                f"{self.kv_heads}"
            )
        for name in ("sliding_layers", "rotary_of_layer"):
            if len(getattr(self, name)) not in (0, self.num_layers):
                raise checks.UserError(
                    f"`{name}` must have one entry per layer ({self.num_layers}), got "
                    f"{len(getattr(self, name))}"
                )
        if any(self.sliding_layers) and self.window is None:
            raise checks.UserError("`window` must be a number where layers slide, got None")
        if self.head_bias and self.tied_head:
            raise checks.UserError("`head_bias` must be False with a tied head, got True")

    @property
    def embedding_width(self) -> int:
        """Width of the embedding table's rows."""
        return self.d_embedding or self.d_model

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values."""
        return self.num_kv_heads or self.num_heads

    @property
    def head_width(self) -> int:
        """Width of a head."""
        return self.head_dim or self.d_model // self.num_heads

    def module(self, **settings: Any) -> "Decoder":
        """The Flax module; settings are ``dtype``, ``unroll_layers``, ``remat``."""
        return Decoder(self, **settings)

    def arguments(self, batch: Batch) -> tuple[Array | None, ...]:
        """The module's arguments: ``input_ids``, ``attention_mask`` (b, s), ``logits_to_keep``."""
        return batch["input_ids"], batch["attention_mask"], batch.get("logits_to_keep")


class _Layer(NamedTuple):
    """What differs from layer to layer besides the parameters; None where nothing does."""

    window: Any  # positions in view, (l,)
    rotary: Any  # row of the rotary tables, (l,)
    scale: Any  # factor of the attention scores, (l,)

    @classmethod
    def stacked(cls, c: DecoderConfig, num_positions: int) -> "_Layer":
        window = rotary = scale = None
        if any(c.sliding_layers):
            window = jnp.array(
                [c.window if slides else num_positions for slides in c.sliding_layers]
            )
        if len(set(c.rotary_of_layer)) > 1:
            rotary = jnp.array(c.rotary_of_layer)
        if c.inverse_layer_scale:
            scale = 1.0 / jnp.arange(1, c.num_layers + 1)
        return cls(window, rotary, scale)


class Block(nn.Module):
    """One transformer block: attention and feed-forward, each with norm and residual."""

    config: DecoderConfig
    dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x, mask, rotary, layer):
        """States ``(b*s, d)`` after the block, and ``None`` as ``nn.scan`` wants."""
        c = self.config
        if layer.window is not None:
            mask = mask & window_mask(mask.shape[-1], layer.window)
        if rotary is not None:
            kind = 0 if layer.rotary is None else layer.rotary
            rotary = tuple(table[kind] for table in rotary)
        attention = Attention(
            c.d_model, c.num_heads, c.kv_heads, c.head_width,
            use_bias=c.attention_bias, use_output_bias=c.output_bias,
            scale=c.query_scale, cap=c.attention_cap,
            norm=c.norm if c.query_key_norm or c.joint_query_key_norm else None,
            norm_epsilon=c.norm_epsilon, joint_norm=c.joint_query_key_norm,
            dtype=self.dtype, name="attention",
        )  # fmt: skip
        feed_forward = FeedForward(
            c.d_model, c.d_ff, c.activation, use_bias=c.feed_forward_bias, gated=c.gated,
            dtype=self.dtype, name="feed_forward",
        )  # fmt: skip
        attend = partial(attention, mask=mask, rotary=rotary, factor=layer.scale)
        return self._composed(x, attend, feed_forward), None

    def _composed(self, x, attention, feed_forward):
        """The sub-layers in the order and with the norms of the block's form."""

        def norm(name):
            c = self.config
            return NORMS[c.norm](epsilon=c.norm_epsilon, dtype=self.dtype, name=name)

        sublayers = (("attention", attention), ("feed_forward", feed_forward))
        match self.config.block_form:
            case BlockForm.PRE_NORM:
                for name, sublayer in sublayers:
                    x = x + sublayer(norm(f"{name}_norm")(x))
            case BlockForm.POST_NORM:
                for name, sublayer in sublayers:
                    x = norm(f"{name}_norm")(x + sublayer(x))
            case BlockForm.SANDWICH:
                for name, sublayer in sublayers:
                    x = x + norm(f"{name}_out_norm")(sublayer(norm(f"{name}_norm")(x)))
            case BlockForm.OUT_NORM:
                for name, sublayer in sublayers:
                    x = x + norm(f"{name}_out_norm")(sublayer(x))
            case BlockForm.PARALLEL:
                x = x + sum(sublayer(norm(f"{name}_norm")(x)) for name, sublayer in sublayers)
            case BlockForm.PARALLEL_ONE_NORM:
                normed = norm("norm")(x)
                x = x + sum(sublayer(normed) for _, sublayer in sublayers)
        return x


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
        self,
        input_ids: Int[Array, "b s"],
        attention_mask: Int[Array, "b s"],
        logits_to_keep: Int[Array, " m"] | None = None,
    ) -> Float[Array, "b s v"] | Float[Array, "m v"]:
        """Next-token logits at every position; those at padding mean nothing.

        Args:
            input_ids: token ids.
            attention_mask: 1 at tokens, 0 at padding.
            logits_to_keep: positions of the batch, row after row, whose logits alone are computed.

        Raises:
            UserError: if the sequence is longer than the model's positions.
        """
        c = self.config
        b, s = input_ids.shape
        check_length(s, c.max_positions)
        layer = partial(dense, use_bias=False, dtype=self.dtype)
        table = embedding(c.vocab_size, c.embedding_width, dtype=self.dtype, name="embed")
        x = table(input_ids.reshape(b * s)) * c.embedding_scale
        if c.embedding_width != c.d_model:
            x = layer(c.d_model, name="project_in")(x)
        if not c.rotaries:
            positions = embedding(
                c.max_positions + c.position_offset, c.d_model, dtype=self.dtype, name="positions"
            )
            x = x + positions(self.position_ids(attention_mask).reshape(b * s))
        x = self._blocks(x, attention_mask)
        if logits_to_keep is not None:
            x = x[logits_to_keep]
        if c.final_norm:
            x = NORMS[c.norm](epsilon=c.norm_epsilon, dtype=self.dtype, name="final_norm")(x)
        if c.embedding_width != c.d_model:
            x = layer(c.embedding_width, name="project_out")(x)
        if c.tied_head:
            logits = tied_logits(table, x)
        else:
            logits = layer(c.vocab_size, use_bias=c.head_bias, name="head")(x)
        logits = soft_cap(logits, c.logit_cap)
        return logits.reshape(b, s, c.vocab_size) if logits_to_keep is None else logits

    def _blocks(self, x, attention_mask):
        """States ``(b*s, d)`` after all blocks."""
        c, s = self.config, attention_mask.shape[1]
        rotary = None
        if c.rotaries:
            precise = jnp.promote_types(x.dtype, jnp.float32)
            rotary = tuple(jnp.asarray(table, precise) for table in rotary_table(c.rotaries, s))
        blocks = scanned(
            Block, c.num_layers, in_axes=(nn.broadcast, nn.broadcast, 0),
            unroll=self.unroll_layers, remat=self.remat,
        )(c, self.dtype, name="blocks")  # fmt: skip
        x, _ = blocks(x, causal_mask(attention_mask), rotary, _Layer.stacked(c, s))
        return x

    def position_ids(self, attention_mask: Int[Array, "b s"]) -> Int[Array, "b s"]:
        """Row of the position table for each token, the offset included."""
        c = self.config
        if c.positions_from_mask:
            # padding counts as position -1, the row below the offset, as OPT does
            position = jnp.cumsum(attention_mask, axis=1) * attention_mask - 1
        else:
            position = jnp.broadcast_to(
                jnp.arange(attention_mask.shape[1])[None], attention_mask.shape
            )
        return position + c.position_offset
