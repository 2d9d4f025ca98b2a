"""`power`: Eq 2 with alpha = 1, extrapolated."""

from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors._laws import fit_and_score


def score(problem: Problem) -> Scores:
    """The law on all measured sizes above 0."""
    return fit_and_score(problem, Law.POWER, problem.measured & (problem.table.sizes > 0))
