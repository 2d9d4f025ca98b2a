r"""The selectors that read a loss table, each a function ``Problem -> Scores``.

========== ===================================================================================
name       score (the smaller the better)
========== ===================================================================================
lensllm    Eq 10 fitted to the pairs that Algorithm 1 accepts, and to the zero-shot loss
ats        log-log line through the pairs that Accept-then-Stop accepts (arXiv 2402.02314)
rectified  the rectified law fitted to all sizes, 0 included
vanilla    Eq 2 fitted to all sizes above 0, as the AtS authors do (Huber, delta 1e-3)
power      Eq 2 with alpha = 1, fitted to all sizes above 0
subtuning  the loss at the budget
zero_shot  the loss at size 0
model_size - log of the number of parameters
========== ===================================================================================

Example:
    >>> import numpy as np
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> sizes = np.array([200, 400, 800, 1600])
    >>> table = LossTable(("a",), sizes, (8.0 * sizes**-0.25)[None], np.array([1e6]), ("",))
    >>> ats(Problem(table, target_size=25600)).scores.round(4)
    array([0.6325])
"""

import dataclasses

import numpy as np

from lensllm_jax import checks, linalg
from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import FREE_PARAMETERS, LawFits
from lensllm_jax.selection.halving import halve
from lensllm_jax.selection.problem import Problem, Scores, check_mapping

HUBER_DELTA_OF_VANILLA = 1e-3  # of log losses; Lin et al. 2024


def _measured(problem: Problem) -> np.ndarray:
    return ~np.isnan(problem.table.losses)


def _all_spent(problem: Problem) -> tuple[tuple[int, ...], ...]:
    return tuple(problem.train_sizes(row) for row in range(len(problem.table.names)))


def _from_fits(problem: Problem, fits: LawFits, spent=None) -> Scores:
    predicted = fits.predict(np.array([float(problem.target_size)]))[:, 0]
    return Scores(
        predicted,
        messages=tuple(fits[i].message for i in range(len(fits))),
        spent=_all_spent(problem) if spent is None else spent,
        fits=fits,
    )


def rectified(problem: Problem) -> Scores:
    """The rectified law on all measured sizes, zero-shot included."""
    table = problem.table
    weights = _measured(problem).astype(np.float64)
    return _from_fits(problem, fit_laws(Law.RECTIFIED, table.sizes, table.losses, weights=weights))


def _without_zero(problem: Problem, law: Law, huber_delta: float | None) -> Scores:
    table = problem.table
    weights = (_measured(problem) & (table.sizes > 0)[None]).astype(np.float64)
    fits = fit_laws(law, table.sizes, table.losses, weights=weights, huber_delta=huber_delta)
    return _from_fits(problem, fits)


def vanilla(problem: Problem) -> Scores:
    """Eq 2 on all measured sizes above 0."""
    return _without_zero(problem, Law.VANILLA, HUBER_DELTA_OF_VANILLA)


def power(problem: Problem) -> Scores:
    """Eq 2 with alpha = 1 on all measured sizes above 0."""
    return _without_zero(problem, Law.POWER, None)


def ats(problem: Problem) -> Scores:
    """Accept-then-Stop as published, its off-by-one included.

    When no pair is refused and there are more than ``gamma``, the published code drops the
    smallest size although it was accepted; its table is reproduced only with that.
    """
    table = problem.table
    predicted, spent, messages = [], [], []
    for losses in table.losses:
        search = halve(table.sizes, losses, gamma=problem.gamma, tau=problem.tau)
        pairs = search.accepted
        spent.append(search.sizes_spent)
        if not search.stopped and len(pairs) > problem.gamma:
            pairs = pairs[:-1]
        if len(pairs) < 2:
            predicted.append(np.nan)
            messages.append(f"a line needs two sizes above 0, got {len(pairs)}")
            continue
        predicted.append(linalg.extrapolate_power(pairs, problem.target_size))
        messages.append(f"a line through {len(pairs)} sizes")
    return Scores(np.array(predicted), messages=tuple(messages), spent=tuple(spent))


def lensllm(problem: Problem) -> Scores:
    """Algorithm 1 (halving, gamma, tau), then Eq 10 in both optimisation phases.

    With ``ntk_spectra`` t is free under the kernel's own bound (prediction); without, F is a
    bounded free number.  With ``ntk_losses`` (t observed) Eq 10 is also fitted with F measured
    at each size, and the message reports how well (phase fitting); it cannot predict, because
    no early-stop step is known at the target.  E is held at 0 where the accepted pairs are no
    more than the free parameters.
    """
    table = problem.table
    searches = [
        halve(table.sizes, row, gamma=problem.gamma, tau=problem.tau) for row in table.losses
    ]
    accepted = np.array([np.isin(table.sizes, search.accepted_sizes) for search in searches])
    used = _measured(problem) & (accepted | (table.sizes == 0)[None])
    spectra = None
    if problem.ntk_spectra is not None:
        mapping = check_mapping("ntk_spectra", problem.ntk_spectra, table)
        spectra = [mapping[name] for name in table.names]
    fits = fit_laws(
        Law.LENSLLM,
        table.sizes,
        table.losses,
        weights=used.astype(np.float64),
        spectra=spectra,
        zero_floor=used.sum(1) <= FREE_PARAMETERS[Law.LENSLLM],
    )
    scores = _from_fits(problem, fits, tuple(search.sizes_spent for search in searches))
    if problem.ntk_losses is None:
        return scores
    phase = fit_phase(problem, used)
    assert scores.messages is not None
    messages = tuple(
        f"{message}; phase fitting log-RMSE {error:.4f}"
        for message, error in zip(scores.messages, phase.log_rmse, strict=True)
    )
    return dataclasses.replace(scores, messages=messages)


def fit_phase(problem: Problem, used: np.ndarray | None = None) -> LawFits:
    """Eq 10 with F measured at each size's own early-stop step (phase fitting).

    Args:
        problem: with ``ntk_losses``; NaN where F was not measured.
        used: sizes to fit on, (num_candidates, num_sizes); default all measured.

    Returns:
        Fits of B, beta and E.
    """
    table = problem.table
    mapping = check_mapping("ntk_losses", problem.ntk_losses, table)
    for name in table.names:
        checks.shape(f"ntk_losses[{name!r}]", np.asarray(mapping[name]), (len(table.sizes),))
    measured_f = np.stack([np.asarray(mapping[name], np.float64) for name in table.names])
    used = _measured(problem) if used is None else used
    weights = (used & ~np.isnan(measured_f)).astype(np.float64)
    return fit_laws(Law.LENSLLM, table.sizes, table.losses, ntk_loss=measured_f, weights=weights)


def subtuning(problem: Problem) -> Scores:
    """The loss at the budget."""
    table = problem.table
    budget = ((problem.budget_size,) if problem.budget_size else (),) * len(table.names)
    return Scores(table.column(problem.budget_size).copy(), predicts=False, spent=budget)


def zero_shot(problem: Problem) -> Scores:
    """The loss before any fine-tuning."""
    return Scores(problem.table.column(0).copy(), predicts=False)


def model_size(problem: Problem) -> Scores:
    """Log N; bigger is better."""
    num_params = problem.table.num_params
    if np.isnan(num_params).any():
        name = problem.table.names[int(np.argmax(np.isnan(num_params)))]
        raise checks.UserError(
            f"selector model_size must have every candidate's `size`, got none for {name!r}"
        )
    return Scores(np.log(num_params), predicts=False, bigger_is_better=True, reads_losses=False)
