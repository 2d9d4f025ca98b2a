r"""Symmetric eigenproblems and the matrix functions that stand on them.

A symmetric matrix is :math:`A = U \Lambda U^\top`; a function of it is
:math:`\varphi(A) = U \varphi(\Lambda) U^\top` (Higham 2008, *Functions of Matrices*, sec. 1.2),
which is not the function applied to the entries.  Decompositions run in float64 on the host
whatever JAX's mode: :math:`e^{-\eta \Lambda t}` turns an eigenvalue that rounding made negative
into growth.

Example:
    >>> import numpy as np
    >>> from lensllm_jax import linalg
    >>> eigen = linalg.symmetric_eigen(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> eigen.values
    array([1., 3.])
    >>> linalg.apply_function(eigen, np.exp, np.array([1.0, 1.0]))  # e^A (1, 1) = e^3 (1, 1)
    array([20.085..., 20.085...])
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks
from lensllm_jax.typing import Array


class SymmetricEigen(NamedTuple):
    """The eigendecomposition of a symmetric matrix, eigenvalues ascending."""

    values: Float[np.ndarray, " n"]  # Λ
    vectors: Float[np.ndarray, "n n"]  # U, one eigenvector a column


def asymmetry(matrix: Float[Array, "n n"]) -> float:
    r"""How far a square matrix is from symmetric: :math:`\max|A - A^\top| / \max|A|`.

    Args:
        matrix: the matrix.

    Returns:
        A number from 0 (symmetric, or all zeros) to 2.

    Example:
        >>> asymmetry(np.array([[1.0, 0.5], [0.25, 1.0]]))
        0.25
    """
    matrix = np.asarray(matrix)
    largest = float(np.max(np.abs(matrix)))
    return float(np.max(np.abs(matrix - matrix.T))) / largest if largest else 0.0


def symmetric_eigen(matrix: Float[Array, "n n"], *, name: str = "matrix") -> SymmetricEigen:
    r"""Eigenvalues and eigenvectors :math:`A = U \Lambda U^\top`, in float64.

    Args:
        matrix: symmetric up to the rounding of its dtype.
        name: what the caller calls it, for messages.

    Returns:
        The decomposition of :math:`(A + A^\top) / 2`.

    Raises:
        UserError: if the matrix is not finite, or less symmetric than
            :math:`\sqrt{\epsilon}` of its dtype.

    Example:
        >>> symmetric_eigen(np.diag([3.0, 1.0])).values
        array([1., 3.])
    """
    matrix = checks.finite(name, np.asarray(matrix))
    limit = float(np.sqrt(np.finfo(matrix.dtype).eps))
    if (got := asymmetry(matrix)) > limit:
        raise checks.UserError(
            f"`{name}` must be symmetric (max|A - A^T| / max|A| <= {limit:.0e}), got {got:.1e}: "
            "symmetrise it yourself only if you know why it is not"
        )
    wide = np.asarray(matrix, np.float64)
    return SymmetricEigen(*np.linalg.eigh((wide + wide.T) / 2))


def apply_function(
    eigen: SymmetricEigen, function: Callable, vector: Float[Array, " n"]
) -> Float[np.ndarray, " n"]:
    r""":math:`\varphi(A)\, x = U \varphi(\Lambda) U^\top x`.

    Args:
        eigen: the decomposition of :math:`A`.
        function: :math:`\varphi`, from an array of eigenvalues to an array.
        vector: :math:`x`.

    Returns:
        The product, in float64.

    Example:
        >>> eigen = symmetric_eigen(np.diag([1.0, 4.0]))
        >>> apply_function(eigen, np.sqrt, np.array([1.0, 1.0]))
        array([1., 2.])
    """
    return eigen.vectors @ (function(eigen.values) * (eigen.vectors.T @ np.asarray(vector)))
