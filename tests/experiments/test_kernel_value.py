"""Priors and covariates: they use what is there, and never a candidate's own future."""

import dataclasses

import numpy as np
import pytest

from experiments.common.left_out import left_out_ridge
from tests.experiments.pools import NUM_CANDIDATES, SIZES, toy_pool
from tests.messages.binaries import load

value = load("kernel_value").module
LOG_OFFSETS = value.LOG_OFFSETS

FLOOR = np.linspace(1.0, 2.0, NUM_CANDIDATES)[:, None]
OFFSETS = np.linspace(5.0, 15.0, NUM_CANDIDATES)[:, None]
LOSSES = 60.0 / (OFFSETS + SIZES**0.45) + FLOOR
NOISY = LOSSES * np.exp(0.003 * np.random.default_rng(0).standard_normal(LOSSES.shape))


def squares_around(centres, width=0.5, noise=0.01):
    return noise**2 * ((LOG_OFFSETS[None] - centres[:, None]) / width) ** 2


def test_a_prior_follows_a_feature_that_predicts_the_offset_and_no_other():
    random = np.random.default_rng(0)
    z = random.standard_normal(12)
    degrees_of_freedom = np.full(12, 2.0)
    informed = value.fit_prior(squares_around(3.0 + 1.5 * z), degrees_of_freedom, z)
    assert informed.slope == pytest.approx(1.5, abs=0.1)
    assert informed.mean == pytest.approx(3.0, abs=0.2)
    uninformed = value.fit_prior(squares_around(3.0 + random.permutation(z)), degrees_of_freedom, z)
    assert abs(uninformed.slope) < 0.8
    common = value.fit_prior(squares_around(3.0 + 1.5 * z), degrees_of_freedom, np.zeros(12))
    assert common.slope == 0.0
    # a candidate with a flat likelihood is where the prior and its feature put it
    flat = np.zeros(len(LOG_OFFSETS))
    assert informed.posterior(flat, 1.0) @ LOG_OFFSETS == pytest.approx(4.5, abs=0.3)
    assert informed.posterior(flat, 1.0).sum() == pytest.approx(1.0)


def test_a_prior_is_where_the_evidence_is_largest():
    z = np.array([-1.0, 0.5, 1.0, -0.2, 1.3])
    # a residual that no offset explains, else the most likely noise is zero
    squares = squares_around(np.array([3.0, 1.0, 6.0, 5.0, 2.0])) + 2e-4
    degrees_of_freedom = np.full(5, 2.0)

    def log_evidence(prior):  # up to a constant, by brute force
        joint = np.exp(prior.log_joint(squares, z))
        return np.log(joint.sum(1)).sum() - 10 * prior.log_noise - 5 * prior.log_spread

    prior = value.fit_prior(squares, degrees_of_freedom, z)
    for name in ("log_noise", "mean", "log_spread", "slope"):
        for step in (-0.02, 0.02):
            moved = dataclasses.replace(prior, **{name: getattr(prior, name) + step})
            assert log_evidence(moved) < log_evidence(prior)


def test_ridge_learns_from_the_others_alone():
    random = np.random.default_rng(1)
    x = random.standard_normal((14, 2))
    errors = 0.3 + 0.5 * x[:, 0]
    predicted = left_out_ridge(x, errors)
    assert np.abs(predicted - errors).max() < 0.2 * np.abs(errors).max()
    changed = errors.copy()
    changed[3] += 100.0
    assert left_out_ridge(x, changed)[3] == predicted[3]  # its own error is never read
    assert left_out_ridge(x, changed)[4] != predicted[4]


def test_no_candidate_sees_its_own_future(tmp_path, monkeypatch):
    monkeypatch.setattr(value, "PRIOR_RATES", (value.Rate.ADAMW,))
    monkeypatch.setattr(value, "BASES", ("rectified",))
    pool = toy_pool(tmp_path, NOISY, value.read_pool, sample_sizes=(3,))
    losses = NOISY.copy()
    losses[2, -1] *= 0.5
    table = dataclasses.replace(pool.table, losses=losses)
    other = dataclasses.replace(pool, table=table)
    for make in (
        lambda p: list(value.priors(p, 2)),
        lambda p: list(value.covariates(p, 2, np.log(p.table.losses[:, -1]))),
    ):
        before, after = make(pool), make(other)
        assert [p.uses for p in before] == [p.uses for p in after]
        for one, two in zip(before, after, strict=True):
            assert one.log_losses[2] == pytest.approx(two.log_losses[2], abs=1e-12)
    # the others' corrections do read it
    assert after[0].log_losses[0] != before[0].log_losses[0]


def test_every_kernel_row_is_compared_with_the_same_method_without_it(tmp_path):
    pool = toy_pool(tmp_path, NOISY, value.read_pool, sample_sizes=(3, 5))
    truth = np.log(pool.table.losses[:, -1])
    predictions = list(value.covariates(pool, 2, truth))
    assert np.isfinite(value.kernel_features(pool, ("target_logprob", 3), 3200)).all()
    rows = value.value_rows(pool, predictions, truth)
    for row, p in zip(rows, predictions, strict=True):
        assert bool(row["less_control"]) == (p.key is not None)
        if p.key is None:
            continue
        control = next(
            r for r in rows
            if r["method"] == row["method"] and r["uses"] == p.control and not r["less_control"]
        )  # fmt: skip
        difference = float(row["mean_error"]) - float(control["mean_error"])
        assert float(row["less_control"]) == pytest.approx(difference, abs=1e-5)  # as printed
