"""An adapter folder loads as its base with the low-rank updates added."""

import shutil

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.summary import describe_candidate
from tests.checkpoints.adapter_folders import QUERY, flat, write_adapter
from tests.checkpoints.gguf_configs import MODELS
from tests.models.tiny import write_tiny_checkpoint
from tests.tolerances import assert_close, relative_difference


@pytest.mark.parametrize(
    ("settings", "scale"),
    [
        ({}, 6 / 3),
        ({"use_rslora": True}, 6 / np.sqrt(3)),
        ({"alpha_pattern": {"layers.1.self_attn.q_proj": 9, r"h.1.mlp.c_fc": 9}}, 9 / 3),
        ({"alpha_pattern": {"v_proj": 9}, "use_dora": False, "init_lora_weights": True}, 6 / 3),
    ],
)
@pytest.mark.parametrize("model", QUERY)
def test_the_scaled_product_is_added_to_its_matrix_alone(model, settings, scale, tmp_path):
    base, adapter, a, b = write_adapter(tmp_path, model, **settings)
    before, after = flat(lens.load_candidate(base)), flat(lens.load_candidate(adapter))
    _, path = QUERY[model]
    assert_close(after[path][1], before[path][1] + scale * (b @ a).T, "float32")
    assert relative_difference(after[path][1], before[path][1]) > 0.1  # control
    assert before.keys() == after.keys()
    for name in before:
        same = slice(None) if name != path else slice(0, 1)
        np.testing.assert_array_equal(after[name][same], before[name][same])


def test_it_is_summed_up_and_saved_as_a_whole_model(tmp_path):
    _, adapter, _, _ = write_adapter(tmp_path, "llama")
    candidate = lens.load_candidate(adapter)
    assert candidate.name == str(adapter)
    shutil.copy("lensllm_jax/zoo/gpt2-xs/tokenizer.json", adapter)
    candidate.save(tmp_path / "saved")
    saved = lens.load_candidate(tmp_path / "saved")
    for name, values in flat(candidate).items():
        np.testing.assert_array_equal(flat(saved)[name], values)


def test_the_base_may_lie_beside_it_and_its_tokenizer_comes_first(tmp_path):
    _, adapter, _, _ = write_adapter(tmp_path, "llama", base_model_name_or_path="../base")
    assert lens.load_candidate(adapter).folder == adapter / "../base"
    shutil.copy("lensllm_jax/zoo/gpt2-xs/tokenizer.json", adapter)
    assert lens.load_candidate(adapter).folder == adapter


def test_a_bundled_base_is_described_without_its_weights(tmp_path):
    _, adapter, _, _ = write_adapter(tmp_path, "llama", base_model_name_or_path="zoo/gpt2-xs")
    described = describe_candidate(str(adapter))
    assert described.num_params == lens.load_candidate("zoo/gpt2-xs").num_params
    assert described.tokenizer("a")["input_ids"]
    assert described.notes == ("adapter merged into zoo/gpt2-xs",)
    read = {path.name for path in described.files}
    assert read >= {"adapter_config.json", "adapter_model.safetensors", "model.safetensors"}


def test_whole_tensors_replace_those_of_the_base(tmp_path):
    norm = np.full(32, 7.0, np.float32)
    base, adapter, _, _ = write_adapter(
        tmp_path, "llama",
        tensors=lambda stored: {**stored, "base_model.model.model.norm.weight": norm},
    )  # fmt: skip
    np.testing.assert_array_equal(flat(lens.load_candidate(adapter))["final_norm/scale"], norm)
    assert not np.array_equal(flat(lens.load_candidate(base))["final_norm/scale"], norm)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_dora": True}, "low-rank updates alone, got use_dora=True"),
        ({"peft_type": "IA3"}, "got peft_type='IA3'"),
        ({"init_lora_weights": "pissa"}, "init_lora_weights='pissa'"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"lora_alpha": [16]}, "finite numbers .* got must be real number, not list"),
        ({"lora_alpha": float("inf")}, "got one that is not finite"),
        ({"alpha_pattern": {"q_proj": None}}, "got must be real number, not NoneType"),
        ({"alpha_pattern": ["q_proj"]}, "got 'list' object has no attribute 'values'"),
        ({"alpha_pattern": {"(": 2}}, "got missing"),
        ({"base_model_name_or_path": None}, "must name its base_model_name_or_path, got None"),
    ],
)  # fmt: skip
def test_other_kinds_are_refused_by_name(settings, message, tmp_path):
    _, adapter, _, _ = write_adapter(tmp_path, "llama", **settings)
    with pytest.raises(checks.UserError, match=message):
        lens.load_candidate(adapter)


def test_an_adapter_of_another_base_is_refused(tmp_path):
    base, adapter, _, _ = write_adapter(tmp_path, "llama")
    shutil.rmtree(base)
    base.mkdir()
    write_tiny_checkpoint(MODELS["llama3"][1], base)
    with pytest.raises(checks.UserError, match=r"must be of shape .* of another base"):
        lens.load_candidate(adapter)
    shutil.rmtree(base)
    base.mkdir()
    write_tiny_checkpoint(MODELS["gpt2"][1], base)
    with pytest.raises(checks.UserError, match=r"q_proj\.weight, which model\.safetensors lacks"):
        lens.load_candidate(adapter)


def test_half_an_update_and_an_adapter_of_an_adapter_are_refused(tmp_path):
    (tmp_path / "half").mkdir()
    _, adapter, _, _ = write_adapter(
        tmp_path / "half", "llama", tensors=lambda stored: dict(list(stored.items())[:1])
    )
    with pytest.raises(checks.UserError, match="lora_A and lora_B"):
        lens.load_candidate(adapter)
    (tmp_path / "two").mkdir()
    _, second, _, _ = write_adapter(tmp_path / "two", "llama", base_model_name_or_path=str(adapter))
    with pytest.raises(checks.UserError, match="must be a whole model, got the adapter"):
        lens.load_candidate(second)


@pytest.mark.torch
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("rank_stabilised", [False, True])
@pytest.mark.parametrize("model", ["llama", "gpt2", "gptneox", "gemma2", "t5"])
def test_logits_equal_those_of_pefts_merge(model, rank_stabilised, tmp_path):
    import peft
    import torch
    import transformers

    attributes = MODELS[model][1]
    write_tiny_checkpoint(attributes, tmp_path)
    kind = "Seq2SeqLM" if model == "t5" else "CausalLM"
    base = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(
        tmp_path, dtype=torch.float32
    )
    torch.manual_seed(0)
    config = peft.LoraConfig(
        r=4, lora_alpha=3, use_rslora=rank_stabilised, target_modules="all-linear",
        rank_pattern={"layers.0.self_attn.q_proj": 2}, alpha_pattern={"k_proj": 5},
        init_lora_weights=False, fan_in_fan_out=model == "gpt2",
    )  # fmt: skip
    tuned = peft.get_peft_model(base, config)
    tuned.save_pretrained(tmp_path / "adapter")
    ours = lens.load_candidate(tmp_path / "adapter")
    before = lens.load_candidate(tmp_path)
    merged = tuned.merge_and_unload().eval()
    ids = np.random.default_rng(0).integers(1, 64, (2, 9)).astype(np.int32)
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    if ours.is_encoder_decoder:
        batch["decoder_input_ids"] = ids[:, :5]
    with torch.no_grad():
        inputs = {name: torch.tensor(array, dtype=torch.long) for name, array in batch.items()}
        expected = merged(**inputs).logits.numpy()
    batch["labels"] = ids
    assert relative_difference(ours.apply_fn(ours.params, batch), expected) < 2e-5
    assert relative_difference(before.apply_fn(before.params, batch), expected) > 1e-2  # control
