"""Functions that use their parameters in every way: the programs of the kernel's tests."""

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax


def normal(seed, *shape):
    return jax.random.normal(jax.random.key(seed), shape)


IDS = np.array([[0, 2, 2], [4, 1, 2], [3, 3, 3], [1, 0, 4]])


def use_bound(name):
    """What the program applies to a whole parameter; JAX knows its derivative, we need not."""
    return {
        "in a branch": lambda w, x: lax.cond(x[0, 0] > 0, lambda w: jnp.sin(w), lambda w: w**2, w),
        "with a derivative of its own": lambda w, x: halved_gradient(w),
        "stopped": lambda w, x: w + lax.stop_gradient(w) * w,
        "in a product with itself": lambda w, x: w @ w.T,
        "sorted": lambda w, x: jnp.sort(w, axis=0),
    }[name]


@jax.custom_jvp
def halved_gradient(w):
    return jnp.tanh(w)


@halved_gradient.defjvp
def _(primals, tangents):
    return jnp.tanh(primals[0]), 0.5 * tangents[0]


# name -> (function of one parameter tree and a batch x, parameters, x)
PROGRAMS = {
    "two sides of one matrix": (
        lambda p, x: jnp.tanh(jnp.tanh(x @ p["w"]) @ p["w"].T).sum((1, 2)),
        lambda: {"w": normal(0, 3, 5)},
        lambda: normal(1, 4, 2, 3),
    ),
    "matrix on the left": (
        lambda p, x: jnp.tanh(jnp.einsum("de,nse->nds", p["w"], x)).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    "heads as axes of the matrix": (
        lambda p, x: jnp.tanh(
            jnp.einsum("nshe,hed->nsd", jnp.tanh(jnp.einsum("nsd,dhe->nshe", x, p["in"])), p["out"])
        ).sum((1, 2)),
        lambda: {"in": normal(0, 3, 2, 4), "out": normal(1, 2, 4, 3)},
        lambda: normal(2, 4, 5, 3),
    ),
    "axes merged and parted again": (
        lambda p, x: jnp.tanh(
            x @ p["w"].reshape(3, 8) @ p["w"].reshape(3, 8).reshape(6, 4).reshape(3, 8).T
        ).sum((1, 2)),
        lambda: {"w": normal(0, 3, 2, 4)},
        lambda: normal(2, 4, 5, 3),
    ),
    "splits that disagree": (
        lambda p, x: (
            jnp.tanh(jnp.einsum("nsd,dhe->nshe", x, p["w"])).sum((1, 2, 3))
            + jnp.tanh(jnp.einsum("nsd,hde->nshe", x, p["w"])).sum((1, 2, 3))
        ),
        lambda: {"w": normal(0, 3, 3, 2)},
        lambda: normal(2, 4, 5, 3),
    ),
    "slices that overlap": (
        lambda p, x: (
            jnp.tanh(x @ p["w"][:, :4]).sum((1, 2)) + jnp.tanh(x @ p["w"][:, 2:]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "slices that do not": (
        lambda p, x: (
            jnp.tanh(x @ p["w"][:, :2]).sum((1, 2)) * jnp.tanh(x @ p["w"][:, 2:]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "a slice and the whole": (
        lambda p, x: jnp.tanh(x @ p["w"]).sum((1, 2)) + (x[:, :, 0] * p["w"][None, 0, :2]).sum(1),
        lambda: {"w": normal(0, 3, 6)},
        lambda: normal(1, 4, 2, 3),
    ),
    "lookup": (
        lambda p, x: jnp.tanh(p["w"][x]).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3)},
        lambda: IDS,
    ),
    "lookup beyond the table, filled": (
        lambda p, x: jnp.tanh(
            p["w"].at[x + 2].get(mode="fill", fill_value=1.5)
            * p["v"].at[x + 2].get(mode="clip")
        ).sum((1, 2)),
        lambda: {"w": normal(0, 5, 3), "v": normal(1, 5, 3)},
        lambda: IDS,
    ),
    "lookup and head of one table": (
        lambda p, x: jax.nn.logsumexp(jnp.tanh(p["w"][x] @ p["m"]) @ p["w"].T, axis=-1).sum(1),
        lambda: {"w": normal(0, 5, 3), "m": normal(1, 3, 3)},
        lambda: IDS,
    ),
    "two lookups and two heads of one table": (
        lambda p, x: (
            jax.nn.logsumexp(jnp.tanh(p["w"][x]) @ p["w"].T, axis=-1).sum(1)
            * jax.nn.logsumexp(jnp.sin(p["w"][x[:, ::-1]]) @ p["w"].T, axis=-1).sum(1)
        ),
        lambda: {"w": normal(0, 5, 3)},
        lambda: IDS,
    ),
    "lookup in the columns": (
        lambda p, x: (
            jnp.tanh(jnp.take(p["w"], x, axis=1)).sum((0, 2))
            + jnp.tanh(p["w"].T[x]).sum((1, 2))
        ),
        lambda: {"w": normal(0, 3, 5)},
        lambda: IDS,
    ),
    "lookup of a table of matrices": (
        lambda p, x: jnp.tanh(
            jnp.einsum("nsab,nsbc->nsac", p["w"][x], p["w"][x[:, ::-1]])
        ).sum((1, 2, 3)),
        lambda: {"w": normal(0, 5, 3, 3)},
        lambda: IDS,
    ),
    "loop over layers, forward and backward": (
        lambda p, x: lax.scan(
            lambda h, w: (jnp.tanh(h @ w), h.sum((1, 2))),
            lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"], reverse=True)[0],
            p["w"],
        )[1].sum(0),
        lambda: {"w": normal(0, 3, 4, 4)},
        lambda: normal(1, 4, 2, 4),
    ),
    "one matrix in every step of a loop": (
        lambda p, x: lax.scan(
            lambda h, _: (jnp.tanh(h @ p["w"]), None), x, None, length=3
        )[0].sum((1, 2)),
        lambda: {"w": normal(0, 4, 4)},
        lambda: normal(1, 4, 2, 4),
    ),
    "parameter as a loop's first state": (
        lambda p, x: lax.scan(lambda h, y: (jnp.tanh(h * y), None), p["w"], x[0])[0].sum()[None],
        lambda: {"w": normal(0, 4)},
        lambda: normal(1, 4, 3, 4),
    ),
    "product of two parameters": (
        lambda p, x: jnp.tanh(x @ (p["base"] + p["a"] @ p["b"])).sum((1, 2)),
        lambda: {"base": normal(0, 3, 4), "a": normal(1, 3, 2), "b": normal(2, 2, 4)},
        lambda: normal(3, 4, 2, 3),
    ),
    "batched product": (
        lambda p, x: jnp.tanh(jnp.einsum("nse,seo->nso", x, p["w"])).sum((1, 2)),
        lambda: {"w": normal(0, 2, 3, 5)},
        lambda: normal(1, 4, 2, 3),
    ),
    "scalar, and one that is never used": (
        lambda p, x: jnp.tanh(p["scale"] * x).sum((1, 2)),
        lambda: {"scale": jnp.asarray(0.7), "idle": normal(0, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    "axes of length one": (
        lambda p, x: jnp.tanh(x @ p["w"] + p["b"][None]).sum((1, 2)),
        lambda: {"w": normal(0, 1, 5), "b": normal(1, 1, 1)},
        lambda: normal(2, 4, 2, 1),
    ),
    "parameter that is an output": (
        lambda p, x: jnp.broadcast_to(p["w"][None], (x.shape[0], 3)),
        lambda: {"w": normal(0, 3)},
        lambda: normal(1, 4, 2, 3),
    ),
    **{
        name: (
            lambda p, x, name=name: jnp.tanh(
                x @ jax.vmap(lambda one: use_bound(name)(p["w"], one))(x)
            ).sum((1, 2)),
            lambda: {"w": normal(0, 3, 3)},
            lambda: normal(1, 4, 2, 3),
        )
        for name in (
            "in a branch",
            "with a derivative of its own",
            "stopped",
            "in a product with itself",
            "sorted",
        )
    },
}  # fmt: skip
