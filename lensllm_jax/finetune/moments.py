r"""Moments: an optimiser whose state is kept in bfloat16, half of float32's bytes.

A moving average with decay :math:`\beta_2 = .999` moves by a thousandth a step, less than half of
bfloat16's spacing of :math:`2^{-8}`: rounded to the nearest it would never fall again.  The state
is therefore rounded up or down at random, with the true value as its mean (Croci et al., 2022).
The random bits follow from the number of the step, so that a resumed fine-tune ends in the same
bits.

Example:
    >>> import optax
    >>> optimizer = with_bfloat16_state(optax.adam(1e-3))
    >>> optimizer.init({"w": jnp.ones(2)}).inner[0].mu["w"].dtype
    dtype(bfloat16)
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float, Int, UInt32

from lensllm_jax.typing import Array, Params


class NarrowState(NamedTuple):
    """The state of an optimiser, its floating-point arrays in bfloat16."""

    step: Int[Array, ""]
    inner: Any


def with_bfloat16_state(optimizer: optax.GradientTransformation) -> optax.GradientTransformation:
    """The optimiser with its state rounded to bfloat16 after each step; it computes in float32."""

    def init(params: Params) -> NarrowState:
        narrow = jax.tree.map(
            lambda leaf: leaf.astype(jnp.bfloat16) if _is_float(leaf) else leaf,
            optimizer.init(params),
        )
        return NarrowState(jnp.zeros((), jnp.int32), narrow)

    def update(gradient: Params, state: NarrowState, params: Params | None = None):
        wide = jax.tree.map(
            lambda leaf: leaf.astype(jnp.float32) if _is_float(leaf) else leaf, state.inner
        )
        updates, inner = optimizer.update(gradient, wide, params)
        leaves, structure = jax.tree.flatten(inner)
        narrow = [
            stochastically_rounded(leaf, state.step * len(leaves) + i) if _is_float(leaf) else leaf
            for i, leaf in enumerate(leaves)
        ]
        return updates, NarrowState(state.step + 1, jax.tree.unflatten(structure, narrow))

    return optax.GradientTransformation(init, update)


def stochastically_rounded(x: Float[Array, "..."], seed: Array | int) -> Float[Array, "..."]:
    """``x`` in bfloat16, the neighbour above or below at random, so that the mean is ``x``."""
    bits = jax.lax.bitcast_convert_type(x.astype(jnp.float32), jnp.uint32)
    # bfloat16 is the upper half of float32: a random lower half carries with its own probability
    upper = (bits + (_noise(x.shape, seed) >> 16)) & jnp.uint32(0xFFFF0000)
    return jax.lax.bitcast_convert_type(upper, jnp.float32).astype(jnp.bfloat16)


def _noise(shape: tuple[int, ...], seed: Array | int) -> UInt32[Array, "..."]:
    """32 random bits for each entry: its number and the seed, hashed (Wellons' lowbias32).

    jax.random's generators are better and make arrays of their own, larger than what bfloat16
    saves; this is part of the loop over the entries.
    """
    number = jnp.zeros(shape, jnp.uint32)
    for axis, size in enumerate(shape):
        number = number * jnp.uint32(size) + jax.lax.broadcasted_iota(jnp.uint32, shape, axis)
    x = _hashed(jnp.asarray(seed).astype(jnp.uint32)) ^ number
    return _hashed(x)


def _hashed(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _is_float(leaf: Array) -> bool:
    return jnp.issubdtype(leaf.dtype, jnp.floating)
