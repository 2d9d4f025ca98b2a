"""`model_size`: log N; bigger is better."""

import numpy as np

from lensllm_jax import checks
from lensllm_jax.selection.problem import Problem, Scores


def score(problem: Problem) -> Scores:
    """Logarithms of the numbers of parameters.

    Raises:
        UserError: if one is not known.
    """
    num_params = problem.table.num_params
    if np.isnan(num_params).any():
        name = problem.table.names[int(np.argmax(np.isnan(num_params)))]
        raise checks.UserError(
            f"selector model_size must have every candidate's `size`, got none for {name!r}"
        )
    return Scores(np.log(num_params), predicts=False, bigger_is_better=True, reads_losses=False)
