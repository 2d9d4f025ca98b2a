"""The structured kernel of every family of decoders equals the products of its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax.ntk.candidate import candidate_ntk
from tests.models.tiny import tiny_candidate
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close, relative_difference

pytestmark = pytest.mark.float64  # compiling, in float64 whatever the suite runs in

# one per family: all norms, tied and untied heads, grouped heads, windows, caps, parallel blocks
FAMILIES = (
    "gpt2", "opt-350m-form", "llama-tied-grouped", "qwen2-tied-sliding",
    "qwen3-tied-grouped-sliding", "gemma2", "gemma3", "pythia", "phi-grouped-normed", "phi3",
    "gpt2-inverse-layers", "gpt-neo", "smollm3-grouped-sliding-untied",
    "olmo2-grouped-biases-tied", "stablelm-parallel-grouped-biases",
)  # fmt: skip


def gradients(candidate, data):
    """Gradient of each example's mean log-probability, path by path, one row an example."""

    def log_probability(params, one):
        example = {name: values[None] for name, values in one.items()}
        logits = candidate.apply_fn(params, example)[0, :-1]
        labels = one["labels"][1:]
        picked = jax.nn.log_softmax(logits)[jnp.arange(len(labels)), jnp.maximum(labels, 0)]
        return (picked * (labels >= 0)).sum() / (labels >= 0).sum()

    gradient = jax.jit(jax.vmap(jax.grad(log_probability), in_axes=(None, 0)))
    tree = traverse_util.flatten_dict(gradient(candidate.params, data), sep="/")
    return {path: np.asarray(g).reshape(len(g), -1) for path, g in tree.items()}


def shallow(attributes):
    """Two layers, of both kinds if there are two: the kernel writes the loop over them out."""
    names = ("n_layer", "num_layers", "num_hidden_layers")
    layers = next(name for name in names if name in attributes)
    windows = {}
    if "sliding_window" in attributes:
        windows = {"layer_types": ["sliding_attention", "full_attention"]}
    if "attention_types" in attributes:
        windows = {"attention_types": [[["global", "local"], 1]]}
    return {**attributes, **windows, layers: 2}


@pytest.mark.parametrize("variant", FAMILIES)
def test_structured_kernel_equals_the_product_of_gradients(variant, x64):
    candidate, data = tiny_candidate(shallow(VARIANTS[variant])), batch()
    by_path = gradients(candidate, data)
    expected = sum(g @ g.T for g in by_path.values())
    theta = candidate_ntk(candidate, data, method="structured").theta
    assert_close(theta, expected, "float64")
    for path, g in by_path.items():
        # the control: leaving out any one parameter shows.  A bias added to all keys alike
        # moves no softmax, so that its gradient really is zero (before a rotation or a norm)
        part = relative_difference(theta - g @ g.T, expected)
        assert part > 1e-9 or path.endswith("key/bias"), path
