"""Logits of a GGUF file equal those of transformers' own reader of it in PyTorch."""

import numpy as np
import pytest

from lensllm_jax.checkpoints.candidate import load_folder
from tests.checkpoints.gguf_configs import MODELS
from tests.checkpoints.gguf_files import write_gguf
from tests.tolerances import relative_difference

pytestmark = pytest.mark.torch

# transformers reads no file of these; a Mistral in it is a Llama
THEIRS = sorted(set(MODELS) - {"gemma", "gptneox", "mistral", "olmo2", "phi2", "smollm3", "umt5"})


@pytest.mark.parametrize("kind", ["F32", "Q8_0", "Q4_1"])
@pytest.mark.parametrize("model", THEIRS)
def test_logits_equal_those_of_transformers(model, kind, tmp_path):
    import torch
    import transformers

    _, path = write_gguf(tmp_path, model, kind=kind)
    ours = load_folder(path)
    auto = (
        transformers.AutoModelForSeq2SeqLM if "t5" in model else transformers.AutoModelForCausalLM
    )
    # its reading of the metadata takes defaults for what a tiny model has otherwise
    config = transformers.AutoConfig.from_pretrained(tmp_path)
    theirs = auto.from_pretrained(
        tmp_path, gguf_file=path.name, config=config, dtype=torch.float32
    ).eval()
    ids = np.random.default_rng(0).integers(1, 64, (2, 9)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if ours.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :5]
    with torch.no_grad():
        inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
        expected = theirs(**inputs).logits.numpy()
    logits = np.asarray(ours.apply_fn(ours.params, {"labels": ids, **batch}))
    assert relative_difference(logits, expected) < 1e-5
