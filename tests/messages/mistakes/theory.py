"""Mistakes with the bound, its Hessian forms and its divergences."""

import numpy as np

from lensllm_jax.linalg import NtkSpectrum
from lensllm_jax.theory import bound, decay, hessian, kernel_regression, kl
from lensllm_jax.theory.blocks import displacement, weight_blocks

ONES, EYE, PARAMS = np.ones(2), np.eye(2), {"w": np.ones(2)}
SIZES = 100.0 * 2 ** np.arange(6)


def theorem(h=ONES, **changes):
    good = {"num_examples": 10, "epsilon": 0.1, "loss_bound": 2.0}
    return bound.theorem_2(1.0, h, **{**good, **changes})


def corollary(**changes):
    sum_of_h = decay.Decay(0.3, 1.0, 0.2, 0.4, 0.9, 0.1)
    return decay.corollary_1(sum_of_h, **{"loss_bound": 1.0, "num_blocks": 2, **changes})


def forms(**settings):
    blocks = weight_blocks(PARAMS)
    return hessian.block_forms(None, PARAMS, PARAMS, ONES, blocks, **settings)


def regression(values=ONES, count=1, **settings):
    return kernel_regression.replica_error(NtkSpectrum(values, ONES), count, **settings)


def cross_validation(values=ONES, **settings):
    return kernel_regression.cross_validation_error(NtkSpectrum(values, ONES), **settings)


def holdout(num_test=1, ridge=1.0):
    return kernel_regression.holdout_error(EYE, ONES, 1, num_test=num_test, ridge=ridge)


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("ridge", "zero or positive ... got -1.0", lambda tmp: regression(ridge=-1.0)),
    ("ridge", "zero or positive ... got -1.0", lambda tmp: cross_validation(ridge=-1.0)),
    ("ridge", "above 0 for a singular ... got 0", lambda tmp: cross_validation(0.0 * ONES)),
    ("ridge", "positive ... got 0.0", lambda tmp: holdout(ridge=0.0)),
    ("num_samples", "positive ... got 0", lambda tmp: regression(count=0)),
    ("num_samples", "below the kernel's rank 2 ... got 2", lambda tmp: regression(count=2)),
    ("num_test", "at most 2 together, got 1 and 2", lambda tmp: holdout(2)),
    (
        "only",
        "part of a weight's ... got 'kernel'",
        lambda tmp: weight_blocks(PARAMS, only="kernel"),
    ),
    ("only", "regular expression ... got '('", lambda tmp: weight_blocks(PARAMS, only="(")),
    (
        "fine_tuned",
        "hold the same weights ... got ['a'] in fine_tuned only",
        lambda tmp: displacement({"a": ONES}, {"b": ONES}),
    ),
    (
        "fine_tuned",
        "have equal shapes ... got (2,) and (2, 2) at ['a']",
        lambda tmp: displacement({"a": ONES}, {"a": EYE}),
    ),
    ("epsilon", "lie between 0 ... got 1.0", lambda tmp: theorem(epsilon=1.0)),
    ("loss_bound", "positive ... got inf", lambda tmp: theorem(loss_bound=np.inf)),
    ("loss_bound", "at least the loss ... got 0.5", lambda tmp: theorem(loss_bound=0.5)),
    ("num_examples", "positive ... got 0", lambda tmp: theorem(num_examples=0)),
    ("h", "finite ... got nan at index (0,)", lambda tmp: theorem(h=ONES * np.nan)),
    ("h", "not be negative ... got -1.0", lambda tmp: theorem(h=-ONES)),
    (
        "remainder_constant",
        "zero or positive ... got -1.0",
        lambda tmp: theorem(remainder_constant=-1.0),
    ),
    (
        "displacement",
        "not be zero ... got zeros",
        lambda tmp: bound.optimal_covariance(np.zeros(2), EYE, a=1.0, b=1.0),
    ),
    ("values", "have shape ... got (3,)", lambda tmp: decay.fit_decay(ONES, np.ones(3))),
    ("values", "positive ... got [-1.0", lambda tmp: decay.fit_decay(ONES, -ONES)),
    ("sizes", "hold two or more ... got [1.0, 1.0]", lambda tmp: decay.fit_decay(ONES, ONES)),
    ("loss_bound", "positive ... got 0.0", lambda tmp: corollary(loss_bound=0.0)),
    ("num_blocks", "positive ... got 0", lambda tmp: corollary(num_blocks=0)),
    ("epsilon", "zero or positive ... got -1.0", lambda tmp: corollary(epsilon=-1.0)),
    ("remainder_constant", "positive ... got 0.0", lambda tmp: corollary(remainder_constant=0.0)),
    ("h", "finite ... got nan at index (0,)", lambda tmp: decay.sum_of_roots_bound(ONES * np.nan)),
    ("h", "not be negative ... got -1.0", lambda tmp: decay.sum_of_roots_bound(-ONES)),
    ("num_matvecs", "positive ... got 0", lambda tmp: forms(num_matvecs=0)),
    ("max_bytes", "96 or more ... got 0", lambda tmp: forms(max_bytes=0)),
    ("batch_size", "positive ... got 0", lambda tmp: hessian.batch_means(EYE, batch_size=0)),
    ("batch_size", "at most 2 ... got 4", lambda tmp: hessian.batch_means(EYE, batch_size=4)),
    (
        "num_probes",
        "2 or more ... got 1",
        lambda tmp: hessian.hessian_trace(None, PARAMS, ONES, weight_blocks(PARAMS), num_probes=1),
    ),
    (
        "examples",
        "2 or more ... got 1",
        lambda tmp: hessian.gradient_variance(None, PARAMS, ONES[:1], weight_blocks(PARAMS)),
    ),
    (
        "displacement",
        "finite ... got nan at index (0,)",
        lambda tmp: kl.gaussian_kl(ONES * np.nan, EYE),
    ),
    ("covariance", "have shape ... got (3, 3)", lambda tmp: kl.gaussian_kl(ONES, np.eye(3))),
    (
        "covariance",
        "finite ... got nan at index (0, 0)",
        lambda tmp: kl.gaussian_kl(ONES, EYE * np.nan),
    ),
    ("covariance", "positive ... got -1.0", lambda tmp: kl.gaussian_kl(ONES, -ONES)),
    (
        "covariance",
        "symmetric ... got an asymmetric matrix",
        lambda tmp: kl.gaussian_kl(ONES, np.array([[1.0, 1.0], [0.0, 1.0]])),
    ),
    (
        "covariance",
        "positive definite ... got smallest eigenvalue -1",
        lambda tmp: kl.gaussian_kl(ONES, -EYE),
    ),
    ("covariances", "one per weight tensor ... got 0", lambda tmp: kl.block_kl([ONES], [])),
]
