"""Dense, slow, independent computations that the fast code is compared with.

Nothing here imports from ``lensllm_jax``: an oracle that shares code with what it checks
proves nothing.
"""

import numpy as np
import scipy.linalg


def dense_jacobian(f, params, x):
    """Jacobian of ``f(params, x)`` (n,) or (n, k) as an array (n, k, p), by ``jax.jacrev``."""
    import jax

    leaves = jax.tree.leaves(jax.jit(jax.jacrev(f))(params, x))
    n, k = (*jax.eval_shape(f, params, x).shape, 1)[:2]
    return np.concatenate(
        [np.asarray(leaf, np.float64).reshape(n, k, -1) for leaf in leaves], axis=2
    )


def dense_kernel(f, params, x1, x2=None):
    """Theta (n, m, k, k) as the product of two dense Jacobians."""
    j1 = dense_jacobian(f, params, x1)
    j2 = j1 if x2 is None else dense_jacobian(f, params, x2)
    return np.einsum("iap,jbp->ijab", j1, j2)


def finite_difference_jacobian(f, params, x):
    """Jacobian (n, k, p) by central differences: no automatic differentiation at all.

    The error of a central difference is h^2 |f'''| / 6 + eps |f| / h, least at
    h = (3 eps)^(1/3) for quantities of order one: about 1e-10 in float64.
    """
    import jax

    flat, unravel = jax.flatten_util.ravel_pytree(params)
    flat = np.asarray(flat)
    assert flat.dtype == np.float64
    h = float(3 * np.finfo(np.float64).eps) ** (1 / 3)
    call = jax.jit(lambda w: f(unravel(w), x))
    columns = []
    for i in range(flat.size):
        step = np.zeros_like(flat)
        step[i] = h
        plus, minus = (np.asarray(call(flat + s)) for s in (step, -step))
        columns.append((plus - minus) / (2 * h))
    out = np.stack(columns, axis=-1)
    return out.reshape(out.shape[0], -1, flat.size)


def ntk_loss_by_matrix_exponential(theta, residual, learning_rate, steps):
    """F of equation 9 for flat ``theta`` (n, n), by scaling and squaring (scipy's expm)."""
    return float(np.sum((scipy.linalg.expm(-learning_rate * steps * theta) @ residual) ** 2))


def gradient_flow_residual(theta, residual, learning_rate, steps):
    """The residual after gradient flow dr/dt = -eta Theta r, by a stiff integrator."""
    import scipy.integrate

    solution = scipy.integrate.solve_ivp(
        lambda _, r: -learning_rate * theta @ r,
        (0.0, steps),
        residual,
        method="Radau",
        rtol=1e-10,
        atol=1e-12,
    )
    return solution.y[:, -1]


def summed_cross_entropy(logits, labels, *, shift):
    """Cross entropy summed over target tokens, one token at a time in float64; and how many."""
    logits, nats, count = np.asarray(logits, np.float64), 0.0, 0
    for position in range(len(labels)):
        row = position - 1 if shift else position
        if labels[position] >= 0 and row >= 0:
            probabilities = np.exp(logits[row]) / np.sum(np.exp(logits[row]))
            nats, count = nats - np.log(probabilities[labels[position]]), count + 1
    return nats, count


def rectified_fit_by_surrogate(sizes, losses):
    """The rectified fit of Lin et al. 2024 (arXiv 2402.02314), with scipy's BFGS.

    log L = log((A - |E|) / (1 + exp(beta log D + b)) + |E|), D = 0 taken as 1e-10.  Two stages:
    first all four parameters together with one free z_i^2 per size in place of
    exp(beta log D_i + b), penalised for differing from it; then A and E alone.  Their three
    repeats have the same start and so agree; all three are run, as their cost is part of theirs.

    Returns:
        ((A, b, beta, E), mean squared log residual).
    """
    import scipy.optimize

    log_size = np.log(np.where(sizes == 0, 1e-10, sizes))
    log_loss = np.log(losses)

    def curve(a, b, beta, e):
        return np.log((a - abs(e)) / (1.0 + np.exp(beta * log_size + b)) + abs(e))

    def first_stage(values):
        (a, b, beta, e), z = values[:4], values[4:] ** 2
        loss_part = np.log(a + abs(e) * z) - np.log1p(z) - log_loss
        size_part = np.log(z) - beta * log_size - b
        return np.mean(loss_part**2) + np.mean(size_part**2)

    high, low = log_loss.max(), log_loss.min()
    start = np.array([np.exp(high), 0.0, 1.0, np.exp(0.5 * (high + low))])
    best, best_value = None, np.inf
    with np.errstate(all="ignore"):
        for _ in range(3):
            first = scipy.optimize.minimize(
                first_stage, np.concatenate([start, np.ones_like(log_size)])
            ).x
            b, beta = first[1], first[2]
            second = scipy.optimize.minimize(
                lambda ends, b=b, beta=beta: np.mean(
                    (curve(ends[0], b, beta, ends[1]) - log_loss) ** 2
                ),
                first[[0, 3]],
            )
            if second.fun < best_value and second.x[0] > second.x[1]:
                best, best_value = (second.x[0], b, beta, second.x[1]), float(second.fun)
    return best, best_value


def rectified_objective(sizes, losses, a, b, beta, e):
    """Mean squared log residual of that parametrisation with D = 0 taken exactly."""
    with np.errstate(divide="ignore"):
        growth = np.where(sizes == 0, 0.0, np.exp(beta * np.log(np.maximum(sizes, 1e-300)) + b))
    return float(np.mean((np.log((a - abs(e)) / (1.0 + growth) + abs(e)) - np.log(losses)) ** 2))


def maximum_log_evidence(features, labels):
    """LogME from the dense Gaussian y ~ N(0, I / beta + F F^T / alpha), maximised by simplex."""
    import scipy.optimize
    import scipy.stats

    n = len(features)
    gram = features @ features.T

    def best(y):
        def minus(logs):
            covariance = np.eye(n) * np.exp(-logs[1]) + gram * np.exp(-logs[0])
            return -scipy.stats.multivariate_normal(cov=covariance).logpdf(y)

        options = {"xatol": 1e-8, "fatol": 1e-10, "maxiter": 5000}
        starts = ([0.0, 0.0], [4.0, 2.0])
        minima = [
            scipy.optimize.minimize(minus, s, method="Nelder-Mead", options=options) for s in starts
        ]
        return -min(f.fun for f in minima) / n

    return float(np.mean([best((labels == c).astype(float)) for c in np.unique(labels)]))


def gaussian_kl(mean, covariance, other_mean, other_covariance):
    """KL(N(mean, covariance) || N(other_mean, other_covariance)), the general formula."""
    inverse = np.linalg.inv(other_covariance)
    difference = other_mean - mean
    log_determinants = np.linalg.slogdet(other_covariance)[1] - np.linalg.slogdet(covariance)[1]
    quadratic = difference @ inverse @ difference
    return 0.5 * (np.trace(inverse @ covariance) - len(mean) + quadratic + log_determinants)


def block_hessians(loss, weights, examples):
    """Dense Hessians of ``loss(weights, example)`` in one weight tensor, (n, d, d)."""
    import jax

    size = np.size(weights)
    each = jax.jit(jax.vmap(jax.hessian(loss), in_axes=(None, 0)))(weights, examples)
    return np.asarray(each).reshape(-1, size, size)


def positive_part_form(hessian, v):
    """v^T H^+ v by eigendecomposition, negative eigenvalues set to zero."""
    values, vectors = np.linalg.eigh(0.5 * (hessian + hessian.T))
    return float(np.maximum(values, 0.0) @ (vectors.T @ v) ** 2)
