"""Logits and gradients equal those of Hugging Face's PyTorch models, variant by variant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.weights import checkpoint_tensors
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close, relative_difference

torch = pytest.importorskip("torch", reason="PyTorch is the parity oracle")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch


@pytest.fixture(params=[*VARIANTS])
def checkpoint(request, tmp_path):
    """A random PyTorch model of one variant, and the folder that it was saved to."""
    attributes = dict(VARIANTS[request.param])
    config = transformers.AutoConfig.for_model(attributes.pop("model_type"), **attributes)
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # biases and norms start at 0 and 1, where errors would hide
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    return model, tmp_path


def torch_logits_and_loss(model, data):
    tensors = {name: torch.tensor(np.asarray(values)).long() for name, values in data.items()}
    labels = tensors.pop("labels")[:, 1:]
    logits = model(**tensors).logits
    # PyTorch's own loss of these models is float32 whatever the model is
    loss = torch.nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels.flatten())
    return logits, loss


def jax_loss(params, candidate, data):
    """Mean cross entropy over target tokens, written out here so as not to share code."""
    logits = candidate.apply_fn(params, data)[:, :-1]
    labels = data["labels"][:, 1:]
    log_probs = jax.nn.log_softmax(logits, axis=-1)
    picked = jnp.take_along_axis(log_probs, jnp.maximum(labels, 0)[..., None], axis=-1)[..., 0]
    return -jnp.sum(jnp.where(labels >= 0, picked, 0.0)) / jnp.sum(labels >= 0)


def assert_parity(model, folder, dtype):
    candidate = load_folder(folder, dtype=dtype)
    data = batch()
    model = model.to(getattr(torch, dtype))
    logits, loss = torch_logits_and_loss(model, data)
    real = data["attention_mask"] == 1
    assert_close(
        np.asarray(candidate.apply_fn(candidate.params, data))[real],
        logits.detach().numpy()[real],
        dtype,
    )
    loss.backward()
    ours_loss, gradient = jax.value_and_grad(jax_loss)(candidate.params, candidate, data)
    assert_close(ours_loss, loss.item(), dtype)
    expected = {name: p.grad.numpy() for name, p in model.named_parameters()}
    got = dict(checkpoint_tensors(gradient, candidate.family, candidate.config))
    assert set(got) == set(expected)
    # one scale for the tree: single tensors may have gradients that are rounding alone
    scale = max(np.abs(g).max() for g in expected.values())
    for name in expected:
        assert np.abs(got[name] - expected[name]).max() / scale < (
            1e-5 if dtype == "float32" else 1e-10
        ), name


def test_logits_and_gradients_equal_pytorch_in_float32(checkpoint):
    assert_parity(*checkpoint, "float32")


def test_logits_and_gradients_equal_pytorch_in_float64(checkpoint, x64):
    assert_parity(*checkpoint, "float64")


def test_saved_folder_loads_in_pytorch_with_equal_logits(checkpoint, tmp_path):
    model, folder = checkpoint
    candidate = load_folder(folder)
    scaled = jax.tree.map(lambda leaf: leaf * 1.1, candidate.params)
    candidate.save(tmp_path / "saved", params=scaled)
    back = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "saved", dtype=torch.float32
    ).eval()
    data = batch()
    real = data["attention_mask"] == 1
    ours = np.asarray(candidate.apply_fn(scaled, data))[real]
    theirs = torch_logits_and_loss(back, data)[0].detach().numpy()[real]
    assert_close(ours, theirs, "float32")
    before = torch_logits_and_loss(model, data)[0].detach().numpy()[real]
    assert relative_difference(ours, before) > 1e-3  # the scaled weights did arrive


def test_a_wrong_position_offset_is_caught(tmp_path):
    attributes = dict(VARIANTS["opt"])
    config = transformers.AutoConfig.for_model(attributes.pop("model_type"), **attributes)
    model = transformers.AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    params = traverse_util.flatten_dict(candidate.params, sep="/")
    params["positions/embedding"] = jnp.roll(params["positions/embedding"], 1, axis=0)
    broken = traverse_util.unflatten_dict(params, sep="/")
    data = batch()
    logits = torch_logits_and_loss(model, data)[0].detach().numpy()
    assert relative_difference(candidate.apply_fn(broken, data), logits) > 1e-2
