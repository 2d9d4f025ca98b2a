"""`vanilla`: Eq 2 fitted with a Huber loss, as Lin et al. 2024 (arXiv 2402.02314) do."""

from lensllm_jax.scaling.laws import Law
from lensllm_jax.selection.problem import Problem, Scores
from lensllm_jax.selection.selectors._laws import fit_and_score

_HUBER_DELTA = 1e-3  # of log losses


def score(problem: Problem) -> Scores:
    """The law on all measured sizes above 0."""
    used = problem.measured & (problem.table.sizes > 0)
    return fit_and_score(problem, Law.VANILLA, used, _HUBER_DELTA)
