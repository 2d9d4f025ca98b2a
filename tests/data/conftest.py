"""Small tokenizers, each with the special tokens of one family of checkpoints."""

import pytest
import tokenizers
import transformers

from lensllm_jax.data.catalogue import load_task

WORDS = "<pad> <s> </s> a b c d e f g h i j Summary:".split()


def word_tokenizer(**special_tokens):
    """Splits at white space; a word's id is its place in ``WORDS``."""
    model = tokenizers.Tokenizer(
        tokenizers.models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<pad>")
    )
    model.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(tokenizer_object=model, **special_tokens)


@pytest.fixture(scope="session")
def opt_like():
    return word_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def t5_like():
    return word_tokenizer(eos_token="</s>", pad_token="<pad>")


@pytest.fixture(scope="session")
def pythia_like():
    """One special token for everything, and no padding."""
    return word_tokenizer(eos_token="</s>")


@pytest.fixture(scope="session")
def built_in_tasks():
    return {name: load_task(name) for name in ("sotu", "pydoc")}
