"""Encoder-decoders are fine-tuned, read by a kernel and scored like decoders."""

import dataclasses
import json

import numpy as np
import pytest
import tokenizers
import transformers

from lensllm_jax.checkpoints.candidate import load_folder
from lensllm_jax.data.prefixes import with_prompts
from lensllm_jax.data.task import Example, build_task
from lensllm_jax.measurement.measurement import Measurement, MeasurementConfig
from tests.models.encoder_decoders import ENCODER_DECODERS
from tests.models.tiny import write_tiny_checkpoint
from tests.models.variants import VARIANTS

WORDS = ["<s>", "<pad>", "</s>", *"the king of land day men came went one two three four".split()]
SPECIALS = {
    "t5": {"eos_token": "</s>", "pad_token": "<pad>"},
    "bart": {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"},
    "opt": {"bos_token": "</s>", "eos_token": "</s>", "pad_token": "<pad>"},
}


@pytest.fixture(scope="module")
def task():
    rng = np.random.default_rng(0)
    texts = [Example("", " ".join(rng.choice(WORDS[3:], 6))) for _ in range(40)]
    return with_prompts(
        build_task("words", "a toy", train=texts[:24], validation=texts[24:32], test=texts[32:])
    )


def measurement(variant, task, folder, **changes):
    """A tiny candidate with a tokenizer of words, on the task."""
    attributes = {**VARIANTS, **ENCODER_DECODERS}[variant]
    folder.mkdir(exist_ok=True)
    write_tiny_checkpoint(attributes, folder)
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<s>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=model, **SPECIALS[variant])
    fast.save_pretrained(folder)
    settings = {
        "batch_size": 4, "max_epochs": 4, "num_kernel_examples": 5,
        **changes,
    }  # fmt: skip
    return Measurement(load_folder(folder), task, config=MeasurementConfig(**settings))


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["t5", "bart"])
def test_fine_tuning_lowers_the_loss_and_the_kernel_is_symmetric(variant, task, tmp_path):
    measured = measurement(variant, task, tmp_path, learning_rate=0.02)
    before = measured.zero_shot().loss
    assert measured.fine_tune(24).result.test_loss < before
    theta = measured.kernel().theta
    assert theta.shape == (5, 5)
    # float32 kernel entries from different tiles agree to rounding
    assert np.abs(theta - theta.T).max() <= 1e-4 * np.abs(theta).max()
    assert np.linalg.eigvalsh(theta.astype(np.float64)).min() > -1e-4 * np.abs(theta).max()


def test_decoders_and_encoder_decoders_are_scored_on_the_same_tokens(task, tmp_path):
    scored = {}
    for variant in ("t5", "bart", "opt"):
        labels = measurement(variant, task, tmp_path / variant).subset(24)["labels"]
        scored[variant] = [row[row != -100].tolist() for row in labels]
    assert scored["t5"] == scored["bart"] == scored["opt"]


def test_every_subset_has_the_length_of_the_longest_record_of_the_task(task, tmp_path):
    long = Example("the king", " ".join(WORDS[3:12]))
    task = dataclasses.replace(task, validation=(long,), fingerprint="with a long record")
    for variant, lengths in (("t5", (8, 16)), ("opt", (16, 0))):
        measured = measurement(variant, task, tmp_path / variant)
        assert measured.lengths == lengths
        assert measured.subset(2)["labels"].shape == (2, 16)
        scored = measured.splits(2).validation["labels"] != -100
        assert scored.sum() == len(long.target.split()) + 1


def test_validation_grows_with_the_subset_and_is_nested(task, tmp_path):
    sizes = [MeasurementConfig().validation_size(size) for size in (8, 512, 600, 10_000)]
    assert sizes == [64, 64, 75, 1250]
    texts = [Example("", f"{WORDS[3 + i % 9]} {WORDS[3 + i // 9]}") for i in range(80)]
    task = build_task("pairs", "a toy", train=task.train, validation=texts, test=task.test)
    few, default, every = (
        measurement("opt", task, tmp_path, num_validation_examples=count).splits(24).validation
        for count in (6, None, 1000)
    )
    assert [len(rows["labels"]) for rows in (few, default, every)] == [6, 64, 80]
    assert np.array_equal(every["input_ids"][:64], default["input_ids"])
    assert np.array_equal(every["input_ids"][:6], few["input_ids"])


def test_a_task_with_prompts_stays_the_same_task(task):
    assert with_prompts(task) is task
    assert all(example.prompt for example in task.train)


def test_the_tokenizer_knows_its_special_tokens_after_loading(task, tmp_path):
    tokenizer = measurement("bart", task, tmp_path).candidate.tokenizer
    assert (tokenizer.bos_token_id, tokenizer.pad_token_id, tokenizer.eos_token_id) == (0, 1, 2)
    assert json.loads((tmp_path / "tokenizer_config.json").read_text())["bos_token"] == "<s>"
