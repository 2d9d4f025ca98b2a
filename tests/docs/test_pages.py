"""The API page names what is public, and every worked example of CONTRIBUTING.md runs."""

import dataclasses
import importlib.util
import inspect
import re
from pathlib import Path

import pytest

import lensllm_jax as lens
from tests.test_docs import failures

ROOT = Path(__file__).parents[2]


SPEC = importlib.util.spec_from_file_location("conf", ROOT / "docs" / "conf.py")
CONF = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(CONF)
API = (ROOT / "docs" / "api.md").read_text()
PUBLIC = sorted(set(lens.__all__) - {"__version__"})


def test_api_page_names_every_public_name():
    assert sorted(re.findall(r"^## (\w+)$", API, re.MULTILINE)) == PUBLIC


def test_api_page_holds_what_public_functions_return():
    listed = set(re.findall(r"autoclass:: ([\w.]+)", API))
    functions = [f for f in (getattr(lens, name) for name in PUBLIC) if inspect.isfunction(f)]
    returned = {inspect.signature(f).return_annotation for f in functions}
    ours = {f"{c.__module__}.{c.__qualname__}" for c in returned if inspect.isclass(c)
            and c.__module__.startswith("lensllm_jax.")}  # fmt: skip
    assert "lensllm_jax.selection.ranking.Ranking" in ours
    assert ours <= listed


def described(function):
    """A docstring, with that of the function whose arguments it refers to."""
    text = inspect.getdoc(function)
    other = re.search(r"arguments as :func:`(\w+)`", text)
    return text + described(getattr(lens, other[1])) if other else text


def undescribed(function):
    """Parameters that neither have an entry under Args nor appear in the text."""
    text = described(function)
    names = inspect.signature(function).parameters
    return [n for n in names if not re.search(rf"^ +\**{n}:|``\**{n}``", text, re.MULTILINE)]


def bare_fields(cls):
    """Fields that the Attributes section of the API page has no words for."""
    text = "\n".join([inspect.getdoc(cls), *CONF.fields_of(cls)])
    names = [field.name for field in dataclasses.fields(cls)]
    return [n for n in names if not re.search(rf"^ +{n}: \S", text, re.MULTILINE)]


@pytest.mark.parametrize("name", PUBLIC)
def test_docstring_says_what_goes_in_and_comes_out(name):
    """Sections of the API page; the fields of a class are under Attributes."""
    public = getattr(lens, name)
    assert inspect.getdoc(public).splitlines()[0].endswith(".")
    if inspect.isclass(public):
        assert not bare_fields(public)
        return
    signature = inspect.signature(public)
    assert signature.return_annotation is not signature.empty
    assert not undescribed(public)
    if signature.parameters:
        assert "\nRaises:\n" in inspect.getdoc(public)


def test_a_field_without_words_is_caught():
    @dataclasses.dataclass
    class Point:
        """A point."""

        x: float  # metres
        y: float

    Point.__doc__ += "\n\nAttributes:\n    x: metres"  # the source of a nested class is indented
    assert bare_fields(Point) == ["y"]


def test_a_parameter_without_an_entry_is_caught():
    def function(theta, steps):
        """F of ``theta``."""

    assert undescribed(function) == ["steps"]
    function.__doc__ += " Other arguments as :func:`ntk_loss`."
    assert undescribed(function) == []


@dataclasses.dataclass
class Kept:
    """A dataclass."""

    first: int  # examples, at most
    # two lines of them
    second: int = 0  # bound of |a - b|

    def third(self):
        fourth: int = 0  # no field
        return fourth


def test_comments_next_to_fields_are_attributes_of_the_page():
    fields = ["    first: examples, at most two lines of them", r"    second: bound of \|a - b\|"]
    assert CONF.fields_of(Kept) == ["", "Attributes:", *fields]
    assert CONF.fields_of(lens.Candidate) == []  # its docstring names them
    assert CONF.fields_of(dict) == []


def test_worked_examples_print_what_is_shown_below_them():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for kind in ("family", "law", "selector", "read-out"):
        assert f"## Add a {kind}" in text
    report = failures(text, "CONTRIBUTING.md")
    assert not report, report


def dead(page):
    """Links of a page within the repository that do not exist."""
    links = re.findall(r"\]\(([^)\s]+)\)", page.read_text())
    inner = (link.partition("#") for link in links if "://" not in link)
    return [
        f"{path}#{anchor}"
        for path, _, anchor in inner
        if not (page.parent / path).exists()
        or (anchor and anchor not in headings(page.parent / path if path else page))
    ]


def headings(page):
    """The anchors of a page's headings, as GitHub and MyST make them."""
    titles = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles]


def test_links_of_the_pages_exist(tmp_path):
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
    assert not {page.name: dead(page) for page in pages if dead(page)}
    assert sum(len(re.findall(r"\]\(\w", page.read_text())) for page in pages) > 20
    page = tmp_path / "page.md"
    page.write_text("# A title\n[a](none.md) [b](#a-title) [c](#none) [d](page.md#none)")
    assert dead(page) == ["none.md#", "#none", "page.md#none"]
