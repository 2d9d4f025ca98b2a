"""Configs as different tools write them load, and give the logits of PyTorch's model."""

import json

import numpy as np
import pytest

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.config import CONFIG, parse_config
from tests.models.encoder_decoders import seq2seq_batch
from tests.models.spellings import SPELLINGS, spelled
from tests.models.torch_oracle import (
    auto_class,
    logits_of_folder,
    real_tokens,
    separate_untied_head,
    torch,
    transformers,
)
from tests.models.variants import batch, weight
from tests.tolerances import assert_close, relative_difference

pytestmark = pytest.mark.torch


def write_checkpoint(folder, attributes):
    """A folder with that config as it is, and PyTorch's model of it."""
    (folder / CONFIG).write_text(json.dumps(attributes))
    config = transformers.AutoConfig.from_pretrained(folder)
    model = auto_class(config).from_config(config, dtype=torch.float32).eval()
    separate_untied_head(model, attributes)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = parameter.mean().item() if parameter.ndim == 1 else 0.0
            parameter.copy_(torch.tensor(weight(name, tuple(parameter.shape), centre)))
    model.save_pretrained(folder)
    (folder / CONFIG).write_text(json.dumps(attributes))


@pytest.mark.parametrize("name", SPELLINGS)
def test_logits_are_those_of_pytorch_in_float64(name, tmp_path, x64):
    attributes = spelled(name)
    write_checkpoint(tmp_path, attributes)
    candidate = load_folder(tmp_path, dtype="float64")
    data = seq2seq_batch() if candidate.is_encoder_decoder else batch()
    real = real_tokens(data, candidate.is_encoder_decoder)
    expected = logits_of_folder(tmp_path, data, attributes)[real]
    got = np.asarray(candidate.apply_fn(candidate.params, data))[real]
    assert_close(got, expected, "float64")
    assert relative_difference(got, np.roll(expected, 1, axis=0)) > 1e-2  # the control


def test_there_are_thirty_and_all_of_the_paper():
    assert len(SPELLINGS) >= 30
    assert {parse_config(spelled(name)).family.name for name in SPELLINGS} >= {"opt", "t5", "bart"}
