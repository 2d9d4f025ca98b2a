r"""The selectors: ``selectors/NAME.py`` holds the formula of NAME as ``score(problem) -> Scores``.

=========== =====================================================================================
name        score (the smaller the better)
=========== =====================================================================================
posterior   mean of several views of each curve, with how sure it is; the default
lensllm     Eq 10 fitted to the pairs that Algorithm 1 accepts, and to the zero-shot loss
ats         log-log line through the pairs that Accept-then-Stop accepts (arXiv 2402.02314)
rectified   the rectified law fitted to all sizes, 0 included
vanilla     Eq 2 fitted to all sizes above 0, as the AtS authors do (Huber, delta 1e-3)
power       Eq 2 with alpha = 1, fitted to all sizes above 0
subtuning   the loss at the budget
zero_shot   the loss at size 0
model_size  - log of the number of parameters
pooled      each candidate's own slope, and one growth of slopes shared by the whole task
nlp_metrics mean exponent of the heavy tails of the weight spectra
logme       - log evidence of a linear model on frozen features
=========== =====================================================================================
"""

from lensllm_jax.selection.problem import Selector
from lensllm_jax.selection.selectors import (
    ats,
    lensllm,
    logme,
    model_size,
    nlp_metrics,
    pooled,
    posterior,
    power,
    rectified,
    subtuning,
    vanilla,
    zero_shot,
)

SELECTORS: dict[str, Selector] = {
    "posterior": posterior.score,
    "lensllm": lensllm.score,
    "ats": ats.score,
    "rectified": rectified.score,
    "vanilla": vanilla.score,
    "power": power.score,
    "subtuning": subtuning.score,
    "zero_shot": zero_shot.score,
    "model_size": model_size.score,
    "pooled": pooled.score,
    "nlp_metrics": nlp_metrics.score,
    "logme": logme.score,
}

# selector -> the field of Evidence that it needs besides the table
NEEDS = {"nlp_metrics": "weights", "logme": "features"}
