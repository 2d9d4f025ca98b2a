"""Logits and gradients equal those of Hugging Face's PyTorch models, variant by variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax.checkpoints.candidate import load_folder
from tests.models.torch_oracle import (
    difference,
    logits_and_loss,
    logits_of_folder,
    random_model,
    rounding,
)
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close, relative_difference, rtol

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("variant", VARIANTS)
def test_float32_logits_and_gradients_equal_pytorch_in_float64(variant, tmp_path):
    ours, theirs = rounding(VARIANTS[variant], tmp_path, batch())
    assert max(ours) <= rtol("float32"), (ours, theirs)


@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_and_gradients_equal_pytorch_in_float64(variant, tmp_path, x64):
    found = difference(VARIANTS[variant], "float64", tmp_path)
    assert max(found) <= rtol("float64"), found


@pytest.mark.parametrize("variant", VARIANTS)
def test_saved_folder_loads_in_pytorch_with_equal_logits(variant, tmp_path):
    model = random_model(VARIANTS[variant])
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    scaled = jax.tree.map(lambda leaf: leaf * 1.1, candidate.params)
    candidate.save(tmp_path / "saved", params=scaled)
    data = batch()
    real = data["attention_mask"] == 1
    ours = np.asarray(candidate.apply_fn(scaled, data))[real]
    theirs = logits_of_folder(tmp_path / "saved", data, VARIANTS[variant])[real]
    assert_close(ours, theirs, "float32")
    before = logits_and_loss(model, data)[0].detach().numpy()[real]
    assert relative_difference(ours, before) > 1e-3  # the scaled weights did arrive


def test_a_wrong_position_offset_is_caught(tmp_path):
    model = random_model(VARIANTS["opt"])
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    params = traverse_util.flatten_dict(candidate.params, sep="/")
    params["positions/embedding"] = jnp.roll(params["positions/embedding"], 1, axis=0)
    broken = traverse_util.unflatten_dict(params, sep="/")
    data = batch()
    logits = logits_and_loss(model, data)[0].detach().numpy()
    assert relative_difference(candidate.apply_fn(broken, data), logits) > 1e-2
