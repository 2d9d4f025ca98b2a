"""Denoising: the tasks that encoder-decoders are pretrained on, made from running text.

Span corruption (Raffel et al., 2020, section 3.1.4; T5 and mT5) hides a share of the tokens in
a few spans.  The encoder reads the text with a sentinel in place of each span; the decoder
writes the sentinels, each followed by what it hid:

    source  Thank you <X> me to your party <Y> week </s>
    target  <X> for inviting <Y> last </s>

Text infilling (Lewis et al., 2020, section 2.2; BART) puts one mask token in place of each span,
draws the lengths of spans from a Poisson distribution, so that a mask may hide nothing, and lets
the decoder write the whole text.  (BART's other noise permutes sentences, which windows of
tokens do not have.)
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.data.encoding import EncodedExamples, pair_arrays
from lensllm_jax.data.tokens import Tokens

_SPAN_CORRUPTION_SHARE = 0.15  # of the tokens are hidden (Raffel et al., 2020)
_INFILLING_SHARE = 0.3  # (Lewis et al., 2020)
_MEAN_LENGTH = 3.0  # tokens of a span, in both


class Pair(NamedTuple):
    """One example of a denoising task, without special tokens at its ends."""

    source: list[int]  # what the encoder reads
    target: list[int]  # what the decoder writes


def span_corruption(
    tokens: Int[np.ndarray, " s"],
    rng: np.random.Generator,
    *,
    sentinels: Sequence[int],
    share: float = _SPAN_CORRUPTION_SHARE,
    mean_length: float = _MEAN_LENGTH,
) -> Pair:
    """Hides spans behind sentinels; texts of one length give sources and targets of one length.

    Args:
        tokens: the text.
        rng: draws the spans.
        sentinels: tokens that stand for a span, in the order of their use.
        share: of the tokens to hide.
        mean_length: of the spans (tokens).

    Raises:
        UserError: if the text is shorter than two tokens, or has more spans than sentinels.
    """
    if len(tokens) < 2:
        raise checks.UserError(f"`tokens` must be two or more, got {len(tokens)}")
    num_hidden = int(np.clip(round(len(tokens) * share), 1, len(tokens) - 1))
    num_spans = max(round(num_hidden / mean_length), 1)
    num_spans = min(num_spans, len(tokens) - num_hidden)  # a token stands before each span
    if num_spans > len(sentinels):
        raise checks.UserError(
            f"`sentinels` must be at least {num_spans} (the spans of {len(tokens)} tokens), got "
            f"{len(sentinels)}"
        )
    source: list[int] = []
    target: list[int] = []
    shown = _lengths(len(tokens) - num_hidden, num_spans, rng)
    hidden = _lengths(num_hidden, num_spans, rng)
    start = 0
    for num_shown, num_here, sentinel in zip(shown, hidden, sentinels, strict=False):
        middle, end = start + num_shown, start + num_shown + num_here
        source += [*tokens[start:middle].tolist(), sentinel]
        target += [sentinel, *tokens[middle:end].tolist()]
        start = end
    return Pair(source, target)


def text_infilling(
    tokens: Int[np.ndarray, " s"],
    rng: np.random.Generator,
    *,
    mask: int,
    share: float = _INFILLING_SHARE,
    mean_length: float = _MEAN_LENGTH,
) -> Pair:
    """Puts ``mask`` in place of spans, some of them empty; the target is the whole text.

    The source is never longer than the text.  Arguments as in :func:`span_corruption`.
    """
    num_hidden = round(len(tokens) * share)
    lengths: list[int] = []
    # as many masks as hidden tokens at most, so that the source never outgrows the text
    while sum(lengths) < num_hidden and len(lengths) < num_hidden:
        lengths.append(min(int(rng.poisson(mean_length)), num_hidden - sum(lengths)))
    if lengths:  # where empty spans took all masks, the last one hides what is left to hide
        lengths[-1] += num_hidden - sum(lengths)
    num_shown = len(tokens) - num_hidden
    # each span stands before one of the shown tokens, or at the end
    places = np.sort(rng.integers(0, num_shown + 1, len(lengths)))
    source: list[int] = []
    start = shown = 0
    for place, length in zip(places.tolist(), lengths, strict=True):
        source += [*tokens[start : start + place - shown].tolist(), mask]
        start, shown = start + place - shown + length, place
    return Pair([*source, *tokens[start:].tolist()], tokens.tolist())


def denoising_examples(
    windows: Int[np.ndarray, "n s"],
    noise: Callable[[Int[np.ndarray, " s"]], Pair],
    *,
    bos_token_id: int | None,
    eos_token_id: int,
    pad_token_id: int,
    decoder_start_token_id: int,
) -> EncodedExamples:
    """Windows of token ids as examples of a denoising task.

    Source and target end with ``eos`` and begin with ``bos``, which is not scored, where the
    model has one.  Sources are padded to ``s`` tokens and their ends, targets to the longest.
    """
    bos = [] if bos_token_id is None else [bos_token_id]
    pairs = [noise(window) for window in windows]
    sources, targets = (
        [[*bos, *side, eos_token_id] for side in sides] for sides in zip(*pairs, strict=True)
    )
    return pair_arrays(
        sources,
        [Tokens(target, len(bos)) for target in targets],
        num_target_bytes=[0] * len(targets),  # windows of tokens: no text of their own
        lengths=(windows.shape[1] + len(bos) + 1, None),
        pad_token_id=pad_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )


def _lengths(total: int, num_parts: int, rng: np.random.Generator) -> list[int]:
    """Lengths of ``num_parts`` parts, each at least 1, all ways to cut equally likely."""
    cuts = np.sort(rng.choice(total - 1, num_parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int).tolist()
