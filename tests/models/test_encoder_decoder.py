"""Encoder-decoders equal Hugging Face's PyTorch models, in logits, loss and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.models.relative import Buckets
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.torch_oracle import (
    difference,
    logits_and_loss,
    logits_of_folder,
    random_model,
    rounding,
    torch,
    transformers,
)
from tests.tolerances import assert_close, relative_difference, rtol

pytestmark = pytest.mark.torch


@pytest.mark.parametrize("variant", ENCODER_DECODERS)
def test_float32_logits_and_gradients_equal_pytorch_in_float64(variant, tmp_path):
    ours, theirs = rounding(ENCODER_DECODERS[variant], tmp_path, seq2seq_batch())
    assert max(ours) <= rtol("float32"), (ours, theirs)


@pytest.mark.parametrize("variant", ENCODER_DECODERS)
def test_logits_and_gradients_equal_pytorch_in_float64(variant, tmp_path, x64):
    found = difference(ENCODER_DECODERS[variant], "float64", tmp_path, seq2seq_batch())
    assert max(found) <= rtol("float64"), found


# one of each way to hold the head; of an untied BART, Hugging Face gives the stacks own tables
@pytest.mark.parametrize(
    "variant", ["t5", "t5-1.1", "mt5", "umt5-tied", "bart-scaled-embeddings", "bart-untied"]
)
def test_saved_folder_loads_in_pytorch_with_equal_logits(variant, tmp_path):
    model = random_model(ENCODER_DECODERS[variant])
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    scaled = jax.tree.map(lambda leaf: leaf * 1.1, candidate.params)
    candidate.save(tmp_path / "saved", params=scaled)
    data = seq2seq_batch()
    ours = np.asarray(candidate.apply_fn(scaled, data))
    theirs = logits_of_folder(tmp_path / "saved", data, ENCODER_DECODERS[variant])
    assert_close(ours, theirs, "float32")
    before = logits_and_loss(model, data)[0].detach().numpy()
    assert relative_difference(ours, before) > 1e-3  # the scaled weights did arrive


@pytest.mark.parametrize("variant", ["t5", "t5-1.1", "mt5", "umt5-tied"])
@pytest.mark.parametrize("own_head", [False, True])
def test_the_head_is_that_of_the_tensors_as_in_pytorch(variant, own_head, tmp_path):
    """As Hugging Face saves a new model today, tied whatever its config says; and with a head."""
    attributes = dict(ENCODER_DECODERS[variant])
    config = transformers.AutoConfig.for_model(attributes.pop("model_type"), **attributes)
    model = transformers.AutoModelForSeq2SeqLM.from_config(config).eval()
    with torch.no_grad():
        model.shared.weight.mul_(3.0)
        if own_head:
            weight = torch.randn_like(model.shared.weight)
            model.lm_head.weight = torch.nn.Parameter(weight)
    model.save_pretrained(tmp_path)
    candidate, data = load_folder(tmp_path), seq2seq_batch()
    assert candidate.config.tied_head is not own_head
    theirs = logits_of_folder(tmp_path, data)
    assert_close(np.asarray(candidate.apply_fn(candidate.params, data)), theirs, "float32")


@pytest.mark.parametrize("variant", ["t5-1.1", "bart"])
def test_given_decoder_input_is_read_instead_of_the_labels(variant, tmp_path):
    model = random_model(ENCODER_DECODERS[variant])
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    data = seq2seq_batch()
    written = np.roll(np.maximum(data.pop("labels"), 0), 1, axis=1)
    tensors = {k: torch.tensor(v).long() for k, v in data.items()}
    theirs = model(**tensors, decoder_input_ids=torch.tensor(written).long()).logits
    ours = candidate.apply_fn(candidate.params, {**data, "decoder_input_ids": written})
    assert_close(ours, theirs.detach().numpy(), "float32")


@pytest.mark.parametrize("setting", [(32, 128), (8, 6), (16, 500)])
@pytest.mark.parametrize("bidirectional", [True, False])
def test_buckets_of_all_distances_equal_those_of_pytorch(setting, bidirectional):
    from transformers.models.t5.modeling_t5 import T5Attention

    distances = np.arange(-5000, 5001)
    theirs = T5Attention._relative_position_bucket(torch.tensor(distances), bidirectional, *setting)
    ours = Buckets(*setting, bidirectional=bidirectional).bucket(distances)
    np.testing.assert_array_equal(ours, theirs.numpy())


def test_a_wrong_relative_table_is_caught(tmp_path):
    model = random_model(ENCODER_DECODERS["t5"])
    model.save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    table = candidate.params["decoder"]["relative_bias"]["table"]
    table["embedding"] = jnp.roll(table["embedding"], 1, axis=0)
    data = seq2seq_batch()
    logits = logits_and_loss(model, data)[0].detach().numpy()
    assert relative_difference(candidate.apply_fn(candidate.params, data), logits) > 1e-3


def test_bare_bart_checkpoint_loads_without_logit_bias_and_prefix(tmp_path):
    config = transformers.BartConfig(
        **{k: v for k, v in ENCODER_DECODERS["bart"].items() if k != "model_type"}
    )
    transformers.BartModel(config).save_pretrained(tmp_path)
    candidate = load_folder(tmp_path)
    assert not candidate.params["logit_bias"]["constant"].any()
    data = seq2seq_batch()
    logits = logits_of_folder(tmp_path, data)
    assert_close(candidate.apply_fn(candidate.params, data), logits, "float32")
    model = transformers.BartForConditionalGeneration.from_pretrained(tmp_path)
    assert candidate.num_params == sum(p.numel() for p in model.parameters())
