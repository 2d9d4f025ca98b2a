"""The loss of target tokens, summed."""

import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.finetune.objective import batch_nats_and_count, nats_and_count
from tests.finetune import tiny
from tests.oracles import summed_cross_entropy
from tests.tolerances import assert_close


@pytest.mark.parametrize("shift", [True, False])
def test_loss_equals_the_dense_oracle(shift):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(7, 11)).astype(np.float32) * 5
    labels = np.array([-100, 3, -100, 0, 10, 2, -100])
    nats, count = nats_and_count(jnp.asarray(logits), jnp.asarray(labels), shift=shift)
    expected = summed_cross_entropy(logits, labels, shift=shift)
    assert_close(nats, expected[0], "float32")
    assert int(count) == expected[1]
    assert summed_cross_entropy(logits, labels, shift=not shift)[0] != pytest.approx(expected[0])


def test_sums_do_not_depend_on_how_a_batch_is_split():
    batch = tiny.examples(6)
    whole = batch_nats_and_count(tiny.apply_fn, tiny.params(), batch, shift=True)
    parts = [
        batch_nats_and_count(
            tiny.apply_fn, tiny.params(), {k: v[s] for k, v in batch.items()}, shift=True
        )
        for s in (slice(0, 1), slice(1, 6))
    ]
    assert_close(sum(p.nats for p in parts), whole.nats, "float32")
    assert sum(int(p.num_targets) for p in parts) == int(whole.num_targets)
    means = [float(p.nats) / int(p.num_targets) for p in parts]  # what must not be averaged
    assert abs(np.mean(means) - float(whole.nats) / int(whole.num_targets)) > 1e-4
