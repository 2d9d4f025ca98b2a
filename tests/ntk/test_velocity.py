"""Change of the kernel against dense formulas and what it must not see."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.ntk.velocity import kernel_alignment, kernel_velocity, relative_change
from tests import oracles
from tests.ntk import cases
from tests.tolerances import assert_close


def random_kernel(seed, n=6, k=1):
    jacobian = np.random.default_rng(seed).normal(size=(n, k, 9))
    return np.einsum("iap,jbp->ijab", jacobian, jacobian)


A, B = random_kernel(0)[:, :, 0, 0], random_kernel(1)[:, :, 0, 0]


def test_change_and_alignment_are_those_of_the_kernels_as_vectors():
    a, b = A.ravel(), B.ravel()
    assert_close(relative_change(A, B), np.sqrt(np.sum((a - b) ** 2) / np.sum(b**2)))
    assert_close(kernel_alignment(A, B), a @ b / np.sqrt((a @ a) * (b @ b)))


def test_centred_alignment_is_that_of_the_doubly_centred_kernels():
    h = np.eye(6) - 1 / 6
    expected = kernel_alignment(h @ A @ h, h @ B @ h)
    assert_close(kernel_alignment(A, B, centred=True), expected)
    shifted = A + 5.0  # a constant feature more
    assert_close(kernel_alignment(shifted, B, centred=True), expected)
    assert abs(kernel_alignment(shifted, B) - kernel_alignment(A, B)) > 0.05  # uncentred it counts


def test_centring_many_outputs_is_that_of_their_jacobians():
    jacobians = np.random.default_rng(2).normal(size=(2, 4, 3, 9))
    centred = jacobians - jacobians.mean(axis=1, keepdims=True)  # over examples
    plain, expected = (
        [np.einsum("iap,jbp->ijab", j, j) for j in both] for both in (jacobians, centred)
    )
    assert_close(kernel_alignment(*plain, centred=True), kernel_alignment(*expected))


def test_scale_moves_the_kernel_but_not_its_direction():
    assert_close(relative_change(2 * A, A), 1.0)
    assert_close(kernel_alignment(2 * A, A), 1.0)
    assert kernel_alignment(A, B) == kernel_alignment(B, A) < 0.99


def test_velocity_of_a_model_is_that_of_its_dense_kernels(x64):
    case = cases.make("mlp, 3 outputs")
    states = [jax.tree.map(lambda w, s=s: w * (1 + s), case.params) for s in (0.0, 0.1, 0.5)]
    thetas = [oracles.dense_kernel(case.f, params, case.x) for params in states]
    got = kernel_velocity(case.f, iter(states), case.x, steps=[0, 5, 20], block_size=2)
    for i, theta in enumerate(thetas):
        assert_close(1 + got.relative_change[i], 1 + relative_change(theta, thetas[0]))
        assert_close(got.alignment[i], kernel_alignment(theta, thetas[0]))
        assert_close(got.centred_alignment[i], kernel_alignment(theta, thetas[0], centred=True))
    assert got.relative_change[0] == 0
    assert got.relative_change[2] > 0.1
    distances = [1 - kernel_alignment(*thetas[i : i + 2]) for i in (0, 1)]
    assert_close(got.velocity, np.array(distances) / [5, 15], rel=1e-8)  # 1 - A cancels digits


def test_a_linear_models_kernel_stands_still():
    states = [jnp.zeros(3), jnp.ones(3)]
    x = jax.random.normal(jax.random.key(0), (4, 3))
    got = kernel_velocity(lambda w, x: x @ w, states, x, steps=[0, 1])
    assert got.relative_change.tolist() == [0.0, 0.0]
    assert got.velocity[0] < 1e-12


def test_bad_input_is_refused_with_the_remedy():
    f, states, x = lambda w, x: x @ w, [jnp.zeros(3), jnp.ones(3)], jnp.eye(4, 3)
    for message, call in {
        "`theta` must have shape": lambda: relative_change(A, B[:3, :3]),
        "`theta_0` must not be zero": lambda: relative_change(A, 0 * A),
        "`theta` must not be zero": lambda: kernel_alignment(np.ones((6, 6)), A, centred=True),
        "`theta` must be finite": lambda: kernel_alignment(A * np.nan, A),
        "ascending": lambda: kernel_velocity(f, states, x, steps=[1, 1]),
        "two or more": lambda: kernel_velocity(f, states[:1], x, steps=[1]),
        "one state for each": lambda: kernel_velocity(f, states, x, steps=[0, 1, 2]),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
