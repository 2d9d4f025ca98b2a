"""A saved adapter is one of PEFT's: it loads there, and here, with the logits of training."""

import jax
import numpy as np
import pytest
from flax import traverse_util

import lensllm_jax as lens
from lensllm_jax.finetune import lora
from lensllm_jax.finetune.compute import ComputeConfig, config_apply_fn
from lensllm_jax.finetune.loop import joined
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close, relative_difference

# one of each way to hold several matrices in a tensor, and each block
NAMES = (
    "gpt2", "opt-350m-form", "llama-tied-grouped", "pythia", "phi3", "gemma3", "phi", "stablelm",
    "gpt-neo", "t5-1.1", "bart",
)  # fmt: skip


def tuned(name, folder):
    """A tiny candidate, and factors far from their start."""
    attributes = {**VARIANTS, **ENCODER_DECODERS}[name]
    (folder / "base").mkdir()
    candidate = lens.load_candidate(write_tiny_checkpoint(attributes, folder / "base"))
    factors = lora.init_factors(candidate.params, rank=3, seed=0)
    rng = np.random.default_rng(0)
    factors = jax.tree.map(
        lambda leaf: np.asarray(rng.normal(scale=0.2, size=leaf.shape), leaf.dtype), factors
    )
    return candidate, factors


def logits(candidate, factors):
    """A batch, where it means something, and the logits there as they are while training."""
    data = seq2seq_batch() if candidate.is_encoder_decoder else batch()
    is_label, is_token = data["labels"] != -100, data["attention_mask"] == 1
    rows = is_label if candidate.is_encoder_decoder else is_token
    apply_fn = config_apply_fn(candidate.config, ComputeConfig(tune="lora"))
    return data, rows, np.asarray(apply_fn(joined(factors, candidate.params), data))[rows]


@pytest.mark.parametrize("name", NAMES)
def test_the_folder_loads_here_as_the_merged_weights(name, tmp_path):
    candidate, factors = tuned(name, tmp_path)
    lora.save_adapter(candidate, factors, tmp_path / "adapter")
    loaded = lens.load_candidate(tmp_path / "adapter")
    merged = traverse_util.flatten_dict(lora.merged(candidate.params, factors), sep="/")
    before = traverse_util.flatten_dict(candidate.params, sep="/")
    for path, values in traverse_util.flatten_dict(loaded.params, sep="/").items():
        assert_close(values, merged[path], "float32")
        changed = relative_difference(values, before[path]) if np.any(before[path]) else 0.0
        assert (changed > 0.05) == (path in lora.adapted_kernels(
            {path: values.shape for path, values in before.items()})), path  # fmt: skip


@pytest.mark.parametrize("name", ["gpt2", "bart"])
def test_merged_weights_give_the_logits_of_training(name, tmp_path):
    candidate, factors = tuned(name, tmp_path)
    data, rows, expected = logits(candidate, factors)
    merged = lora.merged(candidate.params, factors)
    assert_close(np.asarray(candidate.apply_fn(merged, data))[rows], expected, "float32")


@pytest.mark.torch
# of PEFT 0.21, which asks transformers 5.23 for a name that 6 will drop
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("name", NAMES)
def test_peft_loads_it_with_equal_logits(name, tmp_path):
    peft = pytest.importorskip("peft")
    from tests.models.torch_oracle import auto_class, logits_and_loss, torch, transformers

    candidate, factors = tuned(name, tmp_path)
    lora.save_adapter(candidate, factors, tmp_path / "adapter")
    config = transformers.AutoConfig.from_pretrained(tmp_path / "base")
    base = auto_class(config).from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    data, rows, expected = logits(candidate, factors)
    plain = logits_and_loss(base, data)[0].detach().numpy()[rows]
    theirs = peft.PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    assert_close(expected, logits_and_loss(theirs, data)[0].detach().numpy()[rows], "float32")
    assert relative_difference(plain, expected) > 0.05  # control: the updates did arrive
