"""A folder's tokenizer is read as it stands, runs nothing, and fits the embedding."""

import contextlib
import json
import os
import shutil
import sys

import numpy as np
import pytest
import tokenizers
import transformers

import lensllm_jax as lens
from lensllm_jax import checks
from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.checkpoints.tokenizer import check_texts
from lensllm_jax.checkpoints.zoo import FOLDER
from tests.checkpoints.changes import SMALLEST, change_config, change_tensors


def test_tokenizer_is_read_late_and_must_fit_the_embedding(folder):
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    candidate = load_folder(folder)
    with pytest.raises(checks.UserError, match="must hold a tokenizer"):
        _ = candidate.tokenizer
    shutil.copy(FOLDER / SMALLEST / "tokenizer.json", folder)
    shutil.copy(FOLDER / SMALLEST / "tokenizer_config.json", folder)
    change_config(folder, vocab_size=100)
    change_tensors(
        folder,
        lambda t: t.update({"transformer.wte.weight": t["transformer.wte.weight"][:100]}),
    )
    with pytest.raises(checks.UserError) as caught:
        _ = load_folder(folder).tokenizer
    for part in (f"`{folder / 'tokenizer.json'}`", "100 tokens", "transformer.wte.weight", "2048"):
        assert part in str(caught.value)


def add_token(folder, **settings):
    """One token more than the embedding has rows; a folder read anew."""
    path = str(folder / "tokenizer.json")
    tokens = tokenizers.Tokenizer.from_file(path)
    tokens.add_tokens([tokenizers.AddedToken("<image>", **settings)])
    tokens.save(path)
    return load_folder(folder)


def test_a_special_token_that_no_text_contains_may_lack_a_row(folder):
    candidate = add_token(folder, special=True)  # as Gemma 3 has one for images
    rows = candidate.config.vocab_size
    assert len(candidate.tokenizer) == rows + 1
    ids = np.array([[5, rows]], np.int32)  # a text that spells it out all the same
    batch = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    logits = np.asarray(candidate.apply_fn(candidate.params, batch))
    assert np.isnan(logits[0, 1]).all()
    rewrite(folder / "tokenizer_config.json", eos_token="<image>")  # the control: one in use
    with pytest.raises(checks.UserError, match=r"at most 2048 .*got 2049, '<image>' with id 2048"):
        _ = load_folder(folder).tokenizer


def test_a_word_that_lacks_a_row_is_refused(folder):
    with pytest.raises(checks.UserError, match=r"at most 2048 .*got 2049"):
        _ = add_token(folder, special=False).tokenizer


def test_a_sentencepiece_file_without_its_library_says_what_to_install(folder, monkeypatch):
    (folder / "tokenizer.json").unlink()
    (folder / "spiece.model").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(checks.UserError, match=r"spiece\.model.*pip install sentencepiece"):
        _ = load_folder(folder).tokenizer


@pytest.mark.parametrize("name", ["t5-xs", "mt5-xs", "bart-xs"])
def test_encoder_decoders_have_the_special_tokens_of_their_families(name):
    candidate = lens.load_candidate(f"zoo/{name}")
    tokens = candidate.tokenizer
    roles = {"eos_token": "</s>", "pad_token": "<pad>"}
    hidden = [f"<extra_id_{i}>" for i in range(16)]
    if name == "bart-xs":
        roles |= {"bos_token": "<s>", "mask_token": "<mask>"}
        hidden = ["<mask>"]
    assert {role: getattr(tokens, role) for role in roles} == roles
    start = tokens.eos_token_id if name == "bart-xs" else tokens.pad_token_id
    assert candidate.decoder_start_token_id == start
    for token in (*roles.values(), *hidden):  # one token each, within the embedding
        (number,) = tokens(token, add_special_tokens=False)["input_ids"]
        assert number < candidate.config.vocab_size


def rewrite(path, **changes):
    content = json.loads(path.read_text())
    content = {k: v for k, v in {**content, **changes}.items() if v is not None}
    path.write_text(json.dumps(content))


def test_a_tokenizer_without_special_tokens_gets_those_of_the_config(folder):
    rewrite(folder / "tokenizer_config.json", eos_token=None, pad_token=None)
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    change_config(folder, eos_token_id=[5, 6], pad_token_id=7)
    tokenizer = load_folder(folder).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 7)
    change_config(folder, eos_token_id=5, pad_token_id=None)
    tokenizer = load_folder(folder).tokenizer
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (5, 5)
    change_config(folder, eos_token_id=50256)  # beyond its vocabulary
    with pytest.raises(checks.UserError, match="must have an end token"):
        _ = load_folder(folder).tokenizer


TEXT = "In 1234 the cafe\u0301 of <|endoftext|> opened."


def changed_tokenizer(folder, **components):
    """A folder whose tokenizer.json divides text in its own way."""
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text()) | components
    path.write_text(json.dumps(content))
    return tokenizers.Tokenizer.from_file(str(path))


DIGITS = {
    "type": "Sequence",
    "pretokenizers": [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ],
}


@pytest.mark.parametrize("name", [None, "GPT2Tokenizer", "PreTrainedTokenizerFast", "RagTokenizer"])
@pytest.mark.parametrize("components", [{"pre_tokenizer": DIGITS}, {"normalizer": {"type": "NFC"}}])
def test_text_is_divided_as_tokenizer_json_says_whatever_class_saved_it(folder, name, components):
    plain = load_folder(folder).tokenizer(TEXT)["input_ids"]
    exact = changed_tokenizer(folder, **components)
    rewrite(folder / "tokenizer_config.json", tokenizer_class=name)
    tokenizer = load_folder(folder).tokenizer
    assert tokenizer(TEXT)["input_ids"] == exact.encode(TEXT).ids != plain
    if name == "GPT2Tokenizer":  # the control: this class rebuilds it in its own way
        theirs = transformers.AutoTokenizer.from_pretrained(folder)
        assert theirs(TEXT)["input_ids"] != exact.encode(TEXT).ids


@pytest.mark.parametrize("name", lens.list_zoo())
def test_tokens_and_roles_of_bundled_candidates_are_those_of_transformers(name):
    folder = FOLDER / name.removeprefix("zoo/")
    ours = lens.load_candidate(name).tokenizer
    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    assert ours.get_vocab() == theirs.get_vocab()
    for role in ("bos_token", "eos_token", "unk_token", "mask_token"):
        assert getattr(ours, role) == getattr(theirs, role)
    for text in (TEXT, "</s> <extra_id_3>  a\n\n b", ""):
        assert ours(text)["input_ids"] == theirs(text)["input_ids"]


def test_roles_that_no_file_gives_are_those_of_the_class(folder):
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')  # as GPT-2's
    (folder / "special_tokens_map.json").unlink(missing_ok=True)
    change_config(folder, eos_token_id=None, bos_token_id=None)
    tokenizer = load_folder(folder).tokenizer
    assert (tokenizer.bos_token, tokenizer.eos_token) == ("<|endoftext|>", "<|endoftext|>")
    (folder / "tokenizer_config.json").write_text('{"bos_token": null}')  # said to be none
    assert load_folder(folder).tokenizer.bos_token is None


def read_or_refusal(folder):
    """The tokenizer, or the one line that says that it does not load."""
    candidate = load_folder(folder)
    with contextlib.suppress(checks.UserError):
        return candidate.tokenizer
    with pytest.raises(checks.UserError, match="does not load") as caught:
        _ = candidate.tokenizer
    (line,) = str(caught.value).splitlines()
    return line


CODE = "import pathlib\npathlib.Path({!r}).touch()\n"


@pytest.mark.parametrize("has_json", [True, False])
def test_code_of_a_folder_is_not_run(folder, has_json, monkeypatch):
    trace = folder / "ran"
    for module in ("configuration_own", "tokenization_own", "modeling_own"):
        (folder / f"{module}.py").write_text(CODE.format(str(trace)))
    auto_map = {
        "AutoConfig": "configuration_own.OwnConfig",
        "AutoTokenizer": ["tokenization_own.OwnTokenizer", None],
        "AutoModelForCausalLM": "modeling_own.OwnModel",
    }
    change_config(folder, auto_map=auto_map)
    rewrite(folder / "tokenizer_config.json", auto_map=auto_map, tokenizer_class="OwnTokenizer")
    if not has_json:
        content = json.loads((folder / "tokenizer.json").read_text())["model"]
        (folder / "vocab.json").write_text(json.dumps(content["vocab"]))
        merges = (pair if isinstance(pair, str) else " ".join(pair) for pair in content["merges"])
        (folder / "merges.txt").write_text("\n".join(merges))
        (folder / "tokenizer.json").unlink()
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("a question was put"))
    assert len(read_or_refusal(folder)) > 0
    assert not trace.exists()
    exec((folder / "tokenization_own.py").read_text())  # the control: it would have left a trace
    assert trace.exists()


@pytest.mark.parametrize(
    "settings",
    [
        {"model_max_length": "gelu"},
        {"tokenizer_class": "RagTokenizer"},
        {"tokenizer_class": 3},
        {"chat_template": 7},
        {"eos_token": {"content": 3}},
        {"added_tokens_decoder": [1]},
    ],
)
def test_odd_settings_are_ignored_or_refused_in_one_line(folder, settings):
    rewrite(folder / "tokenizer_config.json", **settings)
    read = read_or_refusal(folder)
    assert isinstance(read, str) or read("a b")["input_ids"]


def test_a_panic_of_the_library_is_one_line(folder):
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["continuing_subword_prefix"] = "gelu"
    (folder / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(checks.UserError, match="does not load"):
        _ = load_folder(folder).tokenizer


def test_padding_beyond_the_embedding_is_never_looked_up(folder):
    tokenizer = add_token(folder, special=True).tokenizer
    rewrite(folder / "tokenizer_config.json", pad_token="<image>")
    assert load_folder(folder).tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_text_with_a_token_beyond_the_embedding_is_refused_by_candidate_token_and_id(folder):
    candidate = add_token(folder, special=True)
    rows = candidate.config.vocab_size
    check_texts("a", ["one", "two"], candidate.tokenizer, vocab_size=rows)
    with pytest.raises(checks.UserError, match=r"tokens a knows, got '<image>' with id 2048"):
        check_texts("a", ["one", "an <image>"], candidate.tokenizer, vocab_size=rows)


@pytest.mark.parametrize("name", ["tokenizer.json", "tokenizer_config.json", "merges.txt"])
def test_a_pipe_in_place_of_a_file_is_not_waited_for(folder, name):
    (folder / name).unlink(missing_ok=True)
    os.mkfifo(folder / name)
    with pytest.raises(checks.UserError, match=f"{name}` must be a regular file"):
        _ = load_folder(folder).tokenizer


@pytest.mark.parametrize("token", [{"content": None}, "", {"a": 1}])
def test_a_padding_token_that_is_none_is_the_end_token(folder, token):
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "pad_token": token}))
    tokenizer = load_folder(folder).tokenizer
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
