"""Published encoder-decoders have, in our shapes, as many parameters as PyTorch's."""

import math

import jax
import numpy as np
import pytest

from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.models.family import CONSTANT
from tests.goldens.parameter_counts import golden_counts, torch_count
from tests.models.published_encoder_decoders import PUBLISHED


def count(config):
    return sum(
        math.prod(shape)
        for path, shape in parameter_shapes(config).items()
        if not path.endswith(CONSTANT)
    )


@pytest.mark.parametrize("model", PUBLISHED)
def test_shapes_hold_as_many_parameters_as_pytorch(model):
    assert count(parse_config(PUBLISHED[model]).config) == golden_counts()[model]


@pytest.mark.parametrize("model", PUBLISHED)
def test_logits_have_the_shape_of_the_labels(model):
    config = parse_config(PUBLISHED[model]).config
    source, target = np.zeros((2, 7), np.int32), np.zeros((2, 5), np.int32)
    module = config.module()
    params = jax.eval_shape(module.init, jax.random.key(0), source, source, target)
    logits = jax.eval_shape(module.apply, params, source, source, target)
    assert logits.shape == (2, 5, config.vocab_size)


@pytest.mark.parametrize("model", PUBLISHED)
def test_each_parameter_is_filled_by_one_entry_of_the_weight_table(model):
    described = parse_config(PUBLISHED[model])
    table = described.family.weights(described.config)
    targets = [path for weight in table for path in weight.targets]
    assert sorted(targets) == sorted(parameter_shapes(described.config))


def test_a_head_of_its_own_counts():
    tied = {**PUBLISHED["google/flan-t5-small"], "tie_word_embeddings": True}
    more = golden_counts()["google/flan-t5-small"] - count(parse_config(tied).config)
    assert more == 32128 * 512


def test_a_setting_of_early_bart_that_pytorch_ignores_is_ignored_and_listed():
    early = parse_config({**PUBLISHED["facebook/bart-base"], "normalize_before": True})
    assert "normalize_before" in early.ignored
    assert early.config == parse_config(PUBLISHED["facebook/bart-base"]).config


@pytest.mark.torch
@pytest.mark.parametrize("model", PUBLISHED)
def test_golden_counts_are_those_of_pytorch(model):
    pytest.importorskip("torch")
    assert torch_count(PUBLISHED[model]) == golden_counts()[model]
