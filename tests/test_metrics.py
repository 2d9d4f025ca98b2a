"""Metrics: known values, invariances, and refusal of what has no answer."""

import numpy as np
import pytest

from lensllm_jax import checks, metrics
from tests.tolerances import assert_close

LOSSES = np.array([1.5, 1.2, 2.0, 1.9])


def test_pearson_is_numpys_and_ignores_scale_and_shift():
    scores = np.array([3.0, 1.0, 4.0, 4.5])
    expected = 100 * np.corrcoef(scores, LOSSES)[0, 1]
    assert_close(metrics.pearson_correlation(scores, LOSSES), expected, rel=1e-12)
    assert_close(metrics.pearson_correlation(7 * scores - 2, LOSSES), expected, rel=1e-12)
    assert_close(metrics.pearson_correlation(-scores, LOSSES), -expected, rel=1e-12)


def test_relative_accuracy_is_zero_for_the_worst_and_hundred_for_the_best():
    assert metrics.relative_accuracy(2.0, LOSSES) == 0.0
    assert metrics.relative_accuracy(1.2, LOSSES) == 100.0


@pytest.mark.parametrize(
    ("scores", "losses", "message"),
    [
        ([1.0], [1.0], "two or more"),
        ([1.0, 1.0], [1.0, 2.0], "must vary"),
        ([1.0, float("nan")], [1.0, 2.0], "must be finite"),
        ([1.0, 2.0, 3.0], [1.0, 2.0], "must have shape"),
    ],
)
def test_a_correlation_that_does_not_exist_is_an_error(scores, losses, message):
    with pytest.raises(checks.UserError, match=message):
        metrics.pearson_correlation(scores, losses)


def test_relative_accuracy_refuses_equal_losses_and_a_foreign_loss():
    with pytest.raises(checks.UserError, match="two different values"):
        metrics.relative_accuracy(1.0, [1.0, 1.0])
    with pytest.raises(checks.UserError, match="must be one of `losses`"):
        metrics.relative_accuracy(3.0, LOSSES)


def test_root_mean_square_error_is_in_the_unit_of_the_losses():
    assert_close(metrics.root_mean_square_error(LOSSES + 0.5, LOSSES), 0.5, rel=1e-12)
