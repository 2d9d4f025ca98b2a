"""LogME and NLPmetrics of a pool: what each budget reads, and what it costs."""

import numpy as np
import pytest

from lensllm_jax import checks
from lensllm_jax.data.task import Example, Task
from lensllm_jax.runs.settings import RunSettings
from lensllm_jax.selection.loss_table import LossTable, write_loss_table
from tests.messages.binaries import load
from tests.tolerances import assert_close

MODULE = load("feature_scores").module
NAMES = ("a", "b", "c")
TABLE = LossTable(
    NAMES, np.array([0, 10, 20, 40]), np.array([4.0, 3.0, 2.0, 1.0]) + np.arange(3.0)[:, None],
    np.array([1e3, 2e3, 3e3]), ("",) * 3, "toy",
)  # fmt: skip
EXAMPLES = [Example("", "the end" if i % 2 else "a man") for i in range(20)]
RANDOM = np.random.default_rng(0)
WEIGHTS = {name: {"k": RANDOM.standard_normal((60, 55))} for name in NAMES}


def features(labelled_until):
    """States that predict the first word, those of a best, up to an example; then none do."""
    labels = np.array([float(i % 2) for i in range(20)])
    states = {}
    for rank, name in enumerate(NAMES):
        noise = np.random.default_rng(rank).standard_normal((20, 3))
        noise[:labelled_until, 0] += (3.0 - rank) * 4.0 * labels[:labelled_until]
        states[name] = MODULE.Features(noise, [5 + rank] * 20, 2.0)
    return states


@pytest.fixture
def rankings(monkeypatch):
    monkeypatch.setattr(MODULE, "weights_of", WEIGHTS.__getitem__)
    MODULE.NUM_WORDS.value = 1
    return lambda states: MODULE.all_rankings(TABLE, [2, 4], states, EXAMPLES)


def test_a_budget_reads_its_own_examples_and_no_more(rankings):
    early, late = rankings(features(10)), rankings(features(20))
    assert early["logme", 4].scores == late["logme", 4].scores  # 10 examples
    assert early["logme", 2].scores != late["logme", 2].scores  # 20 examples
    assert late["logme", 2].order == late["logme", 4].order == NAMES
    scores = late["logme", 2].scores
    assert scores["a"] > scores["b"] > scores["c"]  # evidence: bigger is better


def test_weights_are_read_once_and_score_every_budget(rankings):
    by_key = rankings(features(20))
    assert by_key["nlp_metrics", 2] is by_key["nlp_metrics", 4]
    row = MODULE.row_of(TABLE, ("logme", 2), by_key["logme", 2], 7.0, 1.0)
    assert row["relative_accuracy"] == 100.0
    assert row["pearson"] < -90.0  # the most evidence has the least loss
    assert (row["budget_fraction"], row["flops"]) == (0.5, 7.0)


def test_costs_are_a_forward_pass_and_the_singular_values(monkeypatch):
    monkeypatch.setattr(MODULE, "weights_of", WEIGHTS.__getitem__)
    num_params = {"a": 10, "b": 20, "c": 30}
    flops, seconds = MODULE.cost("logme", 10, features(20), num_params)
    assert_close(flops, 2.0 * 10 * (10 * 5 + 20 * 6 + 30 * 7))
    assert_close(seconds, 3 * 2.0 * 10 / 20)
    flops, seconds = MODULE.cost("nlp_metrics", 10, features(20), num_params)
    assert_close(flops, 3 * (4.0 * 60 * 55**2 - 4.0 * 55**3 / 3.0))
    assert seconds == 0.0


def test_flags_that_cannot_be_are_named(tmp_path, monkeypatch):
    write_loss_table(TABLE, tmp_path / "toy.csv")
    binary = load(
        "feature_scores", curves=str(tmp_path / "toy.csv"), output_dir=str(tmp_path / "out")
    )
    for words, candidates, message in (
        (0, "a,b,c", "`num_words` must be 1 or more"),
        (1, "a,x", "`names` must be one of"),
    ):
        with pytest.raises(checks.UserError, match=message):
            binary.set(num_words=words, candidates=candidates).module.main([])
    module = binary.set(candidates="a,b,c", budgets=["2"]).module
    module.describe_pool = lambda names: {}
    monkeypatch.setattr(
        RunSettings, "load_task", lambda run, pool: Task("toy", "", (), (), (), {}, "")
    )
    with pytest.raises(checks.UserError, match="`budgets` must leave at most "):
        module.main([])
    assert not (tmp_path / "out").exists()
