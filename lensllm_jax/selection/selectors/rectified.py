"""`rectified`: the rectified law L(D) = B / (D_l + D^beta) + E (arXiv 2402.02314), extrapolated."""

from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors._laws import fit_and_score


def score(problem: Problem) -> Scores:
    """The law on all measured sizes, zero-shot included."""
    return fit_and_score(problem, Law.RECTIFIED, problem.measured)
