"""Mistakes with the bound, its Hessian forms, its divergences and its phases."""

import numpy as np

from lensllm_jax.theory import bound, decay, hessian, kl, phases
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


def transition(**changes):
    given = {"refitted_offsets": ONES, "refitted_betas": ONES, "offset": 1.0, "beta": 1.0}
    return phases.law_transition(**{**given, **changes})


# the message, and what brings it about in an empty folder
MISTAKES = [
    (
        "`only` must be part of a weight's name, got 'kernel'",
        lambda tmp: weight_blocks(PARAMS, only="kernel"),
    ),
    (
        (
            "`only` must be a regular expression, got '(': missing ), unterminated subpattern at "
            "position 0"
        ),
        lambda tmp: weight_blocks(PARAMS, only="("),
    ),
    (
        "`fine_tuned` and `pretrained` must hold the same weights, got ['a'] in fine_tuned only",
        lambda tmp: displacement({"a": ONES}, {"b": ONES}),
    ),
    (
        "`fine_tuned` and `pretrained` must have equal shapes, got (2,) and (2, 2) at ['a']",
        lambda tmp: displacement({"a": ONES}, {"a": EYE}),
    ),
    ("`epsilon` must lie between 0 and 1, got 1.0", lambda tmp: theorem(epsilon=1.0)),
    (
        (
            "`loss_bound` must be positive and finite, got inf: the theorem needs a bounded loss; "
            "clip the loss, or pass the largest one that was seen and say so"
        ),
        lambda tmp: theorem(loss_bound=np.inf),
    ),
    (
        "`loss_bound` must be at least the loss seen (1.0, which must not be negative), got 0.5",
        lambda tmp: theorem(loss_bound=0.5),
    ),
    ("`num_examples` must be positive and finite, got 0", lambda tmp: theorem(num_examples=0)),
    ("`h` must be finite, got nan at index (0,)", lambda tmp: theorem(h=ONES * np.nan)),
    (
        "`h` must not be negative, got -1.0: use the positive part of the Hessian",
        lambda tmp: theorem(h=-ONES),
    ),
    (
        "`remainder_constant` must be zero or positive and finite, got -1.0",
        lambda tmp: theorem(remainder_constant=-1.0),
    ),
    (
        "`displacement` must not be zero, got zeros: nothing was tuned",
        lambda tmp: bound.optimal_covariance(np.zeros(2), EYE, a=1.0, b=1.0),
    ),
    ("`values` must have shape (2,), got (3,)", lambda tmp: decay.fit_decay(ONES, np.ones(3))),
    (
        "`values` must be positive and finite, got [-1.0, -1.0]",
        lambda tmp: decay.fit_decay(ONES, -ONES),
    ),
    (
        "`sizes` must hold two or more different ones, got [1.0, 1.0]",
        lambda tmp: decay.fit_decay(ONES, ONES),
    ),
    ("`loss_bound` must be positive and finite, got 0.0", lambda tmp: corollary(loss_bound=0.0)),
    ("`num_blocks` must be positive and finite, got 0", lambda tmp: corollary(num_blocks=0)),
    (
        "`epsilon` must be zero or positive and finite, got -1.0",
        lambda tmp: corollary(epsilon=-1.0),
    ),
    (
        "`remainder_constant` must be positive and finite, got 0.0",
        lambda tmp: corollary(remainder_constant=0.0),
    ),
    (
        "`h` must be finite, got nan at index (0,)",
        lambda tmp: decay.sum_of_roots_bound(ONES * np.nan),
    ),
    ("`h` must not be negative, got -1.0", lambda tmp: decay.sum_of_roots_bound(-ONES)),
    ("`num_matvecs` must be positive and finite, got 0", lambda tmp: forms(num_matvecs=0)),
    (
        (
            "`max_bytes` must be 96 or more for 16 products in the largest block, got 0: give "
            "more, or lower `num_matvecs`"
        ),
        lambda tmp: forms(max_bytes=0),
    ),
    (
        "`batch_size` must be positive and finite, got 0",
        lambda tmp: hessian.batch_means(EYE, batch_size=0),
    ),
    ("`batch_size` must be at most 2, got 4", lambda tmp: hessian.batch_means(EYE, batch_size=4)),
    (
        "`num_probes` must be 2 or more, got 1",
        lambda tmp: hessian.hessian_trace(None, PARAMS, ONES, weight_blocks(PARAMS), num_probes=1),
    ),
    (
        "`examples` must be 2 or more for a variance, got 1",
        lambda tmp: hessian.gradient_variance(None, PARAMS, ONES[:1], weight_blocks(PARAMS)),
    ),
    (
        "`displacement` must be finite, got nan at index (0,)",
        lambda tmp: kl.gaussian_kl(ONES * np.nan, EYE),
    ),
    (
        "`covariance` must have shape (2, 2), got (3, 3)",
        lambda tmp: kl.gaussian_kl(ONES, np.eye(3)),
    ),
    (
        "`covariance` must be finite, got nan at index (0, 0)",
        lambda tmp: kl.gaussian_kl(ONES, EYE * np.nan),
    ),
    ("`covariance` must be positive, got -1.0", lambda tmp: kl.gaussian_kl(ONES, -ONES)),
    (
        "`covariance` must be symmetric, got an asymmetric matrix",
        lambda tmp: kl.gaussian_kl(ONES, np.array([[1.0, 1.0], [0.0, 1.0]])),
    ),
    (
        "`covariance` must be positive definite, got smallest eigenvalue -1; add a ridge",
        lambda tmp: kl.gaussian_kl(ONES, -EYE),
    ),
    ("`covariances` must be one a weight tensor (1), got 0", lambda tmp: kl.block_kl([ONES], [])),
    (
        "`level` must lie between 0 and 1, got 1.0",
        lambda tmp: phases.segmented_transition(SIZES, SIZES, level=1.0),
    ),
    (
        "`losses` must have shape (6,), got (5,)",
        lambda tmp: phases.segmented_transition(SIZES, SIZES[1:]),
    ),
    (
        (
            "`sizes` must be 6 or more ascending sizes above 0, got [200.0, 400.0, 800.0, 1600.0, "
            "3200.0]"
        ),
        lambda tmp: phases.segmented_transition(SIZES[1:], SIZES[1:]),
    ),
    (
        (
            "`losses` must be positive and finite, got [-100.0, -200.0, -400.0, -800.0, -1600.0, "
            "-3200.0]"
        ),
        lambda tmp: phases.segmented_transition(SIZES, -SIZES),
    ),
    ("`offset` must be positive and finite, got 0.0", lambda tmp: transition(offset=0.0)),
    ("`beta` must be positive and finite, got 0.0", lambda tmp: transition(beta=0.0)),
    (
        "`refitted_betas` must have shape (2,), got (3,)",
        lambda tmp: transition(refitted_betas=np.ones(3)),
    ),
]
