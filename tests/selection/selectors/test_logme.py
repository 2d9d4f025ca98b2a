"""LogME next to a dense maximum of the log evidence."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.selection.loss_table import LossTable
from lensllm_jax.selection.problem import Evidence
from lensllm_jax.selection.rank import rank
from lensllm_jax.selection.selectors.logme import log_evidence
from tests import oracles
from tests.tolerances import assert_close

RNG = np.random.default_rng(0)

FEATURES = RNG.standard_normal((40, 6))

LABELS = (FEATURES[:, 0] + 0.5 * RNG.standard_normal(40) > 0).astype(int)


@pytest.mark.parametrize("width", [3, 6, 60])
def test_logme_is_the_maximum_of_the_dense_log_evidence(width):
    features = np.resize(FEATURES, (40, width)) + 0.1 * np.random.default_rng(1).standard_normal(
        (40, width)
    )
    got = log_evidence(features, LABELS)
    # the oracle's simplex search stops at 1e-8 of a flat maximum
    assert_close(got, oracles.maximum_log_evidence(features, LABELS), rel=1e-6)


def test_features_that_are_all_zero_explain_nothing():
    got = log_evidence(np.zeros((40, 6)), LABELS)
    assert_close(got, oracles.maximum_log_evidence(np.zeros((40, 6)), LABELS), rel=1e-6)
    assert got < log_evidence(FEATURES, LABELS)


def test_logme_prefers_features_that_separate_the_labels():
    shuffled = np.random.default_rng(2).permutation(LABELS)
    assert log_evidence(FEATURES, LABELS) > log_evidence(FEATURES, shuffled)


def test_logme_refuses_one_class():
    with pytest.raises(checks.UserError, match="two or more classes"):
        log_evidence(FEATURES, np.zeros(40, int))


def test_it_ranks_a_table_at_no_cost():
    table = LossTable(
        ("a", "b"), np.array([200, 400]), np.array([[2.0, 1.9], [3.0, 2.9]]), np.ones(2), ("", "")
    )
    features = {"a": (FEATURES, LABELS), "b": (FEATURES, LABELS[::-1])}
    evidence = Evidence(features=features)
    r = rank(table, budget_size=400, target_size=800, selector="logme", evidence=evidence)
    assert r.order == ("a", "b")
    assert r.flops == 0
