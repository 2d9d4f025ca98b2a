"""What families call harmless moves no logit of PyTorch's models; activations are theirs."""

import jax.numpy as jnp
import numpy as np
import pytest

from lensllm_jax.checkpoints.config import transformers as library
from lensllm_jax.models.layers import ACTIVATIONS
from lensllm_jax.models.registry import FAMILIES
from tests.models.encoder_decoders import ENCODER_DECODERS, seq2seq_batch
from tests.models.torch_oracle import logits_and_loss, random_model, real_tokens, torch
from tests.models.variants import VARIANTS, batch
from tests.tolerances import assert_close, relative_difference

pytestmark = pytest.mark.torch

TINY = {attributes["model_type"]: attributes for attributes in VARIANTS.values()}
TINY |= {attributes["model_type"]: attributes for attributes in ENCODER_DECODERS.values()}
# Hugging Face turns these into others, which the family reads or refuses
TURNED = {
    "feed_forward_proj", "tie_word_embeddings", "_sliding_window_pattern", "use_sliding_window",
    "max_window_layers", "attention_types", "no_rope_layer_interval",
    "num_hidden_layers",  # of BART, whose depth it is an alias of
}  # fmt: skip

WORDS = {"cache_implementation": "static", "summary_activation": "tanh"}


def other(name, value):
    """Another value of the kind of a default."""
    if name in WORDS:
        return WORDS[name]
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return value + 1
    return {float: 0.5, str: "relu"}.get(type(value), 0.5)


def torch_logits(attributes, weights=None):
    """Logits of a tiny model, and its weights (given ones, or those drawn for it)."""
    encoder_decoder = attributes["model_type"] in ("bart", "mt5", "t5", "umt5")
    data = seq2seq_batch() if encoder_decoder else batch()
    model = random_model(attributes)
    if weights is not None:
        model.load_state_dict(weights)
    with torch.no_grad():
        logits = logits_and_loss(model, data)[0].numpy()
    return logits[real_tokens(data, encoder_decoder)], model.state_dict()


def moved(attributes, names):
    """Which attributes, changed, change the logits of the same weights."""
    defaults = type(library().AutoConfig.for_model(attributes["model_type"]))().to_dict()
    before, weights = torch_logits(attributes)
    changed = {name: {**attributes, name: other(name, defaults.get(name))} for name in names}
    # an order of additions may be another
    return {
        name
        for name in names
        if relative_difference(torch_logits(changed[name], weights)[0], before) > 1e-6
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_a_harmless_attribute_moves_no_logit_of_pytorch(family):
    assert moved(TINY[family], FAMILIES[family].harmless - TURNED) == set()


def test_an_attribute_that_is_read_does_move_them():
    """The control, through the same steps."""
    names = {"layer_norm_epsilon", "scale_attn_weights"}
    assert moved(TINY["gpt2"], names | {"summary_type"}) == names


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_equal_those_of_pytorch(name, x64):
    from transformers.activations import ACT2FN

    x = np.linspace(-6.0, 6.0, 241)
    theirs = ACT2FN[name](torch.tensor(x)).numpy()
    assert_close(ACTIVATIONS[name](jnp.asarray(x)), theirs, "float64")
