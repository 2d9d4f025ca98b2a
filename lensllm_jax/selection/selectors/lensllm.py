r"""`lensllm`: Algorithm 1 (halving, gamma, tau), then Eq 10 through the accepted pairs.

With ``ntk_spectra``, t is free within the kernel's own bound (prediction); without, F is a
bounded free number.  The zero-shot loss is fitted as well.  E is fixed at 0 where the losses are
no more than the free parameters.

With ``ntk_losses`` (t observed) Eq 10 is also fitted with F measured at each size, and the message
reports how well (phase fitting); it cannot predict, because no early-stop step is known at the
target.
"""

import dataclasses

import numpy as np
from jaxtyping import Bool

from lensllm_jax import checks
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.kernel import Measured, Spectrum
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors._laws import scores_of


def score(problem: Problem) -> Scores:
    """Eq 10 on the pairs that Algorithm 1 accepts and the zero-shot loss."""
    table = problem.table
    searches = [problem.halving.observe_row(table.sizes, row) for row in table.losses]
    accepted = np.array([np.isin(table.sizes, search.accepted_sizes) for search in searches])
    used = problem.measured & (accepted | (table.sizes == 0))
    ntk = None
    if problem.evidence.ntk_spectra is not None:
        ntk = Spectrum(problem.evidence.of_each("ntk_spectra", table.names))
    fits = fit_laws(
        Law.LENSLLM,
        table.sizes,
        table.losses,
        ntk=ntk,
        weights=used.astype(np.float64),
        zero_floor=used.sum(1) <= len(Law.LENSLLM.parameters),
    )
    spent = tuple(search.sizes_spent for search in searches)
    scores = dataclasses.replace(scores_of(problem, fits), spent=spent)
    if problem.evidence.ntk_losses is None:
        return scores
    phase = fit_phase(problem, used)
    assert scores.messages is not None
    messages = tuple(
        f"{message}; phase fitting log-RMSE {error:.4f}"
        for message, error in zip(scores.messages, phase.log_rmse, strict=True)
    )
    return dataclasses.replace(scores, messages=messages)


def fit_phase(
    problem: Problem, used: Bool[np.ndarray, "num_candidates num_sizes"] | None = None
) -> LawFits:
    """Eq 10 with F measured at each size's own early-stop step (phase fitting).

    Args:
        problem: with ``ntk_losses``; NaN where F was not measured.
        used: sizes to fit on; default all measured.

    Returns:
        Fits of B, beta and E.
    """
    table = problem.table
    ntk_losses = problem.evidence.of_each("ntk_losses", table.names)
    for name, row in zip(table.names, ntk_losses, strict=True):
        checks.shape(f"ntk_losses[{name!r}]", np.asarray(row), (len(table.sizes),))
    measured_f = np.stack([np.asarray(row, np.float64) for row in ntk_losses])
    used = problem.measured if used is None else used
    weights = (used & ~np.isnan(measured_f)).astype(np.float64)
    return fit_laws(
        Law.LENSLLM, table.sizes, table.losses, ntk=Measured(measured_f), weights=weights
    )
