"""Denoising examples can be undone: source and target together hold the text, nothing else."""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensllm_jax import checks
from lensllm_jax.data.denoising import denoising_examples, span_corruption, text_infilling

SENTINELS = tuple(range(1000, 1040))
MASK = 2000
SIZES = st.integers(2, 200)
SEEDS = st.integers(0, 2**32 - 1)


def text(size):
    return np.arange(10, 10 + size)


def filled_in(pair):
    """The text again: every sentinel of the source replaced by what follows it in the target."""
    hidden: dict[int, list[int]] = {}
    for token in pair.target:
        if token in SENTINELS:
            hidden[token] = []
            current = hidden[token]
        else:
            current.append(token)
    return [t for token in pair.source for t in hidden.get(token, [token])]


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS)
def test_filling_in_the_spans_gives_the_text_back(size, seed):
    pair = span_corruption(text(size), np.random.default_rng(seed), sentinels=SENTINELS)
    assert filled_in(pair) == text(size).tolist()


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS)
def test_span_corruption_hides_its_share_in_separate_spans_of_static_number(size, seed):
    pair = span_corruption(text(size), np.random.default_rng(seed), sentinels=SENTINELS)
    used = [token for token in pair.source if token in SENTINELS]
    num_hidden = len(pair.target) - len(used)
    assert num_hidden == max(round(0.15 * size), 1)
    assert used == list(SENTINELS[: len(used)])
    assert used == [token for token in pair.target if token in SENTINELS]
    neighbours = zip(pair.source, pair.source[1:], strict=False)
    assert not any(a in SENTINELS and b in SENTINELS for a, b in neighbours)
    again = span_corruption(text(size), np.random.default_rng(seed + 1), sentinels=SENTINELS)
    assert (len(again.source), len(again.target)) == (len(pair.source), len(pair.target))


@settings(max_examples=60, deadline=None)
@given(SIZES, SEEDS)
@example(2, 43045)  # draws an empty span where only one mask may stand
def test_infilling_keeps_the_order_of_what_it_shows_and_never_lengthens_the_text(size, seed):
    pair = text_infilling(text(size), np.random.default_rng(seed), mask=MASK)
    shown = [token for token in pair.source if token != MASK]
    assert shown == sorted(shown)
    assert set(shown) <= set(pair.target)
    assert pair.target == text(size).tolist()
    assert len(pair.source) <= size
    assert size - len(shown) == round(0.3 * size)


def test_spans_of_infilling_have_the_lengths_of_a_poisson_distribution():
    rng = np.random.default_rng(0)
    pairs = [text_infilling(text(100), rng, mask=MASK) for _ in range(2000)]
    num_masks = np.mean([p.source.count(MASK) for p in pairs])
    # 30 tokens in spans of mean 3; the last span is cut to fit, so a few more than 10 masks
    assert 10 < num_masks < 11
    empty = np.mean([len(p.source) - p.source.count(MASK) for p in pairs])
    assert empty == pytest.approx(70, abs=0.1)


def test_examples_end_with_eos_and_do_not_score_bos():
    windows = np.arange(10, 30).reshape(2, 10)
    rng = np.random.default_rng(0)
    encoded = denoising_examples(
        windows,
        lambda window: text_infilling(window, rng, mask=MASK),
        bos_token_id=0, eos_token_id=2, pad_token_id=1, decoder_start_token_id=2,
    )  # fmt: skip
    assert encoded.labels[:, 0].tolist() == [-100, -100]
    assert encoded.labels[0, 1:].tolist() == [*windows[0].tolist(), 2]
    assert encoded.decoder_input_ids[0].tolist() == [2, 0, *windows[0].tolist()]
    assert encoded.labels[encoded.is_end].tolist() == [2, 2]
    assert encoded.num_target_bytes.tolist() == [0, 0]
    assert encoded.input_ids.shape == (2, 12)
    lengths = encoded.attention_mask.sum(1)
    assert (encoded.input_ids[np.arange(2), lengths - 1] == 2).all()
    assert (encoded.input_ids[:, 0] == 0).all()


def test_too_few_sentinels_and_too_short_a_text_are_refused():
    rng = np.random.default_rng(0)
    with pytest.raises(checks.UserError, match="at least 10"):
        span_corruption(text(200), rng, sentinels=SENTINELS[:9])
    with pytest.raises(checks.UserError, match="two or more"):
        span_corruption(text(1), rng, sentinels=SENTINELS)
