"""Read-outs by hand."""

import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.ntk import readout
from tests.tolerances import assert_close

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(5, 7))
LABELS = np.array([-100, -100, 3, 6, -100])


def logprob_by_hand(logits, token):
    return logits[token] - np.log(np.sum(np.exp(logits)))


def test_target_logprob_is_the_mean_over_targets_of_the_shifted_positions(x64):
    by_hand = (logprob_by_hand(LOGITS[1], 3) + logprob_by_hand(LOGITS[2], 6)) / 2
    assert_close(readout.target_logprob(jnp.asarray(LOGITS), LABELS, shift=True), by_hand)
    assert_close(readout.loss(jnp.asarray(LOGITS), LABELS, shift=True), -by_hand)
    unshifted = (logprob_by_hand(LOGITS[2], 3) + logprob_by_hand(LOGITS[3], 6)) / 2
    assert_close(readout.target_logprob(jnp.asarray(LOGITS), LABELS, shift=False), unshifted)
    assert abs(by_hand - unshifted) > 0.01


def test_label_logits_stand_where_the_first_target_is_predicted(x64):
    tokens = np.array([6, 3, 0])
    got = readout.label_logits(jnp.asarray(LOGITS), LABELS, tokens, shift=True)
    assert_close(got, LOGITS[1, [6, 3, 0]])
    got = readout.label_logits(jnp.asarray(LOGITS), LABELS, tokens, shift=False)
    assert_close(got, LOGITS[2, [6, 3, 0]])
    targets = readout.one_hot_targets(np.stack([LABELS, np.roll(LABELS, 1)]), tokens, shift=True)
    assert targets.tolist() == [[0, 1, 0], [0, 1, 0]]


def test_what_a_label_at_the_first_position_says_is_never_predicted_by_a_causal_model():
    labels = np.array([[4, -100, 2]])
    assert readout.one_hot_targets(labels, np.array([4, 2]), shift=True).tolist() == [[0, 1]]
    assert readout.one_hot_targets(labels, np.array([4, 2]), shift=False).tolist() == [[1, 0]]


@pytest.mark.parametrize("distribution", list(readout.Distribution))
def test_sum_over_projections_is_the_trace_over_all_logits_in_expectation(distribution):
    jacobian = np.random.default_rng(0).normal(size=(3, 4 * 5, 6))  # targets times vocabulary
    trace = np.einsum("ilp,jlp->ij", jacobian, jacobian)
    sums = []
    for seed in range(120):
        projection = readout.Projection(2, seed=seed, distribution=distribution)
        r = np.asarray(projection.directions(4, 5, np.float32), np.float64)
        projected = np.einsum("kl,ilp->ikp", r.transpose(1, 0, 2).reshape(2, -1), jacobian)
        sums.append(np.einsum("iap,jap->ij", projected, projected))
    deviation = np.std(sums, axis=0) / np.sqrt(len(sums))
    # nine normal scores: one beyond 4.5 happens once in 16,000 draws of the seeds
    assert np.max(np.abs(np.mean(sums, axis=0) - trace) / deviation) < 4.5
    # without the division by k the same test fails by far
    assert np.max(np.abs(2 * np.mean(sums, axis=0) - trace) / deviation) > 10


def test_neither_padding_nor_a_longer_prompt_changes_a_projection():
    projection = readout.Projection(4)
    rng = np.random.default_rng(0)

    def project(logits, labels, projection=projection):
        return readout.projected_logits(jnp.asarray(logits), labels, projection, shift=True)

    f = project(LOGITS, LABELS)
    prompt, padding = rng.normal(size=(2, 3, 7))
    none = np.full(3, -100)
    assert_close(
        project(np.concatenate([LOGITS, padding]), np.concatenate([LABELS, none])), f, rel=1e-5
    )  # float32 sums in another order
    assert_close(
        project(np.concatenate([prompt, LOGITS]), np.concatenate([none, LABELS])), f, rel=1e-5
    )  # float32 sums in another order
    assert np.max(np.abs(project(LOGITS, np.roll(LABELS, 1)) - f)) > 0.1  # other targets
    assert np.max(np.abs(project(LOGITS, LABELS, readout.Projection(4, seed=1)) - f)) > 0.1
