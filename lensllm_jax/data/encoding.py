"""Examples as token arrays of one static shape, so that one compilation serves every batch.

Three rules hold for every candidate:

* ``labels`` stand under the ``input_ids`` (decoder-only) or under the logits of
  ``decoder_input_ids`` (encoder-decoder), with ``IGNORE`` = -100 where nothing is scored:
  prompt, beginning-of-sequence, padding.  For a decoder-only model the loss shifts them by one.
* The end-of-sequence token is a target: a model must know where to stop.
* No scored token stands first: it would have no context, and the shift would lose it.

A record that is too long loses part of its prompt.  The last line of a prompt of several lines
is the request ("Summary:"), and stays; the text above it loses its end, since a text says
first what it is about.  A prompt of one line, or whose last line is too long, loses its start.
The target is truncated, at its end and with its end-of-sequence token, only when it alone is too
long.

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> encode_causal([Example("the cat", "sat")], tokenizer, max_length=6).labels.shape
    (1, 6)
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
from jaxtyping import Bool, Int, Int32

from lensllm_jax.checks import UserError
from lensllm_jax.data.prefixes import split_prefix
from lensllm_jax.data.task import Example
from lensllm_jax.typing import IGNORE

Tokenizer: TypeAlias = Any  # a transformers PreTrainedTokenizerFast


@dataclass(frozen=True)
class EncodedExamples:
    """Token arrays of ``n`` examples, padded on the right to ``s`` (and ``u``) tokens."""

    input_ids: Int32[np.ndarray, "n s"]  # what the model, or its encoder, reads
    attention_mask: Int32[np.ndarray, "n s"]  # 1 on tokens, 0 on padding
    labels: Int32[np.ndarray, "n u"]  # targets, IGNORE elsewhere; u = s if decoder-only
    is_end: Bool[np.ndarray, "n u"]  # the label is the end token, which is no text of the target
    num_target_tokens: Int32[np.ndarray, " n"]  # scored tokens of each example, at least 1
    num_target_bytes: Int32[np.ndarray, " n"]  # UTF-8 bytes of the text that the labels spell
    decoder_input_ids: Int32[np.ndarray, "n u"] | None = None  # encoder-decoder only

    def __len__(self) -> int:
        return len(self.input_ids)

    def batch(self, indices: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """The model's inputs for the examples ``indices``; an index of -1 is padding.

        A padding row repeats the first example with every label IGNORE: it weighs nothing in
        a sum over target tokens, and its attention is as finite as any other row's.
        """
        rows = np.maximum(indices, 0)
        labels = np.where(indices[:, None] < 0, np.int32(IGNORE), self.labels[rows])
        batch = {
            "input_ids": self.input_ids[rows],
            "attention_mask": self.attention_mask[rows],
            "labels": labels,
        }
        if self.decoder_input_ids is not None:
            batch["decoder_input_ids"] = self.decoder_input_ids[rows]
        return batch

    def scored_batch(self, indices: Int[np.ndarray, " b"]) -> dict[str, np.ndarray]:
        """:meth:`batch` with what a loss per byte needs: ``is_end``, ``num_target_bytes`` (b,).

        A padding row has no end and no byte.
        """
        rows, real = np.maximum(indices, 0), indices >= 0
        return {
            **self.batch(indices),
            "is_end": self.is_end[rows] & real[:, None],
            "num_target_bytes": self.num_target_bytes[rows] * real.astype(np.int32),
        }

    def take(self, indices: Int[np.ndarray, " b"]) -> "EncodedExamples":
        """The examples ``indices``, in that order."""
        decoder = self.decoder_input_ids
        return EncodedExamples(
            input_ids=self.input_ids[indices],
            attention_mask=self.attention_mask[indices],
            labels=self.labels[indices],
            is_end=self.is_end[indices],
            num_target_tokens=self.num_target_tokens[indices],
            num_target_bytes=self.num_target_bytes[indices],
            decoder_input_ids=None if decoder is None else decoder[indices],
        )


def encode_causal(
    examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int
) -> EncodedExamples:
    """Examples for a decoder-only model: ``[bos] prompt target eos``, then padding.

    ``bos`` stands first where the tokenizer has one.  Where it has none, a record without a
    prompt starts with ``eos``, GPT-2's mark between documents.  A target that follows a prompt
    is separated from it by one space.  Padding is ``eos`` where the tokenizer has no padding
    token; it is masked and not scored.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.
        max_length: ``s``, the length of every row (tokens), at least 2.

    Raises:
        UserError: if the tokenizer has no end-of-sequence token, ``max_length`` is too short,
            there is no example, or a target has no token.
    """
    prompts, targets = _token_lists(examples, tokenizer, joined=True)
    _check_length("max_length", max_length, smallest=2)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows, starts = [], []
    for prompt, target in zip(prompts, targets, strict=True):
        scored = [*target.ids, tokenizer.eos_token_id][: max_length - 1]  # one token of context
        head = bos or ([] if prompt.num_tokens else [tokenizer.eos_token_id])
        room = max_length - len(head) - len(scored)
        context = head + prompt.cut(room)
        rows.append(context + scored)
        starts.append(len(context))
    input_ids, attention_mask = _padded(rows, max_length, _pad_id(tokenizer))
    before_target = np.arange(max_length)[None, :] < np.asarray(starts)[:, None]
    return _encoded(
        input_ids,
        attention_mask,
        labels=np.where((attention_mask == 0) | before_target, np.int32(IGNORE), input_ids),
        ends=[start + len(target.ids) for start, target in zip(starts, targets, strict=True)],
        num_target_bytes=[target.num_bytes(max_length - 1) for target in targets],
    )


def encode_seq2seq(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    max_length: int,
    max_target_length: int,
    decoder_start_token_id: int,
) -> EncodedExamples:
    """Examples for an encoder-decoder: the encoder reads the prompt, the decoder the target.

    Encoder input and labels are ``[bos] text eos`` (bos where the tokenizer has one: BART has,
    T5 has not), and ``decoder_input_ids`` are the labels shifted right behind
    ``decoder_start_token_id``.  A bos is not scored, so that every candidate is scored on the
    same text.  A record without a prompt is divided first
    (:func:`lensllm_jax.data.prefixes.split_prefix`), as it must then be for every candidate.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.
        max_length: ``s``, the length of every encoder row (tokens), at least 3.
        max_target_length: ``u``, the length of every decoder row (tokens), at least 2.
        decoder_start_token_id: from the model's config.

    Raises:
        UserError: as :func:`encode_causal`; or if a target without a prompt is one word.
    """
    divided = [e if e.prompt else split_prefix(e) for e in examples]
    prompts, targets = _token_lists(divided, tokenizer, joined=False)
    _check_length("max_length", max_length, smallest=3)
    _check_length("max_target_length", max_target_length, smallest=2)
    bos = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    eos, pad = tokenizer.eos_token_id, _pad_id(tokenizer)
    sources = [bos + prompt.cut(max_length - len(bos) - 1) + [eos] for prompt in prompts]
    scored = [[*bos, *target.ids, eos][:max_target_length] for target in targets]
    return pair_arrays(
        sources,
        scored,
        ends=[len(bos) + len(target.ids) for target in targets],
        num_target_bytes=[target.num_bytes(max_target_length - len(bos)) for target in targets],
        max_length=max_length,
        max_target_length=max_target_length,
        num_unscored=len(bos),
        pad_token_id=pad,
        decoder_start_token_id=decoder_start_token_id,
    )


def pair_arrays(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Sequence[int]],
    *,
    ends: Sequence[int],
    num_target_bytes: Sequence[int],
    max_length: int,
    max_target_length: int,
    num_unscored: int,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> EncodedExamples:
    """Token lists of an encoder-decoder as padded arrays, the decoder's input shifted right.

    Args:
        sources: encoder tokens, at most ``max_length`` each.
        targets: decoder tokens, at most ``max_target_length`` each.
        ends: position of each target's end token, or beyond the target where it has none.
        num_target_bytes: bytes of the text that each target spells, 0 where it has no text.
        max_length: ``s``.
        max_target_length: ``u``.
        num_unscored: leading tokens of every target that are no label, such as a bos.
        pad_token_id: padding.
        decoder_start_token_id: the decoder's first input.
    """
    input_ids, attention_mask = _padded(sources, max_length, pad_token_id)
    target_ids, target_mask = _padded(targets, max_target_length, pad_token_id)
    start = np.full((len(targets), 1), decoder_start_token_id, np.int32)
    ignored = (target_mask == 0) | (np.arange(max_target_length)[None, :] < num_unscored)
    decoder_input_ids = np.concatenate([start, target_ids[:, :-1]], axis=1)
    return _encoded(
        input_ids,
        attention_mask,
        labels=np.where(ignored, np.int32(IGNORE), target_ids),
        ends=ends,
        num_target_bytes=num_target_bytes,
        decoder_input_ids=decoder_input_ids,
    )


def num_truncated(examples: Sequence[Example], tokenizer: Tokenizer, *, max_length: int) -> int:
    """Targets that do not fit into ``max_length`` tokens with their end and one of context."""
    room = max_length - 2
    # a token holds a byte or more, but for the word boundary that some tokenizers put first
    long = [text for text in map(_spaced_target, examples) if len(text.encode()) + 1 > room]
    if not long:
        return 0
    ids = tokenizer(long, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(len(tokens) > room for tokens in ids)


@dataclass(frozen=True, slots=True)
class _Prompt:
    """Token ids of a prompt, its last line apart, so that dropping some changes no other token."""

    text: list[int]  # all lines but the last
    request: list[int]  # the last line, with the line break before it

    @property
    def num_tokens(self) -> int:
        return len(self.text) + len(self.request)

    def cut(self, room: int) -> list[int]:
        """At most ``room`` tokens: the beginning of the text, and the end of the request."""
        request = self.request[max(len(self.request) - room, 0) :] if room > 0 else []
        return self.text[: max(room - len(request), 0)] + request


@dataclass(frozen=True, slots=True)
class _Target:
    """Token ids of a target, and the bytes of its text up to the end of each."""

    ids: list[int]
    bytes_up_to: list[int]

    def num_bytes(self, num_tokens: int) -> int:
        """Bytes of the text of the first ``num_tokens`` tokens."""
        return self.bytes_up_to[min(num_tokens, len(self.ids)) - 1]


def _token_lists(
    examples: Sequence[Example], tokenizer: Tokenizer, *, joined: bool
) -> tuple[list[_Prompt], list[_Target]]:
    """Token ids of prompts and of targets; ``joined``: the target continues the prompt's line."""
    if not examples:
        raise UserError("`examples` must hold at least one record, got none")
    if tokenizer.eos_token_id is None:
        raise UserError(
            "`tokenizer` must have an end-of-sequence token, got none, "
            "set tokenizer.eos_token to the token that ends a text"
        )
    spaced = [_spaced_target(e) if joined else e.target for e in examples]
    # Where the last line begins; 0 for a single line, since rfind then says -1.
    lines = [max(e.prompt.rstrip().rfind("\n"), 0) for e in examples]
    texts, requests = (
        tokenizer(part, add_special_tokens=False, verbose=False)["input_ids"]
        for part in (
            [e.prompt[:line] for e, line in zip(examples, lines, strict=True)],
            [e.prompt[line:] for e, line in zip(examples, lines, strict=True)],
        )
    )
    found = tokenizer(spaced, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    targets = [
        _Target(ids, [len(text[spaces:end].encode()) for _, end in offsets])
        for ids, offsets, text, spaces in zip(
            found["input_ids"],
            found["offset_mapping"],
            spaced,
            [len(text) - len(e.target) for text, e in zip(spaced, examples, strict=True)],
            strict=True,
        )
    ]
    for i, target in enumerate(targets):
        if not target.ids:
            raise UserError(
                f"`examples` must have a token to score in every target, "
                f"got none in record {i}: {examples[i]!r}"
            )
    return [_Prompt(*parts) for parts in zip(texts, requests, strict=True)], targets


def _spaced_target(example: Example) -> str:
    """The target as it continues the prompt's line."""
    prompt, target = example.prompt, example.target
    apart = not prompt or prompt[-1].isspace() or target[:1].isspace()
    return target if apart else f" {target}"


def _check_length(name: str, length: int, *, smallest: int) -> None:
    if length < smallest:
        raise UserError(f"`{name}` must be at least {smallest} tokens, got {length}")


def _pad_id(tokenizer: Tokenizer) -> int:
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


def _padded(
    rows: Sequence[Sequence[int]], length: int, pad: int
) -> tuple[Int32[np.ndarray, "n s"], Int32[np.ndarray, "n s"]]:
    """Rows filled up to ``length`` with ``pad``, and the mask of what is not filling."""
    ids = np.full((len(rows), length), pad, np.int32)
    mask = np.zeros((len(rows), length), np.int32)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
        mask[i, : len(row)] = 1
    return ids, mask


def _encoded(
    input_ids: np.ndarray,
    attention_mask: np.ndarray,
    *,
    labels: np.ndarray,
    ends: Sequence[int],
    num_target_bytes: Sequence[int],
    decoder_input_ids: np.ndarray | None = None,
) -> EncodedExamples:
    scored = labels != IGNORE
    at_end = np.arange(labels.shape[1])[None, :] == np.asarray(ends)[:, None]
    return EncodedExamples(
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        is_end=at_end & scored,
        num_target_tokens=scored.sum(axis=1, dtype=np.int32),
        num_target_bytes=np.asarray(num_target_bytes, np.int32),
        decoder_input_ids=decoder_input_ids,
    )
