"""Events said to have probability p happen in p of all tasks, on tasks with a known truth."""

import dataclasses
import itertools

import numpy as np
import pytest

from lensllm_jax.selection.selectors.posterior import Views
from tests.selection.synthetic import GENERATORS, task

NUM_TASKS = 1000
EDGES = (0.5, 0.6, 0.7, 0.8, 0.9, 1.0 + 1e-9)


@pytest.fixture(scope="module")
def said():
    """Posteriors and true losses of tasks of all generators."""
    rng = np.random.default_rng(0)
    tasks = [task(rng, GENERATORS[i % len(GENERATORS)]) for i in range(NUM_TASKS)]
    return [(Views.of(problem).posterior(), truth) for problem, truth in tasks]


def pairs_of(said):
    """P(the likelier of two candidates wins), and whether it did."""
    first, second = np.triu_indices(len(said[0][1]), 1)
    p = np.concatenate([posterior.beats(first, second) for posterior, _ in said])
    wins = np.concatenate([truth[first] < truth[second] for _, truth in said])
    return np.maximum(p, 1.0 - p), np.where(p > 0.5, wins, ~wins)


def worst_of(p, happened, edges):
    """Largest difference between what was said and what happened, over bins with cases."""
    bins = [(p >= low) & (p < high) for low, high in itertools.pairwise(edges)]
    assert min(b.sum() for b in bins) > 100
    return max(abs(p[b].mean() - happened[b].mean()) for b in bins)


def test_pairs_said_p_are_right_in_p(said):
    assert worst_of(*pairs_of(said), EDGES) < 0.05
    # the control: half the scale
    bold = [(dataclasses.replace(p, log_std=0.5 * p.log_std), truth) for p, truth in said]
    assert worst_of(*pairs_of(bold), EDGES) > 0.05


def test_candidates_said_to_be_best_with_p_are_best_in_p(said):
    p = np.concatenate([posterior.odds(num_draws=1024)[0] for posterior, _ in said])
    best = np.concatenate([np.arange(len(truth)) == truth.argmin() for _, truth in said])
    assert worst_of(p, best, (0.0, 0.05, 0.2, 0.4, 0.6, 0.8, 0.95, 1.0 + 1e-9)) < 0.05


def test_expected_regret_is_the_regret_that_comes(said):
    expected, regrets = [], []
    for posterior, truth in said:
        pick = int(np.argmin(posterior.center))
        expected.append(posterior.odds(num_draws=1024).expected_regret[pick])
        regrets.append(np.log(truth[pick] / truth.min()))
    # above 1: lines and laws are smoother than fine-tuning curves, whose widths are said
    assert 0.8 < np.mean(expected) / np.mean(regrets) < 1.8


def test_intervals_hold_about_their_share(said):
    """Relative to the pool's mean."""
    z = []
    for posterior, truth in said:
        error = np.log(truth) - posterior.center
        z.append(np.abs(error - error.mean()) / posterior.interval_std)
    for level in (0.5, 0.9):
        share = np.mean(np.concatenate(z) < said[0][0].quantile(0.5 + 0.5 * level))
        # fewer: widths are those of curves that converge, and five of six generators do not
        assert level - 0.1 < share < level + 0.05
