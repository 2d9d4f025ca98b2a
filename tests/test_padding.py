"""Examples in blocks of one size."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from lensllm_jax import padding

sizes = st.integers(1, 40)


def examples(n):
    return {"ids": np.arange(n), "weights": np.arange(2.0 * n).reshape(n, 2)}


@given(n=sizes, size=sizes)
def test_the_last_example_is_repeated_and_the_first_ones_stay(n, size):
    x = padding.pad(examples(n), size)
    assert x["ids"].tolist() == [min(i, n - 1) for i in range(size)]
    assert x["weights"].tolist() == [[2.0 * i, 2.0 * i + 1] for i in x["ids"]]


def test_examples_that_fill_the_block_are_not_copied():
    x = examples(3)
    assert padding.pad(x, 3) is x


@given(n=sizes, size=sizes)
def test_blocks_are_full_and_hold_every_example_once(n, size):
    ids = padding.stack_blocks(examples(n), size)["ids"]
    assert ids.shape == (-(-n // size), size)
    assert ids.reshape(-1)[:n].tolist() == list(range(n))
    assert (ids.reshape(-1)[n:] == n - 1).all()
    for i, block in enumerate(ids):
        assert padding.take(examples(n), i * size, size)["ids"].tolist() == block.tolist()


@given(n=sizes, size=sizes)
def test_a_map_over_blocks_is_that_over_all_examples(n, size):
    x = examples(n)
    shapes = set()

    def f(block):
        shapes.add(jax.tree.leaves(block)[0].shape)
        return block["weights"].sum(1)

    np.testing.assert_array_equal(padding.map_blocks(f, x, size), x["weights"].sum(1))
    assert shapes == {(size,)}  # one compilation


def test_what_mixes_examples_is_not_exact():
    def centred(x):
        return x - x.mean()

    x = np.arange(5.0)
    assert not np.allclose(padding.map_blocks(centred, x, 2), centred(x))
