"""`subtuning`: the loss at the budget."""

from lensllm_jax.selection.problem import Problem, Scores


def score(problem: Problem) -> Scores:
    """Losses of the table's last column; each candidate is fine-tuned there alone."""
    budget = (problem.budget_size,) if problem.budget_size else ()
    losses = problem.table.column(problem.budget_size).copy()
    return Scores(losses, predicts=False, spent=(budget,) * len(losses))
