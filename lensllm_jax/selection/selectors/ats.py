"""`ats`: Accept-then-Stop of Lin et al. 2024 (arXiv 2402.02314), its off-by-one included.

A line of log loss on log size through the pairs that Algorithm 1 accepts.  When no pair is
rejected and there are more than ``gamma``, the published code drops the smallest size although it
was accepted; its table is reproduced only with that.

Example:
    >>> from lensllm_jax.selection.loss_table import LossTable
    >>> sizes = np.array([200, 400, 800, 1600])
    >>> table = LossTable(("a",), sizes, (8.0 * sizes**-0.25)[None], np.array([1e6]), ("",))
    >>> score(Problem(table, target_size=25600)).scores.round(4)
    array([0.6325])
"""

import numpy as np

from lensllm_jax import linalg
from lensllm_jax.selection.problem import Problem, Scores


def score(problem: Problem) -> Scores:
    """The line's loss at the target; NaN with fewer than two pairs."""
    predicted, spent, messages = [], [], []
    for losses in problem.table.losses:
        search = problem.halving.observe_row(problem.table.sizes, losses)
        pairs = search.accepted
        spent.append(search.sizes_spent)
        if not search.stopped and len(pairs) > search.gamma:
            pairs = pairs[:-1]
        if len(pairs) < 2:
            predicted.append(np.nan)
            messages.append(f"a line needs two sizes above 0, got {len(pairs)}")
            continue
        predicted.append(linalg.extrapolate_power(pairs, problem.target_size))
        messages.append(f"a line through {len(pairs)} sizes")
    return Scores(np.array(predicted), messages=tuple(messages), spent=tuple(spent))
