"""Checkpoint folders load whole or are refused with a message that names what is wrong."""

import dataclasses
import functools
import json
import shutil

import huggingface_hub
import jax
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import CONFIG, load_folder
from lensllm_jax.checkpoints.config import read_config
from lensllm_jax.checkpoints.folder import INDEX, SINGLE
from lensllm_jax.checkpoints.summary import describe_candidate
from lensllm_jax.checkpoints.tensors import TensorFiles
from lensllm_jax.checkpoints.weights import load_params
from lensllm_jax.checkpoints.zoo import FOLDER
from lensllm_jax.data.denoising import denoising_examples, span_corruption, text_infilling
from lensllm_jax.finetune.loop import Loop, OptimizerConfig
from tests.checkpoints.changes import SMALLEST, change_config, change_tensors
from tests.models.encoder_decoders import ENCODER_DECODERS
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS

ZOO = [name.removeprefix("zoo/") for name in lens.list_zoo()]


def refusal(folder):
    with pytest.raises(checks.UserError) as caught:
        load_folder(folder)
    return str(caught.value)


def same(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((x == y).all()), a.params, b.params))


def shard(folder):
    """Splits the weights of a folder in two; gives the names of the tensors in each file."""
    tensors = load_file(folder / SINGLE)
    names = sorted(tensors)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, members in shards.items():
        save_file({name: tensors[name] for name in members}, folder / file)
    weight_map = {name: file for file, members in shards.items() for name in members}
    (folder / INDEX).write_text(json.dumps({"weight_map": weight_map}))
    (folder / SINGLE).unlink()
    return shards


def test_sharded_checkpoint_loads_the_same_parameters(folder):
    whole = load_folder(folder)
    shard(folder)
    assert same(load_folder(folder), whole)


def test_all_problems_of_all_shards_are_reported_at_once(folder):
    """A missing file, and in the other one a NaN, an odd type and a tensor without a place."""
    shards = shard(folder)
    tensors = load_file(folder / "a.safetensors")
    bad, odd = "transformer.h.0.attn.c_attn.bias", "transformer.wpe.weight"
    assert {bad, odd} <= set(shards["a.safetensors"])
    tensors[bad] = np.full_like(tensors[bad], np.nan)
    tensors[odd] = tensors[odd].astype(np.int8)
    save_file({**tensors, "stranger": np.ones(3)}, folder / "a.safetensors")
    (folder / "b.safetensors").unlink()
    message = refusal(folder)
    for part in (
        f"{bad} holds values that are not finite (in a.safetensors)",
        f"{odd} of type I8 (",
        "unexpected stranger (in a.safetensors)",  # in the file, not in the index
        f"no file b.safetensors, where {INDEX} finds {shards['b.safetensors'][0]}, ",
    ):
        assert part in message


def test_a_shard_that_does_not_read_is_named_with_what_it_should_hold(folder):
    shards = shard(folder)
    (folder / "b.safetensors").write_bytes(b"\xff" * 100)
    message = refusal(folder)
    assert f"no {shards['b.safetensors'][0]}, " in message
    assert f"`{folder / 'b.safetensors'}` must be a complete" in message


def test_prefix_of_the_tensor_names_may_be_absent(folder):
    whole = load_folder(folder)

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("transformer.")] = tensors.pop(name)

    change_tensors(folder, strip)
    assert same(load_folder(folder), whole)


def test_damage_is_named(folder):
    content = (folder / SINGLE).read_bytes()
    (folder / SINGLE).write_bytes(content[: len(content) // 2])
    assert SINGLE in refusal(folder)
    (folder / SINGLE).write_bytes(b"\xff" * 100)
    assert SINGLE in refusal(folder)
    (folder / SINGLE).unlink()
    assert "no weights" in refusal(folder)
    (folder / "tf_model.h5").write_bytes(b"")
    assert "only tf_model.h5" in refusal(folder)


def test_all_tensor_problems_are_reported_at_once(folder):
    def damage(tensors):
        tensors["transformer.wte.weight"] = tensors["transformer.wte.weight"][:-1]
        tensors["transformer.ln_f.weight"] = np.full_like(
            tensors["transformer.ln_f.weight"], np.nan
        )
        del tensors["transformer.ln_f.bias"]
        tensors["transformer.stranger"] = np.ones(3, np.float16)

    change_tensors(folder, damage)
    message = refusal(folder)
    for part in (
        f"{folder.name}` must hold",
        f"wte.weight of shape (2047, 64) (the config requires (2048, 64)) (in {SINGLE})",
        f"transformer.ln_f.weight holds values that are not finite (in {SINGLE})",
        f"missing transformer.ln_f.bias (not in {SINGLE})",
        f"unexpected transformer.stranger (in {SINGLE})",
    ):
        assert part in message


def test_a_parameter_that_no_tensor_fills_is_named(folder):
    """As if a family's table had forgotten a line."""
    described = read_config(folder)
    family, config = described.family, described.config
    short = dataclasses.replace(family, weights=lambda config: family.weights(config)[1:])
    with pytest.raises(checks.UserError) as caught:
        load_params(TensorFiles.of_folder(folder), short, config, dtype=np.dtype("float32"))
    assert "nothing for our embed/embedding" in str(caught.value)
    assert f"unexpected transformer.wte.weight (in {SINGLE})" in str(caught.value)


def as_stored(folder, name, dtype):
    """Says in the header that a tensor has another type, of values of half the size."""
    content = (folder / SINGLE).read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    first, last = header[name]["data_offsets"]
    header[name] = {**header[name], "dtype": dtype}
    values = content[8 + length :]
    half = (last - first) // 2
    for entry in header.values():
        if "data_offsets" in entry and entry["data_offsets"][0] >= last:
            entry["data_offsets"] = [offset - half for offset in entry["data_offsets"]]
    header[name]["data_offsets"] = [first, first + half]
    text = json.dumps(header).encode()
    data = values[: first + half] + values[last:]
    (folder / SINGLE).write_bytes(len(text).to_bytes(8, "little") + text + data)


def test_a_type_that_no_parameter_has_is_refused_by_file_and_tensor(folder):
    as_stored(folder, "transformer.ln_f.bias", "F8_E4M3")
    assert "transformer.ln_f.bias of type F8_E4M3 (a parameter is one of float64, float32, " in (
        message := refusal(folder)
    )
    assert f"(in {SINGLE})" in message


def test_a_value_too_large_for_the_type_asked_for_is_refused_by_file_and_tensor(folder):
    def enlarge(tensors):
        name = "transformer.ln_f.bias"
        tensors[name] = tensors[name].astype(np.float32)
        tensors[name][3] = -1e5

    change_tensors(folder, enlarge)
    assert load_folder(folder).params["final_norm"]["bias"].min() == -1e5
    with pytest.raises(checks.UserError) as caught:
        load_folder(folder, dtype="float16")
    expected = f"transformer.ln_f.bias holds 1e+05, too large for float16 (in {SINGLE})"
    assert expected in str(caught.value)


@pytest.mark.parametrize(
    ("attributes", "named"),
    [
        ({"model_type": "mamba"}, "mamba"),
        ({"add_cross_attention": True}, "add_cross_attention=True"),
        ({"is_causal": False}, "is_causal=False"),
        ({"activation_function": "mish"}, "mish"),
        ({"n_head": 7}, "num_heads"),
        ({"n_layer": -1}, "num_layers"),
    ],
)
def test_unsupported_config_is_refused_by_name(folder, attributes, named):
    change_config(folder, **attributes)
    assert named in refusal(folder)


def test_all_config_problems_are_reported_at_once(folder):
    change_config(folder, add_cross_attention=True, is_causal=False, activation_function="mish")
    message = refusal(folder)
    for part in (
        CONFIG,
        "add_cross_attention=True (only False)",
        "is_causal=False (not supported)",
        "mish",
    ):
        assert part in message


def test_a_head_is_the_embedding_where_the_files_hold_none_or_an_equal_one(folder):
    whole = load_folder(folder)
    table = "transformer.wte.weight"
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t[table].copy()}))
    assert same(load_folder(folder), whole)
    change_tensors(folder, lambda t: t.update({"lm_head.weight": t.pop(table)}))
    assert same(load_folder(folder), whole)
    change_tensors(folder, lambda t: t.update({table: t["lm_head.weight"] * 2}))
    untied = load_folder(folder)
    assert not untied.config.tied_head
    embedding, head = untied.params["embed"]["embedding"], untied.params["head"]["kernel"]
    assert (embedding == 2 * head.T).all()
    assert describe_candidate(str(folder)).num_params == untied.num_params
    untied.save(folder / "saved")
    assert same(load_folder(folder / "saved"), untied)


@pytest.mark.parametrize("variant", ["t5-1.1", "mt5"])
def test_a_t5_without_a_head_of_its_own_has_the_embedding_as_pytorch_ties_it(tmp_path, variant):
    write_tiny_checkpoint(ENCODER_DECODERS[variant], tmp_path)
    change_tensors(tmp_path, lambda t: t.pop("lm_head.weight"))
    candidate = load_folder(tmp_path)
    assert candidate.config.tied_head
    assert candidate.config.head_scale == 1.0
    candidate.save(tmp_path / "saved")
    assert same(load_folder(tmp_path / "saved"), candidate)


def test_another_family_without_its_head_is_refused(tmp_path):
    write_tiny_checkpoint(VARIANTS["llama"], tmp_path)
    change_tensors(tmp_path, lambda t: t.pop("lm_head.weight"))
    assert "missing lm_head.weight" in refusal(tmp_path)


def test_harmless_config_attributes_are_accepted(folder):
    change_config(folder, resid_pdrop=0.3, use_cache=False, task_specific_params={"a": 1}, new=1)
    assert same(load_folder(folder), lens.load_candidate(f"zoo/{SMALLEST}"))


def test_config_that_is_no_config_is_refused(folder):
    (folder / CONFIG).write_text("{")
    assert CONFIG in refusal(folder)
    (folder / CONFIG).write_text("[1]")
    assert "model_type" in refusal(folder)
    (folder / CONFIG).unlink()
    assert "must be a checkpoint folder" in refusal(folder)


def test_unknown_candidates_say_what_to_do():
    with pytest.raises(checks.UserError, match="zoo/gpt2-xs"):
        lens.load_candidate("zoo/gpt5")
    with pytest.raises(checks.UserError, match="give the path of the folder"):
        lens.load_candidate("nobody/has-this-model")  # HF_HUB_OFFLINE=1 in the tests


def test_a_missing_download_says_what_to_do():
    with pytest.raises(checks.UserError) as caught:
        lens.load_candidate("facebook/opt-350m")  # HF_HUB_OFFLINE=1 in the tests
    for part in ("hf download facebook/opt-350m", "HF_HUB_OFFLINE=1 forbids", "folder"):
        assert part in str(caught.value)


def test_a_model_that_the_cache_holds_loads_without_a_network(tmp_path, monkeypatch):
    cached = tmp_path / "models--somebody--small"
    shutil.copytree(FOLDER / SMALLEST, cached / "snapshots" / "1234")
    (cached / "refs").mkdir()
    (cached / "refs" / "main").write_text("1234")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    candidate = lens.load_candidate("somebody/small")  # HF_HUB_OFFLINE=1 in the tests
    assert candidate.name == "somebody/small"
    assert same(candidate, lens.load_candidate(f"zoo/{SMALLEST}"))


def test_dtype_is_that_asked_for():
    for dtype in ("float32", "bfloat16", "float16"):
        candidate = lens.load_candidate(f"zoo/{SMALLEST}", dtype=dtype)
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(candidate.params)} == {dtype}
    if not jax.config.jax_enable_x64:
        with pytest.raises(checks.UserError, match="JAX_ENABLE_X64"):
            lens.load_candidate(f"zoo/{SMALLEST}", dtype="float64")


PRETRAINING_TEXT = {
    "kjv": "And God said, Let there be light: and there was light. And God saw the light, that it "
    "was good: and God divided the light from the darkness.",
    "code": "    def __init__(self, config):\n        super().__init__()\n"
    "        self.config = config\n    def __len__(self):\n        return len(self.config)\n",
}


def pretraining_batch(candidate, text, objective):
    """What the candidate learned from: the text, or thirty ways of hiding parts of it."""
    tokens = candidate.tokenizer
    ids = np.array(tokens([text], add_special_tokens=False)["input_ids"], np.int32)
    if not candidate.is_encoder_decoder:
        return {"input_ids": ids, "attention_mask": np.ones_like(ids), "labels": ids}
    rng = np.random.default_rng(0)
    if objective == "text infilling":
        noise = functools.partial(text_infilling, rng=rng, mask=tokens.mask_token_id)
    else:
        sentinels = tokens.convert_tokens_to_ids([f"<extra_id_{i}>" for i in range(16)])
        noise = functools.partial(span_corruption, rng=rng, sentinels=sentinels)
    examples = denoising_examples(
        np.repeat(ids, 30, axis=0),
        noise,
        bos_token_id=tokens.bos_token_id,
        eos_token_id=tokens.eos_token_id,
        pad_token_id=tokens.pad_token_id,
        decoder_start_token_id=candidate.decoder_start_token_id,
    )
    return examples.batch(np.arange(30))


@pytest.mark.parametrize("name", ZOO)
def test_bundled_candidate_really_was_pretrained(name):
    """Its loss on text of its own pretraining is far below the log of the vocabulary."""
    candidate = lens.load_candidate(f"zoo/{name}")
    report = json.loads((FOLDER / name / "pretraining.json").read_text())
    loop = Loop(
        candidate.apply_fn,
        OptimizerConfig(learning_rate=1.0),
        shift=not candidate.is_encoder_decoder,
    )
    for corpus in set(report["corpora"]) & set(PRETRAINING_TEXT):
        batch = pretraining_batch(candidate, PRETRAINING_TEXT[corpus], report.get("objective"))
        loss = loop.objective(candidate.params, [batch])
        assert loss < np.log(candidate.config.vocab_size) - 2.0, corpus
        blank = jax.tree.map(np.zeros_like, candidate.params)  # the control: all tokens alike
        assert loop.objective(blank, [batch]) > np.log(candidate.config.vocab_size) - 0.01


def test_the_zoo_is_small_enough_to_be_bundled():
    size = sum(path.stat().st_size for path in FOLDER.rglob("*") if path.is_file())
    assert size <= 30e6


def test_the_zoo_covers_the_families_of_the_paper_and_a_llama():
    families = {lens.load_candidate(f"zoo/{name}").family.name for name in ZOO}
    assert families == {"gpt2", "opt", "t5", "mt5", "bart", "llama"}
    assert len(ZOO) >= 12
