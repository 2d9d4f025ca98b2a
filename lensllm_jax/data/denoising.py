r"""Denoising: the tasks that encoder-decoders are pretrained on, made from running text.

Span corruption (Raffel et al., 2020, section 3.1.4; T5 and mT5) hides a share of the tokens in
a few spans.  The encoder reads the text with a sentinel in place of each span; the decoder
writes the sentinels, each followed by what it hid:

    source  Thank you <X> me to your party <Y> week </s>
    target  <X> for inviting <Y> last </s>

Text infilling (Lewis et al., 2020, section 2.2; BART) puts one and the same mask in place of
each span, draws the lengths of spans from a Poisson distribution - so that a mask may hide
nothing - and lets the decoder write the whole text.  (BART's other noise, the order of
sentences, needs sentences; windows of tokens have none.)

Example:
    >>> import numpy as np
    >>> from lensllm_jax.data.denoising import span_corruption
    >>> pair = span_corruption(np.arange(10, 22), np.random.default_rng(0),
    ...                        sentinels=(91, 92, 93), share=0.4, mean_length=2.5)
    >>> pair.source
    [10, 11, 12, 13, 14, 15, 91, 19, 92]
    >>> pair.target
    [91, 16, 17, 18, 92, 20, 21]
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Int

from lensllm_jax import checks
from lensllm_jax.data.encoding import EncodedExamples, pair_arrays

SPAN_CORRUPTION_SHARE = 0.15  # of the tokens are hidden (Raffel et al., 2020)
INFILLING_SHARE = 0.3  # (Lewis et al., 2020)
MEAN_LENGTH = 3.0  # tokens of a span, in both


class Pair(NamedTuple):
    """One example of a denoising task, without special tokens at its ends."""

    source: list[int]  # what the encoder reads
    target: list[int]  # what the decoder writes


def span_corruption(
    tokens: Int[np.ndarray, " s"],
    rng: np.random.Generator,
    *,
    sentinels: Sequence[int],
    share: float = SPAN_CORRUPTION_SHARE,
    mean_length: float = MEAN_LENGTH,
) -> Pair:
    """Hides spans behind sentinels; of texts of one length all results have one length.

    Args:
        tokens: the text.
        rng: where the spans lie.
        sentinels: tokens that stand for a span, in the order of their use.
        share: of the tokens to hide.
        mean_length: of the spans, tokens.

    Returns:
        The text with sentinels, and the sentinels with what they hide.

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
    share: float = INFILLING_SHARE,
    mean_length: float = MEAN_LENGTH,
) -> Pair:
    """Puts a mask in place of spans, some of them empty; the target is the whole text.

    Args:
        tokens: the text.
        rng: how long the spans are and where they lie.
        mask: the token that stands for a span.
        share: of the tokens to hide.
        mean_length: of the spans, tokens.

    Returns:
        The text with masks, never longer than the text; and the text.
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
    """Windows of text as examples of a denoising task.

    Source and target end with ``eos`` and begin with ``bos`` where the model has one, which is
    not scored.

    Args:
        windows: token ids.
        noise: makes a pair of a window.
        bos_token_id: begins a text, or ``None``.
        eos_token_id: ends it.
        pad_token_id: fills rows up.
        decoder_start_token_id: what the decoder reads first.

    Returns:
        Sources padded to ``s`` tokens and their ends, targets to the longest.
    """
    bos = [] if bos_token_id is None else [bos_token_id]
    pairs = [noise(window) for window in windows]
    sources, targets = (
        [[*bos, *side, eos_token_id] for side in sides] for sides in zip(*pairs, strict=True)
    )
    return pair_arrays(
        sources,
        targets,
        max_length=windows.shape[1] + len(bos) + 1,
        max_target_length=max(map(len, targets)),
        num_unscored=len(bos),
        pad_token_id=pad_token_id,
        decoder_start_token_id=decoder_start_token_id,
    )


def _lengths(total: int, num_parts: int, rng: np.random.Generator) -> list[int]:
    """Lengths of ``num_parts`` parts, each at least 1, all ways to cut equally likely."""
    cuts = np.sort(rng.choice(total - 1, num_parts - 1, replace=False)) + 1
    return np.diff(np.concatenate([[0], cuts, [total]])).astype(int).tolist()
