"""Gradient descent and the linear model: the same where the model is linear, and not elsewhere."""

import jax.numpy as jnp
import numpy as np

from lensllm_jax.ntk.loss import ntk_spectrum
from tests.messages.binaries import load
from tests.tolerances import assert_close

training = load("linear_training").module
RANDOM = np.random.default_rng(0)
FEATURES = RANDOM.standard_normal((11, 5))  # 11 examples: a chunk of 8 and one of 3
TARGETS = RANDOM.standard_normal(11)
BATCH = {"labels": np.zeros((11, 1), np.int32), "x": FEATURES, "y": TARGETS}
START = RANDOM.standard_normal(5)


def linear(params, batch):
    return batch["x"] @ params - batch["y"]


def squared(params, batch):
    return batch["x"] @ params**2 - batch["y"]


def test_a_linear_model_is_described_to_rounding():
    spectrum = ntk_spectrum(FEATURES @ FEATURES.T, FEATURES @ START - TARGETS)
    rate = 1.0 / float(spectrum.eigenvalues[-1])
    start = jnp.asarray(START)
    measured = list(training.squared_residuals(linear, start, BATCH, rate, 20))
    expected = [training.linear_residual(spectrum, rate, step) for step in range(21)]
    # one tolerance for both precisions of the suite
    assert_close(np.array(measured), np.array(expected), jnp.float32)
    # steps of this size are no flow
    assert abs(float(spectrum.loss(rate * 4)) / expected[4] - 1) > 1e-3


def test_a_model_that_is_not_linear_departs():
    features = FEATURES * (2 * START)
    spectrum = ntk_spectrum(features @ features.T, FEATURES @ START**2 - TARGETS)
    rate = 1.0 / float(spectrum.eigenvalues[-1])
    start = jnp.asarray(START)
    measured = list(training.squared_residuals(squared, start, BATCH, rate, 64))
    rows = [
        {"step": step, "measured": value,
         "linear": training.linear_residual(spectrum, rate, step)}
        for step, value in enumerate(measured)
    ]  # fmt: skip
    assert_close(measured[0], rows[0]["linear"], jnp.float32)
    assert training.departure(rows) is not None
    assert training.departure(rows[:1]) is None


def test_a_loss_that_is_not_a_number_is_a_departure():
    row = {"step": 1, "measured": "nan", "linear": "1.0"}
    assert training.departure([row]) is row
