"""What a function runs, and that its rows are independent of each other."""

import dataclasses
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.ntk.function import TracedFn
from lensllm_jax.ntk.gram import NtkMethod, empirical_ntk, parameter_group_ntk
from lensllm_jax.ntk.operator import ntk_loss_matrix_free, ntk_matvec
from tests.tolerances import assert_close

W, X = np.arange(1.0, 4.0, dtype=np.float32), np.eye(4, 3, dtype=np.float32) + 1

WHOLE_BATCH = {
    "divided by the batch's size": lambda w, x: x @ w / len(x),
    "centred": lambda w, x: x @ w - (x @ w).mean(),
    "normalised over the batch": lambda w, x: nn.BatchNorm(
        use_running_average=False, use_bias=False, use_scale=False
    ).apply({"batch_stats": {"mean": jnp.zeros(1), "var": jnp.ones(1)}}, (x @ w)[:, None],
            mutable=["batch_stats"])[0][:, 0],
    "shifted": lambda w, x: jnp.roll(x @ w, 1),
    "sorted": lambda w, x: jnp.sort(x @ w),
    "added up": lambda w, x: jnp.cumsum(x @ w),
    "a state from row to row": lambda w, x: jax.lax.scan(
        lambda h, row: (jnp.tanh(h + row @ w / 9),) * 2, jnp.zeros((), x.dtype), x
    )[1],
    "over the largest": lambda w, x: x @ w / jnp.max(x @ w),
}  # fmt: skip
CALLS = {
    **{
        method: lambda f, w, m=method, **k: empirical_ntk(f, w, X, method=m, **k)
        for method in NtkMethod
    },
    "rectangle": lambda f, w, **k: empirical_ntk(f, w, X[:1], X, **k),
    "product": lambda f, w, **k: ntk_matvec(f, w, X, np.ones(4, np.float32), **k),
    "loss": lambda f, w, **k: (
        ntk_loss_matrix_free(
            f, w, X, np.ones(4, np.float32), learning_rate=0.1, steps=1.0, **k
        ).loss
    ),
}


@pytest.mark.parametrize("name", WHOLE_BATCH)
def test_rows_that_depend_on_the_batch_are_refused(name):
    with pytest.raises(UserError, match="each row from its own example alone"):
        empirical_ntk(WHOLE_BATCH[name], W, X)


@pytest.mark.parametrize("name", CALLS)
def test_every_way_to_the_kernel_checks_rows_and_may_be_told_not_to(name):
    f = WHOLE_BATCH["divided by the batch's size"]
    with pytest.raises(UserError, match="own example alone"):
        CALLS[name](f, W)
    unchecked = CALLS[name](f, W, check_rows=False)
    assert_close(CALLS[name](lambda w, x: x @ w, W), CALLS[name](lambda w, x: x @ w, W))
    assert np.isfinite(unchecked).all()


def test_a_function_without_outputs_is_refused():
    with pytest.raises(UserError, match=r"one floating array of shape \(4,\) or \(4, k\)"):
        empirical_ntk(lambda w, x: (x @ w)[:, None][:, :0], W, X)


def test_equal_examples_are_not_compared():
    x = X[[0, 1, 2, 0]]
    f = lambda w, x: (x - x.mean(0, keepdims=True)) @ w  # noqa: E731
    assert np.array_equal(f(W, x[[0, 3]]), f(W, x[:1])[[0, 0]])
    with pytest.raises(UserError, match="example 0 beside example 2"):
        empirical_ntk(f, W, x)


def test_rows_that_are_all_equal_are_compared_at_parameters_close_by():
    f = WHOLE_BATCH["centred"]
    assert not np.asarray(f(0 * W, X)).any()
    with pytest.raises(UserError, match="own example alone"):
        empirical_ntk(f, 0 * W, X)


def test_a_group_checks_rows_too():
    with pytest.raises(UserError, match="own example alone"):
        parameter_group_ntk(WHOLE_BATCH["sorted"], W, X, group_of=str)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16, jnp.float32])
def test_the_rounding_of_another_batch_size_is_no_dependence(dtype):
    rng = np.random.default_rng(0)
    w, x = (rng.normal(size=shape).astype(np.float32) for shape in ((300, 300), (5, 300)))

    def f(w, x):
        h = x.astype(dtype)
        for _ in range(3):
            h = jnp.tanh(h @ w.astype(dtype))
        return h.sum(1).astype(jnp.float32)

    assert empirical_ntk(f, w, x).shape == (5, 5)


@pytest.mark.parametrize("name", CALLS)
def test_a_constant_set_anew_makes_another_function(name):
    closed_over = {"scale": 1.0}

    def f(w, x):
        return x @ w * closed_over["scale"]

    before = CALLS[name](f, W)
    closed_over["scale"] = 0.5
    after, afresh = CALLS[name](f, W), CALLS[name](lambda w, x: x @ w * 0.5, W)
    assert_close(after, afresh)
    assert np.abs(before - after).max() > 0.1


@pytest.mark.parametrize("constant", [np.ones(3, np.float32), [1.0, 1.0, 1.0]])
def test_a_mutated_array_makes_another_function(constant):
    def f(w, x):
        return x @ (w * jnp.asarray(constant))

    before = empirical_ntk(f, W, X)
    constant[0] = 5.0
    assert_close(empirical_ntk(f, W, X), empirical_ntk(lambda w, x: f(w, x), W, X))
    assert np.abs(empirical_ntk(f, W, X) - before).max() > 1


def test_a_constant_of_a_nested_program_belongs_to_it():
    def of(constant):
        c = jnp.asarray(constant)
        return lambda w, x: jax.lax.map(jax.jit(lambda row: row @ (w * c)), x)

    digests = [TracedFn.of(of(c), W, X).digest for c in (W, W, W + 1)]
    assert digests[0] == digests[1] != digests[2]


def _with_rule(kind, scale):
    """(x w)^2 with a derivative that is ``scale[0]`` times its own."""
    if kind == "jvp":
        g = jax.custom_jvp(jnp.square)
        g.defjvp(lambda z, dz: (z[0] ** 2, scale[0] * 2 * z[0] * dz[0]))
    else:
        g = jax.custom_vjp(jnp.square)
        g.defvjp(lambda z: (z**2, z), lambda z, d: (scale[0] * 2 * z * d,))
    return lambda w, x: g(x @ w)


@pytest.mark.parametrize(
    "name", [NtkMethod.STRUCTURED, NtkMethod.JACOBIAN_CONTRACTION, "rectangle", "product"]
)
@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_a_mutated_rule_of_a_derivative_makes_another_function(kind, name):
    scale = [1.0]
    f = _with_rule(kind, scale)
    before = CALLS[name](f, W)
    assert_close(before, CALLS[name](lambda w, x: (x @ w) ** 2, W))
    scale[0] = 3.0
    assert_close(CALLS[name](f, W), 9 * before)


@pytest.mark.parametrize("kind", ["jvp", "vjp"])
def test_a_callback_in_the_rule_of_a_derivative_is_seen(kind):
    class Called(list):
        def __getitem__(self, i):
            return jax.pure_callback(lambda: np.float32(1), jnp.float32(1))

    assert TracedFn.of(_with_rule(kind, Called()), W, X).callbacks == ("pure_callback",)
    assert TracedFn.of(_with_rule(kind, [1.0]), W, X).callbacks == ()


def test_a_callback_is_known_by_its_identity():
    def of(call):
        return lambda w, x: x @ w * jax.pure_callback(call, jnp.ones(()))

    one, other = (lambda: np.float32(1)), (lambda: np.float32(2))
    f = of(one)
    assert TracedFn.of(f, W, X).callbacks == ("pure_callback",)
    assert TracedFn.of(f, W, X) == TracedFn.of(f, W, X)
    assert TracedFn.of(f, W, X).digest != TracedFn.of(of(other), W, X).digest
    assert TracedFn.of(lambda w, x: x @ w, W, X).callbacks == ()


@dataclasses.dataclass
class Scaled:
    """A function without a hash."""

    scale: Any

    def __call__(self, w, x):
        return x @ w * self.scale


@pytest.mark.parametrize("name", CALLS)
def test_a_function_without_a_hash(name):
    f = Scaled(jnp.full((1,), 2.0))
    with pytest.raises(TypeError):
        hash(f)
    assert_close(CALLS[name](f, W), CALLS[name](lambda w, x: 2 * (x @ w), W))


@pytest.mark.parametrize("method", NtkMethod)
def test_a_list_of_numbers_is_an_array_of_examples(method):
    f = lambda w, x: x @ w  # noqa: E731
    assert_close(empirical_ntk(f, W, X.tolist(), method=method), X @ X.T)


@pytest.mark.parametrize("method", [*NtkMethod, "product"])
def test_outputs_in_bfloat16(method):
    def f(w, x):
        return (x @ w).astype(jnp.bfloat16)

    exact = X @ X.T
    if method == "product":
        got = ntk_matvec(f, W, X, np.ones(4, np.float32)).astype(np.float32)
        assert_close(got, exact.sum(1), rel=2**-6)
    else:
        assert_close(empirical_ntk(f, W, X, method=method).astype(np.float32), exact, rel=2**-7)


def test_a_function_of_no_parameter_has_groups_of_zeros():
    parts = parameter_group_ntk(
        lambda p, x: x.sum(1), {"a": W, "b": W}, X, group_of=lambda path: path
    )
    assert {name: part.tolist() for name, part in parts.items()} == {
        "['a']": np.zeros((4, 4)).tolist(), "['b']": np.zeros((4, 4)).tolist()
    }  # fmt: skip


@pytest.mark.parametrize("block_size", [None, 2])
@pytest.mark.parametrize("side", ["rows", "columns"])
def test_a_gradient_that_is_not_finite_names_its_example(side, block_size):
    def f(w, x):
        return jnp.sqrt(jnp.abs(x @ w))

    x = X.copy()
    x[3] = 0
    x1, x2 = (x, X) if side == "rows" else (X, x)
    with pytest.raises(UserError, match=f"example 3 of the {side}"):
        empirical_ntk(f, W, x1, x2, block_size=block_size)
    with pytest.raises(UserError, match=r"example 3 of the (rows|columns)"):
        empirical_ntk(f, W, x, block_size=block_size)
