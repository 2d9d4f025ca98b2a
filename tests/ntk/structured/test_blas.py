"""The contraction by BLAS: when it is taken, and what it leaves behind."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import threadpoolctl

from lensllm_jax.ntk.gram import empirical_ntk
from lensllm_jax.ntk.structured import blas, contractions, gradients
from tests import oracles
from tests.ntk import cases
from tests.tolerances import assert_close


def test_blas_is_taken_where_gradients_are_materialized_and_many(monkeypatch):
    calls = []
    gram = blas.gram_materialized

    def counted(left, right, *, trace):
        calls.append(left)
        return gram(left, right, trace=trace)

    monkeypatch.setattr(blas, "gram_materialized", counted)

    def f(w, x):
        return jnp.tanh(x @ w).sum((1, 2))

    w, x = jnp.ones((6, 5)), jax.random.normal(jax.random.key(0), (40, 20, 6))
    assert_close(empirical_ntk(f, w, x)[:, :30], empirical_ntk(f, w, x, x[:30]))
    assert len(calls) == 2
    assert_close(empirical_ntk(f, w, x[:31]), empirical_ntk(f, w, x)[:31, :31])
    assert len(calls) == 3  # 31 are too few
    w, x = jnp.ones((64, 64)) / 64, jax.random.normal(jax.random.key(1), (40, 1, 64))
    assert_close(empirical_ntk(f, w, x), oracles.dense_kernel(f, w, x)[:, :, 0, 0])
    assert len(calls) == 3  # one token and a wide layer: by pairs


def test_blas_gives_the_same_bits_again_and_leaves_its_threads_as_they_were():
    group = cases.random_group(jax.random.key(0), 40, 1, 64, 48)
    before = [library["num_threads"] for library in threadpoolctl.threadpool_info()]
    first = blas.gram_materialized(group, None, trace=True)
    assert np.array_equal(first, blas.gram_materialized(group, None, trace=True))
    assert np.array_equal(first, first.T)
    assert before == [library["num_threads"] for library in threadpoolctl.threadpool_info()]


def test_blas_adds_bfloat16_up_in_float32():
    group = jax.tree.map(
        lambda leaf: (
            leaf.astype(jnp.bfloat16) if jnp.issubdtype(leaf.dtype, jnp.floating) else leaf
        ),
        cases.random_group(jax.random.key(0), 5, 1, 7, 2),
    )
    got = blas.gram_materialized(group, None, trace=True)
    assert got.dtype == np.float32
    np.testing.assert_allclose(
        got, contractions.gram_materialized(group, None, trace=True), rtol=1e-5
    )


def test_row_blocks_cover_the_rows_once_and_every_core_has_equally_many(monkeypatch):
    group = cases.random_group(jax.random.key(0), 5, 1, 7, 2)
    for workers, block_size in itertools.product((1, 2, 3, 9), (1, 20, 10**6)):
        monkeypatch.setattr(blas, "num_workers", lambda workers=workers: workers)
        monkeypatch.setattr(gradients, "LEAST_ROW_BLOCK", 1)
        monkeypatch.setattr(gradients, "ROW_BLOCK_SIZE", block_size)
        spans = blas._row_spans(group, None)
        assert [row for span in spans for row in range(*span)] == list(range(7))
        assert len(spans) == 7 or len(spans) % workers == 0
        assert max(b - a for a, b in spans) <= gradients.row_block_height(group, None)
