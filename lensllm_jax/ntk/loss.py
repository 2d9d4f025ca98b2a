r"""The NTK loss F: what remains of the training residual after t steps under a frozen kernel.

Gradient flow on :math:`\tfrac12 \sum_i \|f(x_i) - y_i\|^2` with a frozen kernel leaves
(equation 9 of LensLLM, arXiv 2505.03793; Lee et al. 2019, arXiv 1902.06720, equation 8)

.. math:: F(\Theta, t) = \| e^{-\eta \Theta t} (f_0(X) - y) \|_2^2
          = \sum_j e^{-2 \eta \lambda_j t}\, (u_j^\top (f_0(X) - y))^2 ,

with the *matrix* exponential, :math:`\Theta = U \Lambda U^\top`.  For the mean over n examples
divide ``learning_rate`` by n.  Cross-entropy and AdamW do not satisfy it.

Flattening: a residual (n, k) becomes (n*k,) in C order, example by example, and a kernel
(n, n, k, k) becomes (n*k, n*k) with row (i, a) and column (j, b).

Example:
    >>> import numpy as np
    >>> from lensllm_jax.ntk.loss import ntk_loss
    >>> theta = np.diag([1.0, 0.0])  # the second direction is never learnt
    >>> ntk_loss(theta, np.array([2.0, 1.0]), learning_rate=0.1, steps=np.array([0.0, 1e6]))
    array([5., 1.])
"""

import dataclasses

import numpy as np
from jaxtyping import Float

from lensllm_jax import checks, linalg
from lensllm_jax.linalg import NtkSpectrum, Steps
from lensllm_jax.typing import Array

Kernel = Float[Array, "n n"] | Float[Array, "n n k k"]
Residual = Float[Array, " n"] | Float[Array, "n k"]


@dataclasses.dataclass(frozen=True)
class KernelReport:
    """Whether a computed kernel is what a kernel must be: symmetric and not indefinite."""

    num_rows: int  # n * k
    trace: float  # Σ_j λ_j
    smallest_eigenvalue: float
    largest_eigenvalue: float
    asymmetry: float  # max|Θ - Θ^T| / max|Θ|
    psd_tolerance: float  # how far below zero the rounding of Θ's dtype can push an eigenvalue
    is_psd: bool  # smallest_eigenvalue >= -psd_tolerance


def ntk_loss(
    theta: Kernel, residual: Residual, *, learning_rate: float, steps: Steps
) -> Float[np.ndarray, "..."]:
    r"""F of equation 9, in float64 and in the shape of ``steps``; the square of r's unit.

    Args:
        theta: kernel of the training examples.
        residual: :math:`r = f_0(X) - y`.
        learning_rate: :math:`\eta`, for a loss summed over examples.
        steps: :math:`t` in optimizer steps, one number or an array of them.

    Raises:
        UserError: if the kernel is not finite, symmetric and positive semi-definite, the
            shapes do not fit, or ``learning_rate`` or ``steps`` make no sense.

    Example:
        >>> float(ntk_loss(np.eye(2), np.ones(2), learning_rate=0.5, steps=1.0))  # 2 e^{-1}
        0.7357...
    """
    return ntk_spectrum(theta, residual, learning_rate=learning_rate).loss(steps)


def ntk_spectrum(theta: Kernel, residual: Residual, *, learning_rate: float = 1.0) -> NtkSpectrum:
    r"""The kernel's eigenvalues and :math:`(u_j^\top r)^2`: F at any time.

    Args:
        theta: kernel of the training examples.
        residual: :math:`r = f_0(X) - y`.
        learning_rate: :math:`\eta`; at 1 the spectrum's time is :math:`\eta t`.

    Raises:
        UserError: as ``ntk_loss``.

    Example:
        >>> ntk_spectrum(np.diag([4.0, 1.0]), np.array([3.0, 2.0])).squared_projections
        array([4., 9.])
    """
    eigen = _eigen_of_kernel(theta)
    r = _flat_residual("residual", residual, theta)
    return NtkSpectrum(eigen.values, (eigen.vectors.T @ r) ** 2, learning_rate)


def ntk_train_residual(
    theta: Kernel, residual: Residual, *, learning_rate: float, steps: Steps
) -> Float[np.ndarray, "..."]:
    r"""The training residual :math:`r_t = e^{-\eta \Theta t} r_0`; arguments as :func:`ntk_loss`.

    Returns:
        In float64; the shape of ``steps`` followed by that of ``residual``.  Added to y it is the
        linearised model's prediction.

    Raises:
        UserError: as ``ntk_loss``.

    Example:
        >>> ntk_train_residual(np.diag([2.0, 0.0]), np.ones(2), learning_rate=0.5, steps=[0, 1])
        array([[1.        , 1.        ],
               [0.3678..., 1.        ]])
    """
    eigen = _eigen_of_kernel(theta)
    r = _flat_residual("residual", residual, theta)
    time = _time(learning_rate, steps)
    decay = linalg.decays(time, eigen.values)
    return ((decay * (eigen.vectors.T @ r)) @ eigen.vectors.T).reshape(
        time.shape + np.shape(residual)
    )


def ntk_test_residual(
    theta_test_train: Float[Array, "m n"] | Float[Array, "m n k k"],
    theta: Kernel,
    test_residual: Float[Array, " m"] | Float[Array, "m k"],
    residual: Residual,
    *,
    learning_rate: float,
    steps: Steps,
) -> Float[np.ndarray, "..."]:
    r"""The residual on other examples at time t (Lee et al. 2019, equations 10 and 11).

    .. math:: r_t(x) = r_0(x) - \Theta(x, X)\, \Theta^{-1} (I - e^{-\eta \Theta t})\, r_0(X)

    A null direction of the training kernel is one of :math:`\Theta(x, X)` as well, so a singular
    kernel is no obstacle: nothing moves along it.

    Args:
        theta_test_train: kernel of the m test rows with the n training columns.
        theta: kernel of the training examples.
        test_residual: :math:`f_0(x) - y(x)` at the test examples.
        residual: :math:`f_0(X) - y` at the training examples.
        learning_rate: :math:`\eta`, for a loss summed over examples.
        steps: :math:`t`, one number or an array of them.

    Returns:
        In float64; the shape of ``steps`` followed by that of ``test_residual``.

    Raises:
        UserError: as ``ntk_loss``, and if the two kernels do not fit.
    """
    eigen = _eigen_of_kernel(theta)
    r = _flat_residual("residual", residual, theta)
    cross = flat_kernel(
        checks.finite("theta_test_train", checks.real("theta_test_train", theta_test_train))
    )
    r_test = checks.finite("test_residual", checks.real("test_residual", test_residual))
    checks.shape("theta_test_train (flattened)", cross, (r_test.size, r.size))
    time = _time(learning_rate, steps)
    positive = np.where(eigen.values > 0, eigen.values, 1.0)
    with np.errstate(over="ignore"):
        decayed = np.expm1(-np.multiply.outer(time, positive))
    learnt = np.where(eigen.values > 0, -decayed / positive, 0.0)
    moved = (learnt * (eigen.vectors.T @ r)) @ (cross @ eigen.vectors).T
    return r_test - moved.reshape(time.shape + r_test.shape)


def kernel_report(theta: Kernel) -> KernelReport:
    """Symmetry, definiteness and extreme eigenvalues of a kernel.

    Raises:
        UserError: if the kernel is not finite, not square, or grossly asymmetric.
    """
    return _report(theta, _symmetric_eigen(theta))


def flat_kernel(theta: Array) -> np.ndarray:
    """The kernel as a matrix: (n, m) unchanged, (n, m, k, k) as (n*k, m*k).

    Raises:
        UserError: if ``theta`` is empty or has neither two nor four axes.
    """
    theta = checks.real("theta", theta)
    if theta.ndim == 2 and theta.size:
        return theta
    if theta.ndim != 4 or not theta.size:
        raise checks.UserError(f"`theta` must have shape (n, m) or (n, m, k, k), got {theta.shape}")
    n, m, k, other_k = theta.shape
    return theta.transpose(0, 2, 1, 3).reshape(n * k, m * other_k)


def _symmetric_eigen(theta: Array) -> linalg.SymmetricEigen:
    matrix = flat_kernel(theta)
    checks.shape("theta (flattened)", matrix, (matrix.shape[0], matrix.shape[0]))
    return linalg.symmetric_eigen(matrix, name="theta")


def _report(theta: Array, eigen: linalg.SymmetricEigen) -> KernelReport:
    matrix = flat_kernel(theta)
    largest = float(np.max(np.abs(eigen.values)))
    # Weyl: an error matrix moves no eigenvalue by more than its norm, and rounding each entry
    # of Θ moves it by about n eps |Θ|; ten times that for the products that made the entries.
    tolerance = 10 * len(matrix) * float(np.finfo(matrix.dtype).eps) * largest
    return KernelReport(
        num_rows=len(matrix),
        trace=float(np.sum(eigen.values)),
        smallest_eigenvalue=float(eigen.values[0]),
        largest_eigenvalue=float(eigen.values[-1]),
        asymmetry=linalg.asymmetry(matrix),
        psd_tolerance=tolerance,
        is_psd=bool(eigen.values[0] >= -tolerance),
    )


def _eigen_of_kernel(theta: Array) -> linalg.SymmetricEigen:
    """The decomposition of a kernel that is positive semi-definite up to its rounding."""
    eigen = _symmetric_eigen(theta)
    report = _report(theta, eigen)
    if not report.is_psd:
        raise checks.UserError(
            "`theta` must be positive semi-definite (smallest eigenvalue >= "
            f"{-report.psd_tolerance:.1e}), got {report.smallest_eigenvalue:.1e}: a kernel of one "
            "function on one set of examples always is"
        )
    # Rounding leaves null directions on either side of zero: e^{-ηλt} would grow on one and learn
    # in the end, on the other, what no step learns.
    matrix = flat_kernel(theta)
    noise = len(matrix) * float(np.finfo(matrix.dtype).eps) * report.largest_eigenvalue
    return eigen._replace(values=np.where(eigen.values > noise, eigen.values, 0.0))


def _flat_residual(name: str, residual: Array, theta: Array) -> np.ndarray:
    values = checks.finite(name, checks.real(name, residual)).astype(np.float64)
    shape = np.shape(theta)
    outputs = shape[3] if len(shape) == 4 else 1
    if values.ndim > 1:  # the outputs of each example beside each other
        checks.shape(name, values, (shape[1], outputs))
    return checks.shape(f"{name} (flattened)", values.reshape(-1), (shape[1] * outputs,))


def _time(learning_rate: float, steps: Steps) -> np.ndarray:
    """η t."""
    checks.positive("learning_rate", learning_rate)
    with np.errstate(over="ignore"):  # forever is a time
        return np.asarray(learning_rate * linalg.checked_steps(steps))
