"""Any function of parameters and examples has a kernel; no language model is needed."""

import jax
import jax.numpy as jnp
import numpy as np

import lensllm_jax as lens


def f(params, x):
    """A network with one output per example."""
    return jnp.tanh(x @ params["in"]) @ params["out"]


keys = jax.random.split(jax.random.key(0), 4)
params = {"in": jax.random.normal(keys[0], (3, 8)), "out": jax.random.normal(keys[1], (8,))}
x, new = jax.random.normal(keys[2], (6, 3)), jax.random.normal(keys[3], (2, 3))
residual = np.asarray(f(params, x)) - 1.0  # f0 - y, where every y is 1
steps, rate = np.array([0.0, 100.0]), 1e-2

theta = lens.empirical_ntk(f, params, x)
parts = lens.parameter_group_ntk(f, params, x, group_of=lambda path: path)
print({path: float(np.trace(part) / np.trace(theta)) for path, part in parts.items()})
print(np.abs(lens.ntk_matvec(f, params, x, residual) - theta @ residual).max())

print(lens.ntk_train_residual(theta, residual, learning_rate=rate, steps=steps))
across, left = lens.empirical_ntk(f, params, new, x), np.asarray(f(params, new)) - 1.0
print(lens.ntk_test_residual(across, theta, left, residual, learning_rate=rate, steps=steps))
print(lens.ntk_loss_matrix_free(f, params, x, residual, learning_rate=rate, steps=steps))

trained = jax.tree.map(lambda w: 1.1 * w, params)
print(lens.kernel_velocity(f, [params, trained], x, steps=[0, 100]).relative_change)
