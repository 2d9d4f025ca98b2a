"""Logits equal those that PyTorch gave, committed with their generator: no PyTorch needed."""

import jax
import numpy as np
import pytest

from lensllm_jax.checkpoints.weights import checkpoint_tensors
from lensllm_jax.models.family import CONSTANT
from tests.goldens.generate import ALL_VARIANTS, checksum, golden_batch, golden_path
from tests.models.tiny import tiny_candidate
from tests.tolerances import assert_close, relative_difference


def golden(variant):
    with np.load(golden_path(ALL_VARIANTS[variant])) as arrays:
        return arrays[f"{variant}/logits"], arrays[f"{variant}/checksum"]


def drawn_weights(candidate):
    """The weights under PyTorch's names, without its buffers."""
    buffers = {w.hf for w in candidate.family.weights(candidate.config) if CONSTANT in w.targets[0]}
    tensors = dict(checkpoint_tensors(candidate.params, candidate.family, candidate.config))
    return {name: values for name, values in tensors.items() if name not in buffers}


@pytest.mark.parametrize("variant", ALL_VARIANTS)
def test_logits_equal_the_golden_ones(variant):
    candidate, data = tiny_candidate(ALL_VARIANTS[variant]), golden_batch(variant)
    expected, weights = golden(variant)
    if jax.config.jax_enable_x64:  # scales shifted by one do not come back whole in float32
        assert checksum(drawn_weights(candidate)) == weights
    real = data["attention_mask"] == 1
    real = slice(None) if candidate.is_encoder_decoder else real  # padding's mean nothing
    got = np.asarray(jax.jit(candidate.apply_fn)(candidate.params, data))
    assert_close(got[real], expected[real])


def test_the_golden_logits_tell_the_variants_apart():
    """The control: a window, a cap or another base of rotation each changes the logits."""
    for one, other in (
        ("qwen2", "qwen2-tied-sliding"),
        ("gemma2", "gemma2-uncapped-untied"),
        ("llama", "llama-linear-rope"),
    ):
        assert relative_difference(golden(one)[0], golden(other)[0]) > 1e-2
