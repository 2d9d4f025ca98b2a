"""The code in docs/ runs and prints what is shown."""

import doctest
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
DOCS = TESTS.parent / "docs"
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
WITH_CODE = sorted(path for path in DOCS.glob("*.md") if "```python" in path.read_text())


def failures(text, name):
    """Doctest's report on the examples of a page, in one namespace."""
    # a closing fence would count as output; lines stay where they are
    text = re.sub(r"^```.*$", "", text, flags=re.MULTILINE)
    test = doctest.DocTestParser().get_doctest(text, {}, name, name, 0)
    assert test.examples
    report = []
    doctest.DocTestRunner(optionflags=OPTIONS).run(test, out=report.append)
    return "".join(report)


@pytest.mark.parametrize("path", WITH_CODE, ids=lambda path: path.name)
def test_code_prints_what_is_shown_below_it(path):
    report = failures(path.read_text(), path.name)
    assert not report, report


def test_a_wrong_page_is_caught():
    assert "Expected:\n    3" in failures("```python\n>>> 1 + 1\n3\n\n```\n", "wrong")


def unnamed(page):
    """Modules and goldens that tests share and a page does not name in its first columns."""
    first = "".join(re.findall(r"^\| `.*?\|", page, re.MULTILINE))
    listed_apart = {TESTS / "messages" / "mistakes", TESTS / "goldens"}
    helpers = [path for path in TESTS.rglob("*.py") if path.parent not in listed_apart]
    shared = {str(p.relative_to(TESTS)) for p in helpers if not re.match("test_|__init__", p.name)}
    goldens = [
        p.name for p in (TESTS / "goldens").iterdir() if p.suffix in (".npz", ".csv", ".json")
    ]
    shared |= {re.sub(r"^logits_.*\.", "logits_<model type>.", name) for name in goldens}
    return shared - {"conftest.py"} - set(re.findall(r"`([^`]+)`", first))


def test_the_page_of_the_tests_names_what_they_share():
    page = (TESTS / "README.md").read_text()
    assert not unnamed(page)
    assert unnamed(page.replace("`oracles.py`", "")) == {"oracles.py"}
