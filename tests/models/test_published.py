"""Published models have, in our shapes, as many parameters as PyTorch's; no weights are needed."""

import math
from pathlib import Path

import jax
import numpy as np
import pytest

from lensllm_jax.checkpoints import published
from lensllm_jax.checkpoints.config import parse_config
from lensllm_jax.checkpoints.weights import parameter_shapes
from lensllm_jax.models.rotary import Rotary
from tests.goldens.parameter_counts import golden_counts, torch_count
from tests.models.published import PUBLISHED, STATED_COUNTS
from tests.published.weights import KNOWN


def count(config):
    return sum(math.prod(shape) for shape in parameter_shapes(config).values())


@pytest.mark.parametrize("model", PUBLISHED)
def test_shapes_hold_as_many_parameters_as_pytorch(model):
    config = parse_config(PUBLISHED[model]).config
    assert count(config) == golden_counts()[model]
    assert golden_counts()[model] == STATED_COUNTS.get(model, golden_counts()[model])


@pytest.mark.parametrize("model", PUBLISHED)
def test_logits_have_the_shape_of_the_vocabulary(model):
    config = parse_config(PUBLISHED[model]).config
    ids = np.zeros((2, 7), np.int32)
    module = config.module()
    params = jax.eval_shape(module.init, jax.random.key(0), ids, ids)
    assert jax.eval_shape(module.apply, params, ids, ids).shape == (2, 7, config.vocab_size)


def test_the_page_of_families_lists_every_counted_model():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    for model, number in golden_counts().items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{model}` |"))
        assert row.endswith(f"| {number:,} |")


def test_the_page_of_families_has_the_hashes_of_the_files_that_are_loaded():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text().lower()
    assert KNOWN.keys() == published.PUBLISHED.keys()
    for name, known in KNOWN.items():
        row = next(line for line in page.splitlines() if line.startswith(f"| `{name}` |"))
        assert f"| {known.num_params:,} | {', '.join(known.types).lower()} |" in row
        assert f"| {published.PUBLISHED[name].sha256} |" in row


def test_old_spellings_of_positions_are_understood():
    def config(model):
        return parse_config(PUBLISHED[model]).config

    assert config("EleutherAI/pythia-160m").rotaries == (Rotary(10000.0, 16),)
    assert config("microsoft/phi-2").rotaries == (Rotary(10000.0, 32),)
    llama = Rotary(500000.0, 64, factor=32.0, interpolation=(1.0, 4.0, 8192))
    assert config("meta-llama/Llama-3.2-1B").rotaries == (llama,)
    gemma = config("google/gemma-3-1b-pt")
    assert gemma.rotaries == (Rotary(1e6, 256), Rotary(1e4, 256))
    assert [i for i, slides in enumerate(gemma.sliding_layers) if not slides] == [5, 11, 17, 23]
    assert not any(config("Qwen/Qwen2.5-0.5B").sliding_layers)
    assert all(config("microsoft/Phi-3-mini-4k-instruct").sliding_layers)


def test_every_tensor_of_the_weight_table_stands_for_shapes_that_cover_the_model():
    """Each parameter is filled by exactly one entry, in every published model."""
    for attributes in PUBLISHED.values():
        described = parse_config(attributes)
        table = described.family.weights(described.config)
        targets = [path for weight in table for path in weight.targets]
        assert sorted(targets) == sorted(parameter_shapes(described.config))


@pytest.mark.torch
@pytest.mark.parametrize("model", PUBLISHED)
def test_golden_counts_are_those_of_pytorch(model):
    pytest.importorskip("torch")
    assert torch_count(PUBLISHED[model]) == golden_counts()[model]
