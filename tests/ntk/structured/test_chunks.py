"""Examples partitioned over chunks and devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax import lax
from jax.sharding import Mesh

from lensllm_jax.ntk.structured import chunks
from lensllm_jax.ntk.structured.chunks import Plan, make_plan, map_chunks
from tests.memory import temporary_bytes

sizes = st.integers(1, 200)


@given(n=sizes, num_devices=st.integers(1, 8), stage_bytes=st.integers(1, 2 * chunks.CHUNK_BYTES))
def test_chunks_are_full_of_equal_size_and_within_their_memory(n, num_devices, stage_bytes):
    mesh = Mesh(np.full(num_devices, jax.devices()[0]), "examples")
    plan = make_plan(n, stage_bytes, mesh)
    assert plan.size >= n
    assert plan.size % (num_devices * plan.chunk_size) == 0
    assert plan.chunk_size == 1 or plan.chunk_size * stage_bytes <= chunks.CHUNK_BYTES
    # no more than one repeated example per chunk and per device
    num_chunks = plan.size // plan.chunk_size
    assert plan.size - n < num_chunks + num_devices


@pytest.mark.parametrize("chunk_size", [1, 3, 12])
def test_chunks_change_no_result(chunk_size):
    x = {"a": jnp.arange(12.0), "b": jnp.arange(24.0).reshape(12, 2)}

    def f(fixed, x):
        return x["a"] * fixed, x["b"].sum(1)

    found = map_chunks(f, 3.0, x, Plan(12, chunk_size, None))
    for got, expected in zip(found, f(3.0, x), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_chunks_are_written_where_they_belong_and_not_put_together_after():
    n, x = 64, jnp.ones((64, 1000))
    plan = Plan(n, 4, None)

    def f(fixed, x):  # with an axis of one output XLA once transposed the whole
        return (x[:, None, None] * fixed[0][None, None, :, None])[..., :500]

    in_place = temporary_bytes(lambda x: map_chunks(f, [jnp.arange(8.0)], x, plan), x)

    def stacked(x):
        chunks = lax.map(lambda part: f([jnp.arange(8.0)], part), x.reshape(16, 4, -1))
        return chunks.reshape(n, *chunks.shape[2:])

    whole = 4 * n * 8 * 500  # bytes of the result
    assert in_place < whole / 2 < temporary_bytes(stacked, x)
