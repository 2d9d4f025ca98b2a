"""Examples as token arrays of one static shape, so that one compilation serves every batch.

Three rules hold for every candidate:

* ``labels`` stand under the ``input_ids`` (decoder-only) or under the logits of
  ``decoder_input_ids`` (encoder-decoder), with ``IGNORE`` = -100 where nothing is scored:
  prompt, beginning-of-sequence, padding.  For a decoder-only model the loss shifts them by one.
* The labels of a record spell its target; behind it stands the end token, with a space before it
  where a chat template puts one (:mod:`lensllm_jax.data.tokens`).
* Nothing is cut here: a task is cut as text (:mod:`lensllm_jax.data.cuts`).

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> encoded = encode_causal([Example("the cat", "sat")], tokenizer, length=6)
    >>> encoded.labels.shape, encoded.num_target_bytes.tolist()
    ((1, 6), [3])
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int, Int32

from lensllm_jax.checks import UserError
from lensllm_jax.data.task import Example
from lensllm_jax.data.tokens import (
    Tokenizer,
    Tokens,
    causal_tokens,
    decoder_tokens,
    encoder_tokens,
)
from lensllm_jax.typing import IGNORE

_CHUNK = 4096  # records whose tokens are held at once


@dataclasses.dataclass(frozen=True)
class EncodedExamples:
    """Token arrays of ``n`` examples, padded on the right to ``s`` (and ``u``) tokens."""

    input_ids: Int32[np.ndarray, "n s"]  # what the model, or its encoder, reads
    attention_mask: Int32[np.ndarray, "n s"]  # 1 on tokens, 0 on padding
    labels: Int32[np.ndarray, "n u"]  # targets, IGNORE elsewhere; u = s if decoder-only
    is_end: Bool[np.ndarray, "n u"]  # the label is of the end, which is no text of the target
    num_target_tokens: Int32[np.ndarray, " n"]  # scored tokens of each example, at least 1
    num_target_bytes: Int32[
        np.ndarray, " n"
    ]  # UTF-8 bytes of the target, for every candidate alike
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
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    length: int | None = None,
    chat: bool = False,
) -> EncodedExamples:
    """Examples for a decoder-only model: prompt, target and end token, then padding.

    Padding is the end token where the tokenizer has none; it is masked and not scored.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.
        length: ``s``, of every row (tokens); that of the longest when None.
        chat: through the tokenizer's template of conversations.

    Raises:
        UserError: if a row is longer than ``length``, there is no example, a target has no token,
            or the tokenizer or its template cannot be used.
    """
    rows = causal_tokens(examples, tokenizer, chat=chat)
    padded = _padded("length", [row.ids for row in rows], length, _pad_id(tokenizer))
    return _encoded(padded, padded, rows, _num_target_bytes(examples))


def encode_seq2seq(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    *,
    decoder_start_token_id: int,
    length: int | None = None,
    target_length: int | None = None,
) -> EncodedExamples:
    """Examples for an encoder-decoder: the encoder reads the prompt, the decoder the target.

    ``decoder_input_ids`` are the labels shifted right behind ``decoder_start_token_id``.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.
        decoder_start_token_id: from the model's config.
        length: ``s``, of every encoder row (tokens); that of the longest when None.
        target_length: ``u``, of every decoder row (tokens); that of the longest when None.

    Raises:
        UserError: as :func:`encode_causal`.
    """
    return pair_arrays(
        encoder_tokens(examples, tokenizer),
        decoder_tokens(examples, tokenizer),
        num_target_bytes=_num_target_bytes(examples),
        lengths=(length, target_length),
        pad_token_id=_pad_id(tokenizer),
        decoder_start_token_id=decoder_start_token_id,
    )


def longest_rows(
    examples: Sequence[Example], tokenizer: Tokenizer, *, is_encoder_decoder: bool, chat: bool
) -> tuple[int, int]:
    """Tokens of the longest row of a decoder or an encoder, and of the decoder behind that (or 0).

    Raises:
        UserError: as :func:`encode_causal`.
    """
    longest = np.zeros(2, int)
    for start in range(0, len(examples), _CHUNK):
        some = examples[start : start + _CHUNK]
        if is_encoder_decoder:
            sources, targets = encoder_tokens(some, tokenizer), decoder_tokens(some, tokenizer)
            found = [max(map(len, sources)), max(len(row.ids) for row in targets)]
        else:
            found = [max(len(row.ids) for row in causal_tokens(some, tokenizer, chat=chat)), 0]
        longest = np.maximum(longest, found)
    return int(longest[0]), int(longest[1])


def pair_arrays(
    sources: Sequence[Sequence[int]],
    targets: Sequence[Tokens],
    *,
    num_target_bytes: Sequence[int],
    lengths: tuple[int | None, int | None],
    pad_token_id: int,
    decoder_start_token_id: int,
) -> EncodedExamples:
    """Token lists of an encoder-decoder as padded arrays, the decoder's input shifted right.

    Args:
        sources: encoder tokens.
        targets: decoder tokens.
        num_target_bytes: bytes of the text that each target spells, 0 where it has no text.
        lengths: ``s`` and ``u``; that of the longest row when None.
        pad_token_id: padding.
        decoder_start_token_id: the decoder's first input.
    """
    length, target_length = lengths
    source = _padded("length", sources, length, pad_token_id)
    target = _padded("target_length", [row.ids for row in targets], target_length, pad_token_id)
    start = np.full((len(targets), 1), decoder_start_token_id, np.int32)
    read = np.concatenate([start, target.ids[:, :-1]], axis=1)
    return _encoded(source, target, targets, num_target_bytes, decoder_input_ids=read)


def _num_target_bytes(examples: Sequence[Example]) -> list[int]:
    return [len(example.target.encode()) for example in examples]


def _pad_id(tokenizer: Tokenizer) -> int:
    pad = tokenizer.pad_token_id
    return tokenizer.eos_token_id if pad is None else pad


class _Padded(NamedTuple):
    """Rows of one length."""

    ids: Int32[np.ndarray, "n s"]
    mask: Int32[np.ndarray, "n s"]  # 1 on tokens, 0 on padding


def _padded(name: str, rows: Sequence[Sequence[int]], length: int | None, pad: int) -> _Padded:
    """Rows filled up to ``length`` with ``pad``."""
    sizes = np.array([len(row) for row in rows])
    if length is None:
        length = int(sizes.max())
    if sizes.max() > length:
        raise UserError(
            f"`{name}` must be at least {sizes.max()} (tokens of record {sizes.argmax()}), got "
            f"{length}, cut the text (cut_task)"
        )
    mask = np.arange(length)[None, :] < sizes[:, None]
    ids = np.full((len(rows), length), pad, np.int32)
    ids[mask] = np.concatenate([np.asarray(row, np.int32) for row in rows])
    return _Padded(ids, mask.astype(np.int32))


def _encoded(
    source: _Padded,
    target: _Padded,
    rows: Sequence[Tokens],
    num_target_bytes: Sequence[int],
    decoder_input_ids: Int32[np.ndarray, "n u"] | None = None,
) -> EncodedExamples:
    """What is read, with labels where ``rows``, whose arrays ``target`` holds, are scored."""
    places = np.arange(target.ids.shape[1])[None, :]
    scored = (target.mask != 0) & (places >= np.array([row.start for row in rows])[:, None])
    return EncodedExamples(
        input_ids=source.ids,
        attention_mask=source.mask,
        labels=np.where(scored, target.ids, np.int32(IGNORE)),
        is_end=(target.mask != 0)
        & (places >= np.array([len(row.ids) - row.num_end for row in rows])[:, None]),
        num_target_tokens=scored.sum(axis=1, dtype=np.int32),
        num_target_bytes=np.asarray(num_target_bytes, np.int32),
        decoder_input_ids=decoder_input_ids,
    )
