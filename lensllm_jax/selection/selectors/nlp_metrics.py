r"""`nlp_metrics`: heavy-tail metrics of the weight spectra; no fine-tuning, no data.

For each weight matrix W (d_in, d_out) the eigenvalues of :math:`W^\top W` above some
:math:`x_{min}` are fitted by two densities (Martin and Mahoney's heavy-tailed self-regularisation;
Yang et al. 2023, "Test accuracy vs. generalization gap", arXiv 2202.02842, for NLP models):

.. math:: \text{PL: } p(x) \propto x^{-\alpha}, \qquad
    \text{E-TPL: } p(x) \propto x^{-\beta} e^{-\lambda x} .

A heavier tail (smaller alpha, smaller lambda) goes with better trained layers, so the score is the
mean PL alpha over the layers and smaller is better.  Both fits and :math:`x_{min}` (least
Kolmogorov-Smirnov distance) are the `powerlaw` package's, with alpha free above 1; alpha then
equals weightwatcher's.  Embeddings, biases and norms are left out, as are matrices with fewer
than ``_MIN_EIGENVALUES`` eigenvalues, too few for a tail.

Example:
    >>> rng = np.random.default_rng(0)
    >>> tail = rng.pareto(1.5, 200) + 1.0  # p(x) ~ x^-2.5
    >>> basis = np.linalg.qr(rng.standard_normal((300, 200)))[0]
    >>> metrics = heavy_tail_metrics(basis * np.sqrt(tail))
    >>> 2.2 < metrics.pl_alpha < 2.8
    True
"""

import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.selection.problem import Problem, Scores

_MIN_EIGENVALUES = 50
_NOT_A_LAYER = re.compile(
    r"bias|scale|norm|ln_|embed|wte|wpe|shared|position|lm_head", re.IGNORECASE
)
_RELATIVE_ZERO = 1e-10  # eigenvalues below it times the largest are rounding errors of zero
# The package would keep alpha below 3, and so move xmin until it is; layers of 5 and more exist.
_ALPHA_RANGE = (1.0, None)


class HeavyTailMetrics(NamedTuple):
    """Tail of one weight matrix."""

    pl_alpha: float  # exponent of the power law
    etpl_lambda: float  # rate of the exponential cut-off, per unit of eigenvalue
    xmin: float  # where the tail begins
    num_eigenvalues: int  # all, not the tail's alone


def heavy_tail_metrics(
    matrix: Float[np.ndarray, "d_in d_out"], *, truncated: bool = True
) -> HeavyTailMetrics:
    """Tail metrics of one weight matrix.

    Args:
        matrix: the weights, either orientation.
        truncated: also fit the truncated power law, several times slower.

    Returns:
        The metrics; lambda is NaN unless ``truncated``.

    Raises:
        UserError: if the matrix has too few eigenvalues above rounding errors.
    """
    import powerlaw  # slow to import

    values = np.linalg.svd(np.asarray(matrix, np.float64), compute_uv=False) ** 2
    values = values[values > _RELATIVE_ZERO * values.max()]
    if len(values) < _MIN_EIGENVALUES:
        raise checks.UserError(
            f"`matrix` must have {_MIN_EIGENVALUES} eigenvalues above zero, got {len(values)}"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the package warns of parameters near its search's ends
        fit = powerlaw.Fit(values, verbose=False, parameter_ranges={"alpha": _ALPHA_RANGE})
        rate = float(fit.truncated_power_law.parameter2) if truncated else float("nan")
        return HeavyTailMetrics(float(fit.power_law.alpha), rate, float(fit.xmin), len(values))


def weight_matrices(weights: Any) -> Iterator[tuple[str, Float[np.ndarray, "d_in d_out"]]]:
    """Name and values of every layer's matrix.

    Args:
        weights: a pytree of Flax params, or (name, array) pairs such as
            :func:`lensllm_jax.checkpoints.stored.stored_weights` reads one at a time.

    Yields:
        Matrices; a tensor (l, d_in, d_out) of scanned layers gives l of them.
    """
    for name, array in _named(weights):
        if _NOT_A_LAYER.search(name) or array.ndim not in (2, 3):
            continue
        stack = array[None] if array.ndim == 2 else array
        if min(stack.shape[1:]) < _MIN_EIGENVALUES:
            continue
        for layer, matrix in enumerate(stack):
            yield f"{name}[{layer}]" if array.ndim == 3 else name, np.asarray(matrix, np.float64)


def _named(weights: Any) -> Iterable[tuple[str, np.ndarray]]:
    if not isinstance(weights, Mapping):
        return weights
    leaves = jax.tree_util.tree_leaves_with_path(weights)
    return ((jax.tree_util.keystr(path), np.asarray(leaf)) for path, leaf in leaves)


def mean_pl_alpha(weights: Any) -> float:
    """Mean PL alpha over the layers of one candidate; smaller goes with heavier tails.

    ``weights`` are those of :func:`weight_matrices`.

    Raises:
        UserError: if no matrix is large enough, which an average would hide.
    """
    alphas = [heavy_tail_metrics(m, truncated=False).pl_alpha for _, m in weight_matrices(weights)]
    if not alphas:
        raise checks.UserError(
            f"`weights` must hold a layer matrix with {_MIN_EIGENVALUES} or more rows and columns, "
            "got none"
        )
    return float(np.mean(alphas))


def score(problem: Problem) -> Scores:
    """Mean PL alpha over the layers; smaller is better."""
    weights = problem.evidence.of_each("weights", problem.table.names)
    alphas = [mean_pl_alpha(tensors) for tensors in weights]
    return Scores(np.array(alphas), predicts=False, reads_losses=False)
