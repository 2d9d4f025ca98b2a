"""Pretraining text: it is what it says, and holds nothing that a task is scored on."""

import ast
import itertools

import pytest

from lensllm_jax.checks import UserError
from lensllm_jax.data.corpora import _without_docstrings, load_corpus
from lensllm_jax.data.packing import sentences
from lensllm_jax.data.task import normalised

SHORTEST = 40  # characters; shorter lines ("See also.") repeat everywhere and say nothing


def scored_lines(task, splits):
    """Normalised targets of pydoc, or sentences of the targets of sotu, that are not short."""
    targets = itertools.chain.from_iterable(getattr(task, split) for split in splits)
    lines = itertools.chain.from_iterable(sentences(e.target) for e in targets)
    return {normalised(line) for line in lines if len(line) > SHORTEST}


def found_in(documents, lines):
    """The lines that stand in a document, word for word after normalising."""
    by_start = {}
    for line in lines:
        words = line.split()
        by_start.setdefault(tuple(words[:4]), []).append(words)
    found = set()
    for document in documents:
        text = normalised(document).split()
        for i, start in enumerate(zip(text, text[1:], text[2:], text[3:], strict=False)):
            for words in by_start.get(start, ()):
                if text[i : i + len(words)] == words:
                    found.add(" ".join(words))
    return found


def assert_apart(documents, tasks, *, held_out_found=(), most_train):
    held_out = {line for t in tasks.values() for line in scored_lines(t, ("validation", "test"))}
    train = {line for task in tasks.values() for line in scored_lines(task, ("train",))}
    assert len(held_out) > 3_000
    assert found_in(documents, held_out) == set(held_out_found)
    assert len(found_in(documents, train)) <= most_train


def test_the_bible_holds_one_verse_that_a_president_quotes(built_in_tasks):
    quoted = "one generation passeth away and another generation cometh"  # Ecclesiastes 1:4
    assert_apart(load_corpus("kjv"), built_in_tasks, held_out_found=[quoted], most_train=1)


def test_the_language_reference_holds_nothing_that_a_task_is_scored_on(built_in_tasks):
    # Two one-line summaries of str.partition and str.rpartition stand in pandas as well.
    assert_apart(load_corpus("topics"), built_in_tasks, most_train=2)


@pytest.mark.slow
def test_code_holds_nothing_that_a_task_is_scored_on(built_in_tasks):
    documents = load_corpus("code")
    assert 12_000_000 <= sum(map(len, documents)) < 12_100_000
    assert_apart(documents, built_in_tasks, most_train=1)


def test_the_search_finds_what_is_there(built_in_tasks):
    target = next(e.target for e in built_in_tasks["pydoc"].test if len(e.target) > 60)
    document = f"# Some code.\n# {target}\nx = 1\n"
    lines = scored_lines(built_in_tasks["pydoc"], ("test",))
    assert normalised(sentences(target)[0]) in found_in([document], lines)


def test_the_bible_has_its_chapters_in_order():
    chapters = load_corpus("kjv")
    assert len(chapters) == 1189
    assert chapters[-1].endswith("Amen.")
    assert chapters[0].startswith("In the beginning God created")  # and no "1:1"
    assert chapters[478].startswith("Blessed is the man")  # Psalm 1


def test_docstrings_leave_the_code_and_comments_stay():
    source = (
        '"""Module."""\n# why\ndef f(x):\n'
        '    """One.\n\n    Two.\n    """\n'
        '    return "x"  # kept\n'
    )
    left = _without_docstrings(source)
    assert left == '# why\ndef f(x):\n    return "x"  # kept'
    assert ast.get_docstring(ast.parse(left)) is None


def test_an_unknown_corpus_is_refused():
    with pytest.raises(UserError, match="code, kjv, topics, got 'pile'"):
        load_corpus("pile")
