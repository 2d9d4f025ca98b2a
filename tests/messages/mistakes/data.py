"""Mistakes with texts: files, tasks, and how they are encoded."""

import sys
from pathlib import Path

import numpy as np
import pytest

import lensllm_jax as lens
from lensllm_jax.data import cuts, encoding, lengths, prefixes, sotu, subsets
from lensllm_jax.data.buckets import check_buckets
from lensllm_jax.data.corpora import load_corpus
from lensllm_jax.data.denoising import span_corruption
from lensllm_jax.data.hub import read_hub_task
from lensllm_jax.data.installed import installed_files
from lensllm_jax.data.task import Example, Task, build_task
from tests.data.conftest import word_tokenizer

TOKENIZER = word_tokenizer(bos_token="<s>", eos_token="</s>", pad_token="<pad>")
ONE, TWO = Example("", "a"), Example("", "a b")


def encode(*examples, tokenizer=TOKENIZER, **settings):
    return encoding.encode_causal(examples, tokenizer, **settings)


def of_fields(**fields):
    return Task.from_records([{"prompt": "a", "target": "b"}] * 30, **fields)


def with_template(template):
    tokenizer = word_tokenizer(eos_token="</s>")
    tokenizer.chat_template = template
    return encode(ONE, tokenizer=tokenizer, chat=True)


def load(path, content):
    """The task that a file of this content is."""
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return lens.load_task(path)


def load_unreadable(path):
    with pytest.MonkeyPatch.context() as patch:
        path.parent.mkdir(exist_ok=True)
        path.write_text("")
        patch.setattr(Path, "open", refuse)
        lens.load_task(path)


def refuse(path, **_):
    raise PermissionError(13, "Permission denied", path.name)


def records(rows):
    return Task.from_records(rows)


def corrupt(num_tokens, num_sentinels):
    rng = np.random.default_rng(0)
    return span_corruption(np.arange(num_tokens), rng, sentinels=range(num_sentinels))


def speeches_without_their_package():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "sotu", None)
        sotu.read_speeches()


# (argument, key phrases, the mistake in an empty folder)
MISTAKES = [
    ("name", "one of ... got 'glue'", lambda tmp: lens.load_task("glue")),
    ("prompt_field", "a column as text, got 3", lambda tmp: of_fields(prompt_field=3)),
    ("target_field", "a column as text, got b'a'", lambda tmp: of_fields(target_field=b"a")),
    ("target_field", "a column as text, got None", lambda tmp: of_fields(target_field=None)),
    (
        "name",
        "text or a path, got list: records become a task by `Task.from_records`",
        lambda tmp: lens.load_task([{"prompt": "a", "target": "b"}]),
    ),
    ("path", "end in .txt ... got 'a.xlsx'", lambda tmp: load(tmp / "a.xlsx", "a\tb\n")),
    ("a.txt", "be text, got a NUL ... UTF-8", lambda tmp: load(tmp / "a.txt", "a\0b")),
    ("task 'a'", "hold at least 20 ... got 0", lambda tmp: load(tmp / "a.txt", "")),
    ("a.csv", "readable ... got [Errno", lambda tmp: load_unreadable(tmp / "a.csv")),
    (
        "a.csv",
        "name each column once ... got 'target' twice",
        lambda tmp: load(tmp / "a.csv", "target,target\na,b\n"),
    ),
    ("a.csv: row 2", "have 2 cells ... got 1", lambda tmp: load(tmp / "a.csv", "prompt,target\na")),
    ("a.json", "a JSON array of objects ... got", lambda tmp: load(tmp / "a.json", "[1,")),
    ("records", "list of dicts ... got dict of train", lambda tmp: records({"train": []})),
    ("records", "hold dicts ... got int in record 1", lambda tmp: records([1])),
    (
        "field 'target'",
        "name one column ... got 'Target', 'TARGET'",
        lambda tmp: records([{"prompt": "a", "Target": "b", "TARGET": "c"}]),
    ),
    (
        "records",
        "have whole characters ... got half of a surrogate pair",
        lambda tmp: records([{"prompt": "a", "target": "\ud83d"}]),
    ),
    (
        "records",
        "have messages with 'role' ... got 'hello' in record 1",
        lambda tmp: records([{"messages": "hello"}]),
    ),
    (
        "records",
        "end every conversation ... got 'user' in record 1",
        lambda tmp: records([{"messages": [{"role": "user", "content": "a"}]}]),
    ),
    ("a.jsonl", "UTF-8 text", lambda tmp: load(tmp / "a.jsonl", b"\xff\xfe")),
    ("a.parquet", "Parquet file", lambda tmp: load(tmp / "a.parquet", "no parquet")),
    (
        "a.jsonl",
        "have text in field ... got None in record 1",
        lambda tmp: load(tmp / "a.jsonl", '{"text": "a"}\n'),
    ),
    (
        "a.jsonl",
        "hold one JSON object ... got list in line 1",
        lambda tmp: load(tmp / "a.jsonl", '["a"]\n'),
    ),
    ("a.jsonl", "hold one JSON object", lambda tmp: load(tmp / "a.jsonl", "{oops\n")),
    ("name", "one of ... got 'c4'", lambda tmp: read_hub_task("c4")),
    ("corpus", "one of ... got 'pile'", lambda tmp: load_corpus("pile")),
    (
        "package 'no-such-package'",
        "installed for its text ... got no record of it",
        lambda tmp: installed_files("no-such-package"),
    ),
    (
        "task 'sotu'",
        "find the package sotu ... got no such package",
        lambda tmp: speeches_without_their_package(),
    ),
    (
        "test",
        "hold at least one ... got none in task 't'",
        lambda tmp: build_task("t", "", train=[TWO], validation=[ONE], test=[]),
    ),
    ("examples", "hold at least one ... got none", lambda tmp: encode()),
    (
        "tokenizer",
        "have an end-of-sequence token ... got none",
        lambda tmp: encode(TWO, tokenizer=word_tokenizer(bos_token="<s>")),
    ),
    ("examples", "have a token ... got none in record 0", lambda tmp: encode(Example("a", " "))),
    ("length", "at least 4 ... got 1, cut the text", lambda tmp: encode(TWO, length=1)),
    (
        "tokenizer",
        "a fast tokenizer ... got object, save it",
        lambda tmp: encode(TWO, tokenizer=object()),
    ),
    (
        "chat_template",
        "a user's and then an assistant's turn ... got No: pass --chat_template=none",
        lambda tmp: with_template("{{ raise_exception('No') }}"),
    ),
    (
        "chat_template",
        "a user's and then an assistant's turn ... got 'x': pass --chat_template=none",
        lambda tmp: with_template("x"),
    ),
    (
        "num_test_examples",
        "positive ... got 0",
        lambda tmp: lens.load_task("pydoc").with_test_examples(0),
    ),
    ("max_bytes", "at least 8 ... got 7", lambda tmp: lens.load_task("pydoc", max_bytes=7)),
    (
        "max_bytes",
        "leave text in the train split ... got 8",
        lambda tmp: cuts.cut_task(
            Task("t", "", (Example("", " " * 9 + "a"),), (ONE,), (ONE,), {}, ""), max_bytes=8
        ),
    ),
    ("example", "have no prompt ... got Example", lambda tmp: prefixes.split_prefix(ONE)),
    (
        "validation",
        "hold a record ... got 1 of one word",
        lambda tmp: prefixes.with_prompts(Task("t", "", (TWO,), (ONE,), (TWO,), {}, "")),
    ),
    ("buckets", "positive ... got -1", lambda tmp: check_buckets((8, -1))),
    ("buckets", "ascend ... got (8, 8)", lambda tmp: check_buckets((8, 8))),
    ("tokens", "two or more ... got 1", lambda tmp: corrupt(1, 9)),
    ("sentinels", "at least 10 ... got 9", lambda tmp: corrupt(200, 9)),
    (
        "mean",
        "positive ... got 0.0",
        lambda tmp: lengths.longest_kept_for_mean(np.array([1, 2]), mean=0.0),
    ),
    (
        "mean",
        "lie within the lengths ... got 3.0",
        lambda tmp: lengths.longest_kept_for_mean(np.array([1, 2]), mean=3.0),
    ),
    (
        "mean_length",
        "2 to 2 tokens ... got 3.0",
        lambda tmp: lengths.with_mean_length(
            Task("t", "", (TWO,), (TWO,), (TWO,), {}, ""), TOKENIZER, mean=3.0
        ),
    ),
    ("smallest", "positive ... got 0", lambda tmp: subsets.nested_sizes(10, smallest=0)),
    ("largest", "at least the smallest ... got 199", lambda tmp: subsets.nested_sizes(199)),
    ("num_examples", "positive ... got 0", lambda tmp: subsets.subset_order(0, seed=0)),
    ("seed", "non-negative ... got -1", lambda tmp: subsets.subset_order(3, seed=-1)),
]
