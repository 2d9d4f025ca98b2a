r"""Family: how one kind of Hugging Face checkpoint maps onto our models.

A family says how config attributes make our config (any other that Hugging Face's model reads
must be at its default or be known not to matter), and which checkpoint tensor fills which
parameter.  Loading and saving only interpret these tables.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn

from lensllm_jax import checks
from lensllm_jax.typing import Array, Batch

# Attributes that Hugging Face's classes know and that change no logit of a plain forward pass:
# identity, bookkeeping, generation; and two that have become rope_parameters.
HARMLESS = frozenset(
    """
    _name_or_path architectures model_type transformers_version torch_dtype dtype use_cache
    bos_token_id eos_token_id pad_token_id decoder_start_token_id forced_eos_token_id
    initializer_range init_std chunk_size_feed_forward id2label label2id num_labels problem_type
    output_attentions output_hidden_states tie_last_hidden_states return_dict is_decoder
    is_encoder_decoder _attn_implementation gradient_checkpointing
    rope_theta partial_rotary_factor
    """.split()
)

Config: TypeAlias = Any  # the ModelConfig of one family


# The leaf of a parameter tree that is never trained, as PyTorch's buffers are not.
CONSTANT = "constant"


@runtime_checkable
class ModelConfig(Protocol):
    """What loading and everything after it need of a config, whatever it describes."""

    @property
    def vocab_size(self) -> int:
        """Rows of the embedding table."""
        ...

    @property
    def max_positions(self) -> int | None:
        """Longest sequence, in tokens; None where there is no limit."""
        ...

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether logits at a position predict that position's label (else the next one's)."""
        ...

    def module(self, **settings: Any) -> nn.Module:
        """The Flax module; settings are ``dtype``, ``unroll_layers``, ``remat``."""
        ...

    def arguments(self, batch: Batch) -> tuple[Array | None, ...]:
        """The module's arguments, taken from a batch; the last is ``logits_to_keep`` or None."""
        ...


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint and the parameter(s) that it fills.

    Attributes:
        hf: its name there; ``{layer}`` stands for the number of a block.
        ours: slash-joined path in our tree; several where one tensor holds several
            parameters side by side along its last (our) axis, as GPT-2's ``c_attn``.
        transpose: whether the checkpoint stores (out, in), as ``torch.nn.Linear`` does.
        groups: how many groups that axis has, each holding its part of every one of those
            parameters, as GPT-NeoX's heads do.
        offset: what to add to the stored values, as 1 to Gemma's norms.
        outside: whether the tensor is outside the body of the model, so that its name takes
            no prefix.
        copies: full names under which a checkpoint may hold the same tensor as well, or
            instead.
        writes_copies: whether saving writes the copies too, where Hugging Face's model has
            tables of their own and would draw the missing ones at random.
        optional: whether a checkpoint may lack it; the parameter is then zero.
    """

    hf: str
    ours: str | tuple[str, ...]
    transpose: bool = False
    groups: int = 1
    offset: float = 0.0
    outside: bool = False
    copies: tuple[str, ...] = ()
    writes_copies: bool = False
    optional: bool = False

    @property
    def stacked(self) -> bool:
        """Whether there is one such tensor per block."""
        return "{layer}" in self.hf

    @property
    def targets(self) -> tuple[str, ...]:
        """The parameters filled, always as a tuple."""
        return (self.ours,) if isinstance(self.ours, str) else self.ours

    def source(self, layer: int) -> str:
        """Name of the tensor of block ``layer``."""
        return self.hf.replace("{layer}", str(layer))


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of checkpoint.

    Attributes:
        name: Hugging Face's ``model_type``.
        config: our config from the attributes of theirs; those that it looks up are supported.
        weights: the weight table for one of our configs.
        architecture: Hugging Face's class, written when saving.
        harmless: further attributes that change no logit.
        required: attribute -> the only value, or tuple of values, supported (the mathematics
            of others is not implemented).
        prefixes: what may stand before every tensor name, most usual first.
        ties_absent_head: whether a head that a checkpoint lacks is the embedding, whatever its
            config says.
        as_stored: attributes that count as the checkpoint has them, though Hugging Face's class
            overwrites them.
        ignored: regular expressions of tensors that hold no parameter (mask buffers).
    """

    name: str
    config: Callable[[Mapping[str, Any]], Config]
    weights: Callable[[Config], tuple[Weight, ...]]
    architecture: str
    harmless: frozenset[str] = frozenset()
    required: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    prefixes: tuple[str, ...] = ("model.", "")
    ties_absent_head: bool = False
    as_stored: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def read_config(
        self, attributes: Mapping[str, Any], defaults: Mapping[str, Any]
    ) -> tuple[Config | None, list[str]]:
        """Our config, and each attribute whose effect on the logits is not implemented.

        Args:
            attributes: a checkpoint's, completed, all of them known to Hugging Face's model.
            defaults: Hugging Face's.

        Returns:
            The config (``None`` if the attributes make none), and each problem with the value
            and what is supported.
        """
        config, problems, recorded = None, [], _Recorded(attributes)
        try:
            config = self.config(recorded)
        except checks.UserError as error:
            problems.append(str(error))
        except (TypeError, ValueError, ArithmeticError, LookupError, AttributeError) as error:
            value = attributes.get(recorded.last)
            problems.append(f"{recorded.last}={value!r} ({type(error).__name__}: {error})")
        for name, value in sorted(attributes.items()):
            if name in self.required:
                supported = self.required[name]
                supported = supported if isinstance(supported, tuple) else (supported,)
                if value not in supported:
                    listed = " or ".join(map(repr, supported))
                    problems.append(f"{name}={value!r} (only {listed})")
            elif name not in recorded.names | self.harmless | HARMLESS:
                default = defaults.get(name)  # None where the class declares none
                if value != default:
                    problems.append(f"{name}={value!r} (not supported)")
        return config, problems


class _Recorded(dict):
    """A mapping that records which names were looked up."""

    def __init__(self, *args: Any):
        super().__init__(*args)
        self.names: set[str] = set()
        self.last = ""

    def __getitem__(self, name: str) -> Any:
        self._record(name)
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        self._record(name)
        return super().get(name, default)

    def _record(self, name: str) -> None:
        self.names.add(name)
        self.last = name


# What most configs call the sizes of a decoder: ours -> theirs.
_SIZES = {
    "vocab_size": "vocab_size",
    "max_positions": "max_position_embeddings",
    "d_model": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
}


def sizes(hf: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of a ``DecoderConfig`` under their most usual names."""
    return {ours: hf[theirs] for ours, theirs in _SIZES.items()}


def embedding_weights(hf: str, ours: str, *, tied_head: bool) -> Weight:
    """The tensor of an embedding table; a tied head may be stored as a copy of it."""
    copies = ("lm_head.weight",) if tied_head else ()
    return Weight(f"{hf}.weight", f"{ours}/embedding", copies=copies)


def norm_weights(
    hf: str, ours: str, *, use_bias: bool = True, offset: float = 0.0
) -> tuple[Weight, ...]:
    """The tensors of a norm: scale, with what the model adds to it, and bias of a layer norm."""
    scale = Weight(f"{hf}.weight", f"{ours}/scale", offset=offset)
    return (scale, Weight(f"{hf}.bias", f"{ours}/bias")) if use_bias else (scale,)


def linear_weights(
    hf: str, ours: str | tuple[str, ...], *, use_bias: bool, groups: int = 1, outside: bool = False
) -> tuple[Weight, ...]:
    """The tensors of a ``torch.nn.Linear``, or of layers that it holds side by side."""
    layers = (ours,) if isinstance(ours, str) else ours
    return tuple(
        Weight(
            f"{hf}.{theirs}",
            tuple(f"{layer}/{leaf}" for layer in layers),
            transpose=theirs == "weight",
            groups=groups,
            outside=outside,
        )
        for theirs, leaf in (("weight", "kernel"), ("bias", "bias"))[: 1 + use_bias]
    )
