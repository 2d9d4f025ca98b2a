"""The structured kernel of an encoder-decoder equals the products of its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax.ntk.candidate import candidate_ntk
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.tiny import tiny_candidate
from tests.tolerances import assert_close, relative_difference

pytestmark = pytest.mark.float64  # compiling, in float64 whatever the suite runs in

# shared and separate heads, both norms, relative and learned positions, cross attention
VARIANTS = ("t5", "bart-scaled-embeddings", "mt5", "umt5-tied", "bart-untied")


def kernel_batch(candidate):
    """The batch with the decoder's input written down, as the data room gives it."""
    batch = seq2seq_batch()
    shifted = candidate.config.shift_right(batch["labels"])
    return {**batch, "decoder_input_ids": np.asarray(shifted)}


def gradients(candidate, batch):
    """Gradient of each example's mean log-probability, path by path, one row an example."""

    def logprob(params, one):
        example = {name: values[None] for name, values in one.items()}
        logits = candidate.apply_fn(params, example)[0]
        labels = one["labels"]
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), jnp.maximum(labels, 0)]
        return (picked * (labels >= 0)).sum() / (labels >= 0).sum()

    def rows(params, batch):
        return jax.vmap(jax.grad(logprob), in_axes=(None, 0))(params, batch)

    flat = traverse_util.flatten_dict(jax.jit(rows)(candidate.params, batch), sep="/")
    return {path: np.reshape(g, (len(g), -1)) for path, g in flat.items()}


@pytest.mark.parametrize("variant", VARIANTS)
def test_structured_kernel_equals_the_product_of_gradients(variant, x64):
    candidate = tiny_candidate(ENCODER_DECODERS[variant])
    batch = kernel_batch(candidate)
    by_path = gradients(candidate, batch)
    expected = sum(g @ g.T for g in by_path.values())
    theta = candidate_ntk(candidate, batch, method="structured").theta
    assert_close(theta, expected, "float64")
    for path, g in by_path.items():
        # every parameter takes part, but the constants, and key biases, which softmax cancels
        idle = path.endswith(("constant", "key/bias"))
        assert (relative_difference(theta - g @ g.T, expected) > 1e-8) == (not idle), path
