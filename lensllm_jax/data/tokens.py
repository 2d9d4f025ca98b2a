"""Tokens of a record: prompt and target as one text, divided where the target begins.

A tokenizer divides a text by what stands on both sides of a place, and some put a mark of their
own before every text.  So the record is tokenised once, whole, and its tokens are then divided by
the characters that they cover: a token of prompt and target counts to the target.  So does the
space that joins the two, where neither brings white space of its own.  Candidates whose tokens
differ are therefore scored on the same text.

Special tokens stand where the tokenizer itself puts them: GPT-2's puts none, Gemma's a beginning,
T5's an end, BART's both.  An end follows every target, as a model must know where to stop; it is
no text.  A target that would stand first has nothing to be predicted from: the token that begins
a text, or else the one that ends a text, is put before it.

Example:
    >>> import lensllm_jax as lens
    >>> tokenizer = lens.load_candidate("zoo/gpt2-xs").tokenizer
    >>> (row,) = causal_tokens([Example("the cat", "sat")], tokenizer)
    >>> tokenizer.decode(row.ids[: row.start]), tokenizer.decode(row.ids[row.start :])
    ('the cat', ' sat<|endoftext|>')
"""

import contextlib
from collections.abc import Iterator, Sequence
from itertools import takewhile
from typing import Any, NamedTuple, TypeAlias

from lensllm_jax.checks import UserError
from lensllm_jax.data.chat import conversation
from lensllm_jax.data.task import Example

Tokenizer: TypeAlias = Any  # a transformers PreTrainedTokenizerFast


class Tokens(NamedTuple):
    """Token ids, scored from ``start`` on; the last ``num_end`` are an end and no text."""

    ids: list[int]
    start: int
    num_end: int = 1  # more where a template sets the end token apart from the text


def causal_tokens(
    examples: Sequence[Example], tokenizer: Tokenizer, *, chat: bool = False
) -> list[Tokens]:
    """Records as a decoder-only model reads them; ``start`` is at least 1.

    Args:
        examples: records of a task.
        tokenizer: a fast tokenizer of transformers.
        chat: the tokenizer's template puts the prompt into the user's turn and the target into
            the assistant's, whose end is the end token; a record without a prompt stays as it is.

    Raises:
        UserError: if there is no record, a target has no token, or the tokenizer is not a fast
            one, has no end token or, with ``chat``, no template of a conversation.
    """
    special = _special_tokens(examples, tokenizer)
    turns = conversation(tokenizer) if chat else None
    found = [turns.of(e) if turns and e.prompt else joined(e) for e in examples]
    texts, borders = zip(*found, strict=True)
    tails = [len(turns.end) if turns and e.prompt else 0 for e in examples]
    ends = [len(text) - tail for text, tail in zip(texts, tails, strict=True)]
    rows = []
    for i, (ids, start, end) in enumerate(_divided(texts, borders, tokenizer, ends)):
        if start == end:
            raise _no_target(i, examples[i])
        if tails[i]:  # the template has all special tokens
            rows.append(Tokens(ids, start, num_end=len(ids) - end))
            continue
        ids, start = [*special.head, *ids, tokenizer.eos_token_id], len(special.head) + start
        rows.append(Tokens(ids, start) if start else Tokens([special.context, *ids], 1))
    return rows


def encoder_tokens(examples: Sequence[Example], tokenizer: Tokenizer) -> list[list[int]]:
    """Prompts as an encoder reads them: with the tokenizer's special tokens, never empty."""
    special = _special_tokens(examples, tokenizer)
    texts = [example.prompt for example in examples]
    return [
        [*special.head, *ids, *special.tail] or [tokenizer.eos_token_id]
        for ids, *_ in _divided(texts, [0] * len(texts), tokenizer)
    ]


def decoder_tokens(examples: Sequence[Example], tokenizer: Tokenizer) -> list[Tokens]:
    """Targets as the decoder of an encoder-decoder writes them.

    What the tokenizer puts before a text is written and not scored.

    Raises:
        UserError: as :func:`causal_tokens`.
    """
    special = _special_tokens(examples, tokenizer)
    texts = [example.target for example in examples]
    rows = []
    for i, (ids, *_) in enumerate(_divided(texts, [0] * len(texts), tokenizer)):
        if not ids:
            raise _no_target(i, examples[i])
        rows.append(Tokens([*special.head, *ids, tokenizer.eos_token_id], len(special.head)))
    return rows


def num_altered(examples: Sequence[Example], tokenizer: Tokenizer) -> int:
    """Targets that a tokenizer does not give back as they are.

    T5's turns line breaks into spaces and has no brace: a candidate is then scored on a text with
    less in it, over the bytes of the whole.
    """
    rows = [row.ids[row.start : -1] for row in decoder_tokens(examples, tokenizer)]
    texts = tokenizer.backend_tokenizer.decode_batch(rows, skip_special_tokens=False)
    # some put a space before every text
    return sum(
        text.removeprefix(" ") != example.target.removeprefix(" ")
        for text, example in zip(texts, examples, strict=True)
    )


def joined(example: Example) -> tuple[str, int]:
    """Prompt and target as one text, and the number of its characters that are the prompt's."""
    prompt, target = example.prompt, example.target
    apart = not prompt or prompt[-1].isspace() or target[:1].isspace()
    return (prompt + target if apart else f"{prompt} {target}"), len(prompt)


class _SpecialTokens(NamedTuple):
    """What a tokenizer puts around a text, and what stands before a text without context."""

    head: list[int]
    tail: list[int]
    context: int


def _special_tokens(examples: Sequence[Example], tokenizer: Tokenizer) -> _SpecialTokens:
    """Those of a tokenizer, after a check of both arguments."""
    if not examples:
        raise UserError("`examples` must hold at least one record, got none")
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            "`tokenizer` must be a fast tokenizer of transformers, which knows the characters of "
            f"its tokens, got {type(tokenizer).__name__}, save it as a tokenizer.json"
        )
    if tokenizer.eos_token_id is None:
        raise UserError(
            "`tokenizer` must have an end-of-sequence token, got none, "
            "set tokenizer.eos_token to the token that ends a text"
        )
    probe = tokenizer(examples[0].target, return_special_tokens_mask=True, verbose=False)
    added = list(zip(probe["input_ids"], probe["special_tokens_mask"], strict=True))
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    return _SpecialTokens(
        head=[token for token, _ in takewhile(lambda pair: pair[1], added)],
        tail=[token for token, _ in takewhile(lambda pair: pair[1], reversed(added))][::-1],
        context=eos if bos is None else bos,
    )


def _divided(
    texts: Sequence[str],
    borders: Sequence[int],
    tokenizer: Tokenizer,
    ends: Sequence[int] | None = None,
) -> Iterator[tuple[list[int], int, int]]:
    """Token ids of each text, and those that cover what lies between its border and its end.

    Args:
        texts: whole.
        borders: characters before what is scored.
        tokenizer: a fast one.
        ends: characters up to its end (default: all).

    Yields:
        Ids, the place of the first such token, and the place behind the last.
    """
    with _every_character(tokenizer):
        found = tokenizer(
            list(texts), add_special_tokens=False, return_attention_mask=False,
            return_token_type_ids=False, verbose=False,
        )  # fmt: skip
    ends = [len(text) for text in texts] if ends is None else ends
    for text, border, end, encoding in zip(texts, borders, ends, found.encodings, strict=True):
        # some tokenizers drop white space, which no token then covers
        places = (encoding.char_to_token(i) for i in range(border, end)) if border else [0]
        after = len(encoding.ids)
        start = next((place for place in places if place is not None), after)
        if end < len(text):  # the last token is an end, though it may take white space before it
            spans = enumerate(encoding.offsets[:-1], start=1)
            after = max((i for i, (a, b) in spans if border < b and a < end), default=start)
        yield encoding.ids, start, after


@contextlib.contextmanager
def _every_character(tokenizer: Tokenizer) -> Iterator[None]:
    """Without the last step of a tokenizer, which takes white space out of what tokens cover."""
    backend = tokenizer.backend_tokenizer
    last = backend.post_processor
    backend.post_processor = None
    try:
        yield
    finally:
        backend.post_processor = last


def _no_target(place: int, example: Example) -> UserError:
    return UserError(
        f"`examples` must have a token to score in every target, "
        f"got none in record {place}: {example!r}"
    )
