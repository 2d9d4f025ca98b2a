"""Small tokenizers, each with the special tokens of one family of checkpoints."""

import pytest
import tokenizers
import transformers

from lensllm_jax.data.catalogue import load_task

WORDS = "<pad> <s> </s> a b c d e f g h i j Summary:".split()


def word_tokenizer(*around, **special_tokens):
    """Splits at white space; a word's id is its place in ``WORDS``; ``around`` a text ``$A``."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    if around:
        marks = [(mark, WORDS.index(mark)) for mark in around if mark != "$A"]
        model.post_processor = tokenizers.processors.TemplateProcessing(
            single=list(around), special_tokens=marks
        )
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special_tokens)


@pytest.fixture(scope="session")
def opt_like():
    return word_tokenizer("<s>", "$A", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def bart_like():
    return word_tokenizer("<s>", "$A", "</s>", bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def t5_like():
    return word_tokenizer("$A", "</s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def pythia_like():
    """One special token for everything, and no padding."""
    return word_tokenizer(eos_token="</s>")


@pytest.fixture(scope="session")
def built_in_tasks():
    return {name: load_task(name) for name in ("sotu", "pydoc")}
