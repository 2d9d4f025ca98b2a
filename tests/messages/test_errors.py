"""Public errors say what was expected and what came; the table triggers each."""

import re

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.scaling.laws import NtkSpectrum
from lensllm_jax.selection.halving import Halving
from lensllm_jax.selection.loss_table import LossTable

SIZES = np.array([0, 200, 400, 800])
TABLE = LossTable(
    ("a", "b"), SIZES, np.array([[4.0, 3, 2, 1], [5, 4, 3, 2]]), np.ones(2), ("", ""), task="toy"
)
EYE = np.eye(2)


def linear(params, x):
    return x @ params


def rank(**changes):
    return lens.rank(TABLE, **{"budget_size": 400, "target_size": 800, **changes})


def loss(**changes):
    return lens.ntk_loss(EYE, np.ones(2), **{"learning_rate": 1.0, "steps": 1, **changes})


MISTAKES = {
    "selector": lambda: rank(selector="best"),
    "budget_size": lambda: rank(budget_size=300),
    "target_size": lambda: rank(target_size=400),
    "learning_rate": lambda: loss(learning_rate=-1.0),
    "law": lambda: lens.fit_law("cubic", SIZES, np.ones(4)),
    "method": lambda: lens.empirical_ntk(linear, np.ones(2, np.float32), EYE, method="fast"),
    "output_reduction": lambda: lens.empirical_ntk(
        linear, np.ones(2, np.float32), EYE, output_reduction="max"
    ),
    "gamma": lambda: Halving(gamma=0, tau=5.0),
    "tau": lambda: Halving(gamma=3, tau=-1.0),
    "eigenvalues": lambda: NtkSpectrum(np.array([np.nan]), np.ones(1), learning_rate=1.0),
    "size": lambda: Halving(gamma=3, tau=5.0).observe(0, 1.0),
    "name": lambda: rank(selector="model_size").probability("a", "nobody"),
}


def told(mistake):
    with pytest.raises(checks.UserError) as caught:
        mistake()
    return str(caught.value)


def says_all(message, name):
    return bool(re.search(rf"`{name}`.* must .*got .+", message))


@pytest.mark.parametrize("name", MISTAKES)
def test_error_says_what_was_expected_and_what_came(name):
    message = told(MISTAKES[name])
    assert says_all(message, name), message


def test_a_message_that_says_less_is_caught():
    assert not says_all("`gamma` must be positive", "gamma")
    assert not says_all("bad gamma, got 0", "gamma")


def test_a_missing_folder_and_task_are_named():
    for call, given in ((lens.load_candidate, "zoo/none"), (lens.load_task, "no-such-task")):
        message = told(lambda call=call, given=given: call(given))
        assert "must" in message
        assert given in message
