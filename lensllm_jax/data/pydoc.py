r"""Task ``pydoc``: the summary line of a docstring, given the rest of it.

A docstring of a Python package opens with a summary line, a blank line, and a body.  The body
(with its white space collapsed, truncated to 400 characters at a word) followed by
``"\nSummary:"`` is the prompt, and the summary (20 to 160 characters) is the target: abstractive
summarisation, as in Gigaword, with text that comes with the installation.

The docstrings come from the SOURCE of installed packages, which are not imported: those whose
pinned version is the same for every Python of the lock (``requirements.txt``), so that the task
is too; jax, flax, numpy and scipy have one pin per Python.  In transformers most docstrings
repeat from model to model.

The split is by module, by a hash of its name, since docstrings of one module are often near
copies; what still repeats, in summary or in body, stays only in the split nearest to test.
"""

import ast
import hashlib
import importlib.metadata
import inspect
import re
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

from lensllm_jax.data.installed import installed_files
from lensllm_jax.data.subsets import subset_order
from lensllm_jax.data.task import Example, Task, build_task, loose_keys_of_both

# Each has one pin for every Python in requirements.txt.
PACKAGES = (
    "absl-py",
    "anyio",
    "datasets",
    "fonttools",
    "fsspec",
    "huggingface-hub",
    "matplotlib",
    "optax",
    "orbax-checkpoint",
    "packaging",
    "pandas",
    "pillow",
    "pydantic",
    "rich",
    "treescope",
)
SEPARATOR = "\nSummary:"  # ends every prompt; tells the model what to write
LONGEST_BODY = 400  # characters of the body in the prompt
_SHORTEST_BODY = 40  # characters; a shorter body says nothing to summarise
SHORTEST_SUMMARY, LONGEST_SUMMARY = 20, 160  # characters
_TEST_SHARE, _VALIDATION_SHARE = 0.125, 0.06  # of modules
_SIZES = {"test": 1024, "validation": 512}
_ORDER_SEED = 257  # of the order inside a split (PEP 257, docstring conventions)

# A string literal that is a line of its own, first after a colon or at the top of a file.
_DOCSTRING = re.compile(
    r"""
    (?:\A|:)[ \t]*(?:\#[^\n]*)?              # the end of `def ...:`, and a comment
    (?:\n[ \t]*(?:\#[^\n]*)?)*\n?[ \t]*      # blank lines and comments
    (?P<literal>[rRuU]?(?:
        \"{3}(?:\\.|(?!\"{3})[^\\])*\"{3} | '{3}(?:\\.|(?!'{3})[^\\])*'{3}
        | \"(?:\\.|[^\\\n"])*\" | '(?:\\.|[^\\\n'])*'
    ))
    [ \t]*(?:\#[^\n]*)?(?:\n|\Z)             # nothing else on its last line
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Source:
    """One Python file of an installed package."""

    module: str  # path inside site-packages, with /
    text: str  # its source


def load_pydoc() -> Task:
    """The task: 512 pairs for validation, 1,024 for test and, from the lock, 6,746 for training.

    ``description`` names the versions that were read.

    Raises:
        UserError: if one of the packages is not installed.
    """
    splits: dict[str, list[Example]] = {"train": [], "validation": [], "test": []}
    for package in PACKAGES:
        for source in python_sources(package):
            splits[_split_of(source.module)].extend(pairs(source.text))
    shuffled = {
        split: [examples[i] for i in subset_order(len(examples), seed=_ORDER_SEED)]
        for split, examples in splits.items()
    }
    versions = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in PACKAGES)
    return build_task(
        "pydoc",
        f"docstring body -> summary line, mined from the sources of {versions}",
        train=shuffled["train"],
        validation=shuffled["validation"],
        test=shuffled["test"],
        keys=loose_keys_of_both,
        sizes=_SIZES,
    )


def pairs(source: str) -> Iterator[Example]:
    """One (body, summary) example per docstring with a summary, a blank line and a body, in order.

    Docstrings are found by pattern, not by a parse, which takes five times as long; over every
    file of ``PACKAGES`` a test finds the same pairs as :func:`ast.get_docstring` does.
    """
    for found in _DOCSTRING.finditer(source):
        literal = found["literal"]
        if "\n" not in literal and "\\n" not in literal:
            continue  # one line has no body
        try:
            text = inspect.cleandoc(_literal_text(literal))
        except SyntaxError:
            continue  # the pattern began inside another string; no docstring is lost by it
        summary, _, body = text.partition("\n\n")
        target, rest = " ".join(summary.split()), " ".join(body.split())
        if SHORTEST_SUMMARY <= len(target) <= LONGEST_SUMMARY and len(rest) >= _SHORTEST_BODY:
            yield Example(_cut(rest) + SEPARATOR, target)


def _literal_text(literal: str) -> str:
    """The value of one string literal; SyntaxError if it is none."""
    with warnings.catch_warnings():
        # An old escape such as "\\d" is a matter for the package's authors.
        warnings.simplefilter("ignore", SyntaxWarning)
        warnings.simplefilter("ignore", DeprecationWarning)  # the same warning on Python 3.11
        return ast.literal_eval(literal.strip())


def python_sources(package: str) -> Iterator[_Source]:
    """The Python files of an installed distribution by name, its tests left out."""
    for name, path in installed_files(package):
        if path.suffix == ".py" and not {"tests", "testing", ".."} & set(name.split("/")):
            yield _Source(name, path.read_text(encoding="utf-8"))


def _cut(body: str) -> str:
    if len(body) <= LONGEST_BODY:
        return body
    return body[:LONGEST_BODY].rsplit(" ", 1)[0]


def _split_of(module: str) -> str:
    """Test, validation or train, by the hash of the module's path: no random state to carry."""
    share = int.from_bytes(hashlib.sha256(module.encode()).digest()[:8], "big") / 2**64
    if share < _TEST_SHARE:
        return "test"
    return "validation" if share < _TEST_SHARE + _VALIDATION_SHARE else "train"
