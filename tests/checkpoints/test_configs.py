"""Every attribute of a config is understood, known to move no logit, or refused by name."""

import pytest

from lensllm_jax import checks
from lensllm_jax.checkpoints.config import parse_config, transformers
from lensllm_jax.models.registry import FAMILIES
from tests.models.encoder_decoders import ENCODER_DECODERS
from tests.models.published import PUBLISHED as DECODERS
from tests.models.published_encoder_decoders import PUBLISHED
from tests.models.variants import VARIANTS

TINY = {attributes["model_type"]: attributes for attributes in VARIANTS.values()}
TINY |= {attributes["model_type"]: attributes for attributes in ENCODER_DECODERS.values()}


DEFAULTS = {
    family: type(transformers().AutoConfig.for_model(family))().to_dict() for family in FAMILIES
}


def refusal(attributes):
    with pytest.raises(checks.UserError) as caught:
        parse_config(attributes)
    return str(caught.value)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_model_of_a_family_does_not_know_is_ignored_and_listed(family):
    unknown = {"_model_name_or_path": "a", "unsloth_fixed": True, "a_new_kind_of_norm": "yes"}
    read = parse_config({**TINY[family], **unknown})
    assert read.config == parse_config(TINY[family]).config
    assert read.ignored == tuple(sorted(unknown))
    (note,) = read.notes
    assert "_model_name_or_path, a_new_kind_of_norm, unsloth_fixed ignored" in note
    assert parse_config(TINY[family]).notes == ()


def test_a_note_is_one_printable_line_whatever_the_attributes_are_called():
    strange = dict.fromkeys(["a\nb", "\x1b[31m", "x" * 500, *map(str, range(50))], 1)
    (note,) = parse_config({**TINY["gpt2"], **strange}).notes
    assert note.isprintable()
    assert len(note) < 800
    assert "and 45 more" in note


@pytest.mark.parametrize("family", FAMILIES)
def test_what_it_knows_and_we_do_not_support_is_refused_by_name(family):
    assert "is_causal=False (not supported)" in refusal({**TINY[family], "is_causal": False})
    for quantized in ({"quant_method": "awq", "bits": 4}, {"bits": 4}, "gptq"):
        message = refusal({**TINY[family], "quantization_config": quantized})
        assert "give the checkpoint that was quantized, or a GGUF file of it" in message
    parse_config({**TINY[family], "is_causal": None, "quantization_config": None})
    parse_config({**TINY[family], "quantization_config": {}, "compression_config": {}})


def test_a_name_is_known_to_the_families_whose_code_reads_it():
    window = {"sliding_window": 3}
    assert parse_config({**TINY["llama"], **window}).ignored == ("sliding_window",)
    assert parse_config({**TINY["phi3"], **window}).config.window == 3
    assert parse_config({**TINY["qwen2"], "attention_bias": True}).ignored == ("attention_bias",)
    assert parse_config({**TINY["qwen2"], "head_dim": 8}).config.head_dim == 8  # by getattr alone


REQUIRED = [(name, attribute) for name, f in FAMILIES.items() for attribute in f.required]


@pytest.mark.parametrize(("family", "attribute"), REQUIRED)
def test_a_setting_that_is_not_implemented_is_refused_by_name_in_every_family(family, attribute):
    supported = FAMILIES[family].required[attribute]
    supported = supported if isinstance(supported, tuple) else (supported,)
    others = (2.5,) if supported == (None,) else (True, False, 3)  # a cap is a number
    other = next(value for value in others if value not in supported)
    assert f"{attribute}={other!r}" in refusal({**TINY[family], attribute: other})


ACTIVATION = {"activation_function", "hidden_act", "hidden_activation", "feed_forward_proj"}


@pytest.mark.parametrize("family", FAMILIES)
def test_an_unknown_activation_is_refused_by_name_in_every_family(family):
    (name,) = ACTIVATION & set(DEFAULTS[family])  # T5 has its own in one word
    message = refusal({**TINY[family], name: "mish"})
    assert "activation_function" in message
    assert "got 'mish'" in message


# what the files of some published models say besides, seen in public copies of them
BOOKKEEPING = {
    "gpt2": {"n_special": 0, "predict_special_tokens": True, "output_past": True},
    "opt": {"output_projection": True},
    "gpt_neox": {"attention_probs_dropout_prob": 0, "hidden_dropout_prob": 0},
    "bart": {
        "extra_pos_embeddings": 2,
        "do_blenderbot_90_layernorm": False,
        "force_bos_token_to_be_generated": True,
        "_num_labels": 3,
    },
}


@pytest.mark.parametrize("family", BOOKKEEPING)
def test_bookkeeping_of_published_files_is_accepted(family):
    said = parse_config({**TINY[family], **BOOKKEEPING[family]}).config
    assert said == parse_config(TINY[family]).config


@pytest.mark.parametrize(
    "model",
    ["openai-community/gpt2", "google/gemma-2-2b", "google-t5/t5-small", "facebook/bart-large"],
)
def test_a_published_config_equals_the_defaults_of_transformers(model):
    """They are those of this very model, an independent copy of its numbers."""
    attributes = {**DECODERS, **PUBLISHED}[model]
    defaults = parse_config({"model_type": attributes["model_type"]}).config
    assert parse_config(attributes).config == defaults
