"""Products with the kernel and the loss from them, against the dense kernel."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lensllm_jax.checks import UserError
from lensllm_jax.ntk import operator
from lensllm_jax.ntk.loss import flat_kernel, ntk_loss
from lensllm_jax.ntk.operator import ntk_loss_matrix_free, ntk_matvec
from tests import oracles
from tests.ntk import cases
from tests.tolerances import assert_close, relative_difference

STEPS = np.array([0.0, 1.0, 10.0, 1e3])


def linear(params, x):
    """Its kernel is x x^T, whatever the parameters."""
    return x @ params


def dense_kernel(case):
    theta = oracles.dense_kernel(case.f, case.params, case.x)
    return theta if theta.shape[2] > 1 else theta[:, :, 0, 0]


def drawn_residual(case, seed=0):
    shape = jax.eval_shape(case.f, case.params, case.x).shape
    return np.random.default_rng(seed).normal(size=shape)


@pytest.mark.parametrize(
    ("name", "block_size"),
    [("mlp", 2), ("mlp, 3 outputs", 9), ("tied transformer", 2), ("convolutions", 3)],
)
def test_product_equals_dense_kernel_times_vector(x64, name, block_size):
    case = cases.make(name)
    v = drawn_residual(case)
    got = ntk_matvec(case.f, case.params, case.x, v, block_size=block_size)
    assert got.shape == v.shape
    assert_close(got.ravel(), flat_kernel(dense_kernel(case)) @ v.ravel())


def test_product_of_a_function_with_a_reverse_rule_alone(x64):
    @jax.custom_vjp
    def g(z):
        return jnp.tanh(z)

    g.defvjp(lambda z: (jnp.tanh(z), z), lambda z, d: (0.5 * d * jnp.cos(z),))
    w, x = np.random.default_rng(0).normal(size=(2, 4, 4))

    def f(w, x):
        return g(x @ w) @ jnp.arange(4.0)

    v = np.arange(4.0)
    exact = oracles.dense_kernel(f, w, x)[:, :, 0, 0]
    assert_close(ntk_matvec(f, w, x, v, block_size=3), exact @ v)
    plain = oracles.dense_kernel(lambda w, x: jnp.tanh(x @ w) @ jnp.arange(4.0), w, x)[:, :, 0, 0]
    assert relative_difference(plain @ v, exact @ v) > 0.1


def test_product_over_examples_with_random_keys(x64):
    def f(w, x):
        return jax.vmap(lambda key, row: row @ w * jax.random.normal(key))(x["key"], x["x"])

    keys, x, w = jax.random.split(jax.random.key(0), 5), np.eye(5, 4), np.ones(4)
    x = {"key": keys, "x": x + 1}
    scales = np.asarray(jax.vmap(jax.random.normal)(keys))
    jacobian = scales[:, None] * x["x"]
    assert_close(ntk_matvec(f, w, x, scales, block_size=2), jacobian @ (jacobian.T @ scales))


def test_product_in_the_suites_own_precision():
    case = cases.make("mlp")
    v = drawn_residual(case)
    got = ntk_matvec(case.f, case.params, case.x, v, block_size=2)
    assert got.dtype == jnp.result_type(float)
    assert_close(got, dense_kernel(case) @ v.astype(got.dtype))


def test_rectangular_product_with_several_vectors(x64):
    case = cases.make("mlp, 3 outputs")
    x2 = cases.first(case.x, slice(1, 5))
    vectors = np.random.default_rng(0).normal(size=(6, 4, 3))
    x1 = cases.first(case.x, slice(0, 3))
    got = ntk_matvec(case.f, case.params, x1, vectors, x2=x2, block_size=3)
    expected = np.einsum("ijab,cjb->cia", dense_kernel(case)[:3, 1:5], vectors)
    assert_close(got, expected)


def test_last_block_is_filled_up_without_counting_twice(x64, monkeypatch):
    case = cases.make("mlp")
    v = drawn_residual(case)
    expected = dense_kernel(case) @ v
    assert_close(ntk_matvec(case.f, case.params, case.x, v, block_size=3), expected)
    # negative control: weights of one in place of zero count the repeated example again
    cut = operator._Blocks.cut

    def careless(blocks, vectors):
        return np.where(cut(blocks, np.ones_like(vectors)) == 0, 1.0, cut(blocks, vectors))

    monkeypatch.setattr(operator._Blocks, "cut", careless)
    wrong = ntk_matvec(case.f, case.params, case.x, v, block_size=3)
    assert relative_difference(wrong, expected) > 1e-2


def test_products_are_linear_symmetric_and_never_negative_whatever_the_blocks(x64):
    case = cases.make("mlp")

    # two block sizes, so that two programs serve all examples that hypothesis draws
    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**30), st.sampled_from([2, 5]), st.floats(-10, 10))
    def check(seed, block_size, scale):
        u, v, w = np.random.default_rng(seed).normal(size=(3, 5))
        vectors = np.stack([u, v, w, u + scale * v])
        products = ntk_matvec(case.f, case.params, case.x, vectors, block_size=block_size)
        assert_close(products[3], products[0] + scale * products[1])
        by_pairs = vectors[:3] @ products[:3].T
        assert_close(by_pairs, by_pairs.T)
        assert np.all(np.diag(by_pairs) >= 0)

    check()


@pytest.mark.parametrize("name", ["mlp", "mlp, 3 outputs"])
def test_loss_equals_the_dense_one_at_every_time(x64, name):
    case = cases.make(name)
    residual = drawn_residual(case)
    settings_ = {"learning_rate": 0.01, "steps": STEPS}
    expected = ntk_loss(dense_kernel(case), residual, **settings_)
    got = ntk_loss_matrix_free(case.f, case.params, case.x, residual, block_size=2, **settings_)
    np.testing.assert_allclose(got.loss, expected, rtol=1e-6, atol=1e-12)
    assert np.all(np.abs(got.loss - expected) <= got.error)
    assert got.num_matvecs <= residual.size


def test_float32_loss_is_within_its_own_error_bound():
    case = cases.make("tied transformer")
    residual = drawn_residual(case)
    times = np.geomspace(1e-3, 1e3, 13)
    got = ntk_loss_matrix_free(
        case.f, case.params, case.x, residual, learning_rate=0.01, steps=times
    )
    theta = oracles.dense_kernel(case.f, case.params, case.x)[:, :, 0, 0].astype(np.float64)
    expected = ntk_loss(theta, residual, learning_rate=0.01, steps=times)
    assert np.all(np.abs(got.loss - expected) <= got.error + 1e-5 * expected)  # theta's rounding
    early = times <= 1.0  # before rounding of small eigenvalues, times t, can be seen
    assert_close(got.loss[early], expected[early], rel=1e-5)


@pytest.mark.parametrize("num_matvecs", [1, 2, 3, 5, 8, 13])
def test_error_bound_covers_the_true_error_of_short_iterations(x64, num_matvecs):
    rng = np.random.default_rng(3)

    @settings(max_examples=20, deadline=None)
    @given(st.integers(0, 2**30), st.floats(0.1, 3.0), st.integers(5, 30))
    @example(96906209, 3.0, 9)  # weights that summed to 1 + 9 eps were beyond the bound
    def check(seed, decay, rank):
        rng = np.random.default_rng(seed)
        x = np.zeros((30, 30))
        x[:, :rank] = rng.normal(size=(30, rank)) * np.arange(1.0, rank + 1) ** -decay
        residual = rng.normal(size=30)
        times = np.geomspace(1e-2, 1e4, 9)
        given_ = {"learning_rate": 0.1, "steps": times}
        got = ntk_loss_matrix_free(
            linear, jnp.zeros(30), x, residual, num_matvecs=num_matvecs, block_size=8, **given_
        )
        expected = ntk_loss(x @ x.T, residual, **given_)
        assert np.all(np.abs(got.loss - expected) <= got.error)

    check()
    # the bound says something: it is far below F itself where the iteration has converged
    x, residual = rng.normal(size=(30, 30)), rng.normal(size=30)
    converged = ntk_loss_matrix_free(
        linear, jnp.zeros(30), x, residual, learning_rate=1e-3, steps=1.0, num_matvecs=13
    )
    assert converged.error < 1e-6 * converged.loss


def test_too_few_products_are_seen_in_the_error_and_more_mend_it(x64):
    rng = np.random.default_rng(0)
    x, residual = rng.normal(size=(40, 40)), rng.normal(size=40)
    settings_ = {"learning_rate": 0.1, "steps": 10.0}
    expected = ntk_loss(x @ x.T, residual, **settings_)
    errors = []
    for num_matvecs in (4, 16, 40):
        got = ntk_loss_matrix_free(
            linear, jnp.zeros(40), x, residual, num_matvecs=num_matvecs, **settings_
        )
        errors.append(float(got.error))
        assert abs(got.loss - expected) <= got.error
    assert errors[0] > 1e-2 * expected > 1e-6 * expected > errors[-1]


def test_kernels_whose_space_ends_early_are_exact(x64):
    x = np.zeros((12, 5))
    x[:, :3] = np.random.default_rng(0).normal(size=(12, 3))
    residual = np.ones(12)
    for inputs, rank in ((x, 4), (np.zeros((12, 5)), 1), (np.eye(12, 5) * 2.0, 2)):
        got = ntk_loss_matrix_free(
            linear, jnp.zeros(5), inputs, residual, learning_rate=0.1, steps=STEPS
        )
        assert got.num_matvecs == rank  # the residual's parts along distinct eigenvalues
        expected = ntk_loss(inputs @ inputs.T, residual, learning_rate=0.1, steps=STEPS)
        assert_close(got.loss, expected)


def test_without_a_residual_nothing_remains():
    got = ntk_loss_matrix_free(
        linear, jnp.ones(2), jnp.eye(3, 2), np.zeros(3), learning_rate=0.1, steps=STEPS
    )
    assert got.loss.tolist() == got.error.tolist() == [0.0] * 4


def test_the_rule_gives_the_loss_at_other_times(x64):
    case = cases.make("mlp")
    residual = drawn_residual(case)
    got = ntk_loss_matrix_free(case.f, case.params, case.x, residual, learning_rate=0.1, steps=1.0)
    assert got.loss.shape == got.error.shape == ()
    expected = ntk_loss(dense_kernel(case), residual, learning_rate=0.3, steps=STEPS)
    assert_close(
        dataclasses.replace(got.spectrum, learning_rate=0.3).loss(STEPS), expected, rel=1e-6
    )


def test_second_call_traces_nothing_anew():
    calls = []

    def f(params, x):
        calls.append(1)
        return x @ params

    params, settings_ = jnp.ones(3), {"learning_rate": 0.1, "steps": 1.0, "block_size": 2}
    for _ in range(2):
        calls.clear()
        ntk_loss_matrix_free(f, params, jnp.ones((5, 3)), np.ones(5), **settings_)
        ntk_matvec(f, params, jnp.ones((5, 3)), np.ones(5), block_size=2)
    # eval_shape, which checks the outputs, may trace; the programs may not
    assert len(calls) <= 4


def test_bad_input_is_refused_with_the_remedy():
    x, w, r = jnp.ones((4, 3)), jnp.ones(3), np.ones(4)
    good = {"learning_rate": 0.1, "steps": 1.0}
    for message, call in {
        "`v` must have shape": lambda: ntk_matvec(linear, w, x, np.ones(5)),
        "`v` must be finite": lambda: ntk_matvec(linear, w, x, r * np.nan),
        "`theta v` must be finite": lambda: ntk_matvec(lambda w, x: jnp.log(x @ w - 3), w, x, r),
        "`params` must hold floating": lambda: ntk_matvec(linear, jnp.ones(3, int), x, r),
        "`residual` must have shape": lambda: ntk_loss_matrix_free(linear, w, x, r[:3], **good),
        "`num_matvecs` must be positive": lambda: ntk_loss_matrix_free(
            linear, w, x, r, num_matvecs=0, **good
        ),
        "`block_size` must be positive": lambda: ntk_matvec(linear, w, x, r, block_size=0),
        "Lanczos": lambda: ntk_loss_matrix_free(lambda w, x: jnp.log(x @ w - 3), w, x, r, **good),
    }.items():
        with pytest.raises(UserError, match=message):
            call()
