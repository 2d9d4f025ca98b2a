r"""Family: how one kind of Hugging Face checkpoint maps onto our models.

A family is three tables: which config attributes it reads (everything else must be at its
default or be known not to matter), how they make our config, and which checkpoint tensor
fills which parameter.  Loading and saving only interpret these tables.

Example:
    >>> from lensllm_jax.models.family import Weight
    >>> Weight("h.{layer}.mlp.c_fc.weight", "blocks/feed_forward/up/kernel").source(3)
    'h.3.mlp.c_fc.weight'
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeAlias, runtime_checkable

import flax.linen as nn

from lensllm_jax.typing import Array, Batch

# Attributes that every Hugging Face config may carry and that change no logit of a plain
# forward pass: identity, bookkeeping, generation.
HARMLESS = frozenset(
    """
    _name_or_path architectures model_type transformers_version torch_dtype dtype use_cache
    bos_token_id eos_token_id pad_token_id sep_token_id decoder_start_token_id prefix
    task_specific_params initializer_range init_std chunk_size_feed_forward id2label
    label2id problem_type
    output_attentions output_hidden_states return_dict torchscript is_decoder is_encoder_decoder
    attn_implementation _attn_implementation use_bfloat16 gradient_checkpointing auto_map
    transformers.js_config tokenizer_class output_past _num_labels finetuning_task
    max_length min_length max_new_tokens do_sample early_stopping num_beams temperature top_k
    top_p repetition_penalty length_penalty no_repeat_ngram_size bad_words_ids
    forced_bos_token_id forced_eos_token_id force_bos_token_to_be_generated
    """.split()
)  # fmt: skip


Config: TypeAlias = Any  # the ModelConfig of one family


# The leaf of a parameter tree that is never trained, as PyTorch's buffers are not.
CONSTANT = "constant"


@runtime_checkable
class ModelConfig(Protocol):
    """What loading and everything after it ask of a config, whatever it describes."""

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

    def arguments(self, batch: Batch) -> tuple[Array, ...]:
        """What of a batch the module takes, in its order."""
        ...


@dataclasses.dataclass(frozen=True)
class Weight:
    """One tensor of a checkpoint and the parameter(s) that it fills.

    Attributes:
        hf: its name there; ``{layer}`` stands for the number of a block.
        ours: slash-joined path in our tree; several where one tensor holds several
            parameters side by side along its last (our) axis, as GPT-2's ``c_attn``.
        transpose: whether the checkpoint stores (out, in), as ``torch.nn.Linear`` does.
        groups: into how many groups that axis falls, each holding its part of every one of
            those parameters, as GPT-NeoX's heads do.
        offset: what to add to the stored values, as 1 to Gemma's norms.
        outside: whether the name stands beside the body of the model, so that it takes no
            prefix.
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
        """Whether there is one such tensor a block."""
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
        config: our config from the attributes of theirs.
        weights: the weight table for one of our configs.
        read: config attributes that ``config`` reads.
        harmless: further attributes that change no logit.
        required: attribute -> the only value, or tuple of values, supported (the mathematics
            of others is not implemented).
        prefixes: what may stand before every tensor name, most usual first.
        ignored: regular expressions of tensors that hold no parameter (mask buffers).
        architecture: Hugging Face's class, written when saving.
    """

    name: str
    config: Callable[[Mapping[str, Any]], Config]
    weights: Callable[[Config], tuple[Weight, ...]]
    read: frozenset[str]
    harmless: frozenset[str]
    required: Mapping[str, Any]
    prefixes: tuple[str, ...]
    ignored: tuple[str, ...]
    architecture: str

    def unsupported(self, attributes: Mapping[str, Any], defaults: Mapping[str, Any]) -> list[str]:
        """Config attributes whose effect on the logits is not implemented.

        Args:
            attributes: the checkpoint's config.
            defaults: Hugging Face's default of each attribute.

        Returns:
            Each such attribute, its value and what is supported.
        """
        problems = []
        known = self.read | self.harmless | HARMLESS
        for name, value in sorted(attributes.items()):
            if name in self.required:
                supported = self.required[name]
                supported = supported if isinstance(supported, tuple) else (supported,)
                if value not in supported:
                    listed = " or ".join(map(repr, supported))
                    problems.append(f"{name}={value!r} (only {listed})")
            elif name not in known and (name not in defaults or value != defaults[name]):
                problems.append(f"{name}={value!r} (unknown: take it out if it moves no logit)")
        return problems


def embedding_weights(hf: str, ours: str, *, tied_head: bool) -> Weight:
    """The tensor of an embedding table.

    Args:
        hf: its module there.
        ours: its path in our tree.
        tied_head: whether it is the head too, of which some checkpoints hold a copy.

    Returns:
        The entry.
    """
    copies = ("lm_head.weight",) if tied_head else ()
    return Weight(f"{hf}.weight", f"{ours}/embedding", copies=copies)


def norm_weights(
    hf: str, ours: str, *, use_bias: bool = True, offset: float = 0.0
) -> tuple[Weight, ...]:
    """The tensors of a norm.

    Args:
        hf: its module there.
        ours: its path in our tree.
        use_bias: whether it has a bias (a layer norm) or none (a root-mean-square norm).
        offset: what the model adds to the stored scale.

    Returns:
        Scale, and bias where there is one.
    """
    scale = Weight(f"{hf}.weight", f"{ours}/scale", offset=offset)
    return (scale, Weight(f"{hf}.bias", f"{ours}/bias")) if use_bias else (scale,)


def linear_weights(
    hf: str, ours: str | tuple[str, ...], *, use_bias: bool, groups: int = 1, outside: bool = False
) -> tuple[Weight, ...]:
    """The tensors of a ``torch.nn.Linear``.

    Args:
        hf: its module there.
        ours: its path in our tree, or those of the layers that it holds side by side.
        use_bias: whether it has a bias.
        groups: as in ``Weight``.
        outside: as in ``Weight``.

    Returns:
        Kernel, and bias where there is one.
    """
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
