r"""Symmetric eigenproblems, Lanczos' iteration, the spectrum behind F, and straight lines.

A symmetric matrix is :math:`A = U \Lambda U^\top`; a function of it is
:math:`\varphi(A) = U \varphi(\Lambda) U^\top` (Higham 2008, *Functions of Matrices*, sec. 1.2),
which is not the function applied to the entries.  Decompositions run in float64 on the host
whatever JAX's mode: :math:`e^{-\eta \Lambda t}` turns an eigenvalue that rounding made negative
into growth.

Lanczos' iteration from a vector r turns m products with A into a tridiagonal T whose eigenvalues
and first eigenvector entries, squared, are the nodes and weights of Gauss quadrature for the
measure that r puts on the spectrum of A (Golub and Meurant 2010, *Matrices, Moments and Quadrature
with Applications*, ch. 6):

.. math:: r^\top \varphi(A)\, r \approx |r|^2 \sum_j w_j\, \varphi(\lambda_j) .

Example:
    >>> import numpy as np
    >>> from lensllm_jax import linalg
    >>> eigen = linalg.symmetric_eigen(np.array([[2.0, 1.0], [1.0, 2.0]]))
    >>> eigen.values
    array([1., 3.])
    >>> linalg.apply_function(eigen, np.exp, np.array([1.0, 1.0]))  # e^A (1, 1) = e^3 (1, 1)
    array([20.085..., 20.085...])
    >>> spectrum = linalg.NtkSpectrum(np.array([2.0]), np.array([5.0]), learning_rate=0.25)
    >>> spectrum.loss(np.array([0.0, 1.0])).round(6), spectrum.steps(1.839397205857)
    (array([5.      , 1.839397]), 1.0)
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from matfree import decomp

from lensllm_jax import checks
from lensllm_jax.typing import Array

Steps = float | int | Sequence[float] | Sequence[int] | Array


class SymmetricEigen(NamedTuple):
    """The eigendecomposition of a symmetric matrix, eigenvalues ascending."""

    values: Float[np.ndarray, " n"]  # Λ
    vectors: Float[np.ndarray, "n n"]  # U, eigenvectors in columns


def asymmetry(matrix: Float[Array, "n n"]) -> float:
    r"""Distance from symmetry, :math:`\max|A - A^\top| / \max|A|`: 0 (or all zeros) to 2."""
    matrix = np.asarray(matrix)
    largest = float(np.max(np.abs(matrix)))
    return float(np.max(np.abs(matrix - matrix.T))) / largest if largest else 0.0


def symmetric_eigen(matrix: Float[Array, "n n"], *, name: str = "matrix") -> SymmetricEigen:
    r"""Eigenvalues and eigenvectors of :math:`(A + A^\top) / 2`, in float64.

    Args:
        matrix: symmetric up to the rounding of its dtype.
        name: what messages call it.

    Raises:
        UserError: if the matrix is not finite, or less symmetric than
            :math:`\sqrt{\epsilon}` of its dtype.
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
    r""":math:`\varphi(A)\, x` in float64, ``function`` mapping an array of eigenvalues."""
    return eigen.vectors @ (function(eigen.values) * (eigen.vectors.T @ np.asarray(vector)))


class Lanczos(NamedTuple):
    r"""What m products with A from a start vector leave: :math:`H = Q^\top A Q` and a remainder.

    H is tridiagonal up to rounding.  Matfree's own tridiagonalisation averages it with its
    transpose, which spreads the noise that follows an exhausted Krylov space back into what was
    exact; and what of H is not tridiagonal measures the rounding of the products.
    """

    hessenberg: Float[Array, "m m"]
    remainder: Float[Array, ""]  # length of what the m-th product leaves outside Q


def lanczos(product: Callable[[Array], Array], start: Array, depth: int) -> Lanczos:
    """Lanczos' iteration of depth m with full reorthogonalisation; traceable.

    ``product`` is v -> A v, A symmetric; only the direction of ``start``, of any shape, counts.
    """
    iteration = decomp.hessenberg(depth, reortho="full", custom_vjp=False)
    with jax.default_matmul_precision("highest"):
        result = iteration(product, start)
    return Lanczos(result.J_small, jnp.linalg.norm(result.residual))


def krylov_depth(
    diagonal: Float[np.ndarray, " m"], below: Float[np.ndarray, " b"], *, eps: float
) -> int:
    """Products until the Krylov space is exhausted, m if it is not.

    Once a product adds nothing to the space, T is exact and what follows is noise.  ``below`` is
    H's subdiagonal, or that and the remainder; ``eps`` the relative rounding of the products.
    """
    noise = 10 * eps * np.maximum.accumulate(np.abs(diagonal))[: len(below)]
    ends = np.flatnonzero(~(below > noise))
    return int(ends[0]) + 1 if len(ends) else len(diagonal)


def tridiagonal(
    diagonal: Float[np.ndarray, " m"], below: Float[np.ndarray, " b"]
) -> Float[np.ndarray, "m m"]:
    """The symmetric tridiagonal matrix T of a diagonal and a subdiagonal of m - 1 entries."""
    return np.diag(diagonal) + np.diag(below, -1) + np.diag(below, 1)


class Quadrature(NamedTuple):
    """A rule for the measure that a unit vector puts on a spectrum; the weights sum to 1."""

    nodes: Float[np.ndarray, " m"]  # ascending
    weights: Float[np.ndarray, " m"]


def gauss_quadrature(matrix: Float[np.ndarray, "m m"]) -> Quadrature:
    """The rule that belongs to a symmetric tridiagonal matrix."""
    values, vectors = np.linalg.eigh(matrix)
    weights = vectors[0] ** 2
    return Quadrature(values, weights / weights.sum())  # rounding left their sum 10 eps from 1


def gauss_radau_quadrature(
    matrix: Float[np.ndarray, "m m"], remainder: float, node: float
) -> Quadrature:
    """The rule of m + 1 nodes of which one is given, below every eigenvalue (Golub 1973).

    Where derivatives of even order of the integrand are positive and those of odd order negative,
    as for a decaying exponential, Gauss' rule lies below the integral and this one above.

    Args:
        matrix: symmetric tridiagonal, of Lanczos' iteration.
        remainder: what its last product left outside the Krylov space.
        node: the given one; no eigenvalue of ``matrix``, or ``matrix`` is zero.
    """
    m = len(matrix)
    last = np.zeros(m)
    last[-1] = remainder**2
    # the last diagonal entry that makes the node an eigenvalue
    corner = node + np.linalg.solve(matrix - node * np.eye(m), last)[-1] if matrix.any() else 0.0
    extended = np.pad(matrix, (0, 1))
    extended[m, m] = corner
    extended[m, m - 1] = extended[m - 1, m] = remainder
    return gauss_quadrature(extended)


@dataclasses.dataclass(frozen=True)
class NtkSpectrum:
    r"""A kernel and a residual in the kernel's own basis: F at any t costs one sum (Eq 9).

    .. math:: F(t) = \sum_j c_j\, e^{-2 \eta \lambda_j t}
    """

    eigenvalues: Float[np.ndarray, " n"]  # λ_j of the kernel, not negative
    squared_projections: Float[np.ndarray, " n"]  # c_j = (u_j . (f_0 - y))^2; their sum is F(0)
    learning_rate: float = 1.0  # η, per optimizer step

    def __post_init__(self):
        checks.shape("squared_projections", self.squared_projections, self.eigenvalues.shape)
        checks.finite("eigenvalues", self.eigenvalues)
        checks.finite("squared_projections", self.squared_projections)
        checks.positive("learning_rate", self.learning_rate)
        if self.eigenvalues.min() < 0 or self.squared_projections.min() < 0:
            raise checks.UserError(
                "`eigenvalues` and `squared_projections` must not be negative, got a minimum of "
                f"{min(self.eigenvalues.min(), self.squared_projections.min())}; clip rounding "
                "errors at 0"
            )

    def loss(self, steps: Steps) -> Float[np.ndarray, "..."]:
        """F in float64, in the shape of ``steps`` (optimizer steps); decreasing in them.

        Raises:
            UserError: if a step is negative or not finite.
        """
        rates = 2.0 * self.learning_rate * np.asarray(self.eigenvalues, np.float64)
        decay = decays(checked_steps(steps), rates)
        return np.asarray(decay @ np.asarray(self.squared_projections, np.float64))

    def steps(self, loss: float, *, max_steps: float = 1e12) -> float:
        """The time at which F equals ``loss``, by bisection; ``max_steps`` if it never does."""
        low, high = 0.0, max_steps
        for _ in range(200):  # halving 1e12 two hundred times passes float64's resolution
            middle = 0.5 * (low + high)
            low, high = (middle, high) if self.loss(middle) > loss else (low, middle)
        return 0.5 * (low + high)


def decays(time: Float[Array, "..."], rates: Float[Array, " n"]) -> Float[np.ndarray, "... n"]:
    """The factors e^{-rate time}; a rate of zero never decays, however long the time."""
    with np.errstate(over="ignore", invalid="ignore"):
        exponents = np.multiply.outer(time, rates)
    return np.exp(-np.where(np.asarray(rates) > 0, exponents, 0.0))


def checked_steps(steps: Steps) -> Float[np.ndarray, "..."]:
    """``steps`` as a float64 array, if every one is finite and not negative."""
    t = np.asarray(checks.finite("steps", checks.real("steps", steps)), np.float64)
    if np.any(t < 0):
        raise checks.UserError(f"`steps` must be zero or positive, got {t.min()}")
    return t


class Line(NamedTuple):
    """A straight line; ``slope * x + intercept``."""

    slope: float
    intercept: float


def fit_line(x: Float[np.ndarray, " m"], y: Float[np.ndarray, " m"]) -> Line:
    """The line through two or more points by least squares."""
    return Line(*np.polyfit(x, y, 1))


def extrapolate_power(points: Sequence[tuple[int | float, float]], x: int | float) -> float:
    """The value at x of the power law that least squares fits to points (x, y) in logarithms."""
    slope, intercept = fit_line(*np.log(np.array(points)).T)
    return float(np.exp(intercept + slope * np.log(x)))
