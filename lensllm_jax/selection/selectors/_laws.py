"""Scores of a fitted law, which every selector that fits one returns."""

import numpy as np
from jaxtyping import Bool

from lensllm_jax.scaling.fit import fit_laws
from lensllm_jax.scaling.laws import Law
from lensllm_jax.scaling.result import LawFits
from lensllm_jax.selection.problem import Problem, Scores


def scores_of(problem: Problem, fits: LawFits) -> Scores:
    """The fits' predictions at the target; every measured size was spent."""
    return Scores(
        fits.predict(np.array([float(problem.target_size)]))[:, 0],
        messages=tuple(fits[i].message for i in range(len(fits))),
        spent=problem.train_sizes,
        fits=fits,
    )


def fit_and_score(
    problem: Problem,
    law: Law,
    used: Bool[np.ndarray, "num_candidates num_sizes"],
    huber_delta: float | None = None,
) -> Scores:
    """The law fitted to the ``used`` losses."""
    table = problem.table
    fits = fit_laws(
        law, table.sizes, table.losses, weights=used.astype(np.float64), huber_delta=huber_delta
    )
    return scores_of(problem, fits)
