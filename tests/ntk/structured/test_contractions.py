"""Two exact contractions of the same terms, and what each costs."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.ntk.structured import blas, contractions, gradients
from lensllm_jax.ntk.structured.gradients import Group, Lookup, Outer
from tests.memory import temporary_bytes
from tests.ntk import cases
from tests.tolerances import assert_close


@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("k", [1, 3])
def test_both_contractions_are_the_same(x64, monkeypatch, k, trace):
    left = cases.random_group(jax.random.key(0), 5, k, 7, 2)
    right = cases.random_group(jax.random.key(1), 4, k, 7, 2)
    dense = [sum(np.asarray(gradients.materialize(t, 7)) for t in g.terms) for g in (left, right)]
    for other, matrix in ((right, dense[1]), (None, dense[0])):
        expected = np.einsum("iarc,jbrc->ijab", dense[0], matrix)
        expected = np.einsum("ijaa->ij", expected) if trace else expected
        # whole, in blocks that divide the rows, in blocks that leave a rest, one row at a time
        monkeypatch.setattr(gradients, "LEAST_ROW_BLOCK", 1)
        for block_size in (10**6, 5 * k * 2 * 3, 1):
            monkeypatch.setattr(gradients, "ROW_BLOCK_SIZE", block_size)
            got = jax.jit(functools.partial(contractions.gram_materialized, trace=trace))(
                left, other
            )
            assert_close(got, expected)
            for workers in (1, 2, 3):
                monkeypatch.setattr(blas, "num_workers", lambda workers=workers: workers)
                assert_close(blas.gram_materialized(left, other, trace=trace), expected)
        for pair_size in (10**6, 1):
            monkeypatch.setattr(contractions, "PAIR_SIZE", pair_size)
            got = jax.jit(functools.partial(contractions.gram_pairwise, trace=trace))(left, other)
            assert_close(got, expected)


def test_pairs_transpose_no_factor_in_memory():
    """The rows of a tied head are the largest array of a kernel: one number a token and word."""
    n, t, words = 8, 4, 20_000
    head = Outer(jnp.ones((n, 1, t, words)), jnp.ones((n, 1, t, 8)))
    lookup = Lookup(jnp.ones((n, t), int), jnp.ones((n, 1, t, 8)))
    group = Group((head, lookup), words, 8)
    bytes_of_rows = 4 * n * t * words
    for other in (None, group):
        pairs = functools.partial(contractions.gram_pairwise, trace=True)
        assert temporary_bytes(pairs, group, other) < bytes_of_rows / 4

    def of_many_axes(rows):
        return jax.vmap(lambda one: jnp.einsum("atr,mbsr->atmbs", one, rows))(rows)

    assert temporary_bytes(of_many_axes, head.rows) > bytes_of_rows / 2


def test_two_terms_of_one_group_meet_once():
    group = cases.random_group(jax.random.key(0), 5, 1, 7, 2)
    once = contractions.pairwise_flops(group, None, trace=True)
    both_ways = contractions.pairwise_flops(group, group, trace=True)
    with_themselves = sum(
        contractions.pairwise_flops(Group((term,), 7, 2), None, trace=True) for term in group.terms
    )
    assert both_ways - once == once - with_themselves > 0


def test_one_term_at_two_places_counts_as_two():
    (term, *_) = cases.random_group(jax.random.key(0), 5, 1, 7, 2).terms
    alone, twice = Group((term,), 7, 2), Group((term, term), 7, 2)
    for contraction in (
        contractions.gram_materialized,
        contractions.gram_pairwise,
        blas.gram_materialized,
    ):
        once = contraction(alone, None, trace=True)
        assert_close(contraction(twice, None, trace=True), 4 * once)  # |2 G|^2


def test_the_cheaper_contraction_is_taken():
    def group(n, t, r, c):
        outer = Outer(jnp.ones((n, 1, t, r)), jnp.ones((n, 1, t, c)))
        return Group((outer,), r, c)

    # 2 n m t^2 (r + c) compared with 2 n t r c + 2 n m r c: short texts and wide layers go by pairs
    wide, narrow = group(8, 2, 64, 64), group(8, 32, 8, 8)
    for g, pairs_are_cheaper in ((wide, True), (narrow, False)):
        pairwise, materialized = (
            count(g, None, trace=True)
            for count in (contractions.pairwise_flops, contractions.materialized_flops)
        )
        assert (pairwise < materialized) is pairs_are_cheaper
        other = contractions.gram_materialized if pairs_are_cheaper else contractions.gram_pairwise
        assert_close(contractions.gram(g, None, trace=True), other(g, None, trace=True))
