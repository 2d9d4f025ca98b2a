"""Modules of the package and of the experiments import each other without circles.

An import counts wherever it is, also inside a function, which can hide a circle but not open it;
only those under TYPE_CHECKING, which never run, do not.
"""

import ast
import graphlib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("lensllm_jax", "experiments")
    for path in (ROOT / folder).rglob("*.py")
}


def nodes(node: ast.AST) -> Iterator[ast.AST]:
    """Every node that can run, in any order."""
    if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
        children = node.orelse
    else:
        yield node
        children = list(ast.iter_child_nodes(node))
    for child in children:
        yield from nodes(child)


def imports(text: str, modules: set[str]) -> set[str]:
    """Those of ``modules`` that a file imports: a name of a module, or the module itself."""
    names = set()
    for node in nodes(ast.parse(text)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {n if n in modules else n.rpartition(".")[0] for n in names} & modules


def graph(texts: dict[str, str]) -> dict[str, set[str]]:
    """Module -> modules that it imports."""
    return {name: imports(text, set(texts)) for name, text in texts.items()}


def circle(importing: dict[str, set[str]]) -> list[str]:
    """The modules of one circle, or none."""
    try:
        graphlib.TopologicalSorter(importing).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


def between_binaries(importing: dict[str, set[str]]) -> list[tuple[str, str]]:
    """Pairs of experiments of which the first imports the second; what they share is in common."""
    binaries = {name for name in importing if name.startswith("experiments.")
                and not name.startswith("experiments.common")}  # fmt: skip
    return [(name, other) for name in sorted(binaries) for other in importing[name] & binaries]


IMPORTING = graph({name: path.read_text() for name, path in SOURCES.items()})


def test_no_module_imports_itself_through_others():
    assert circle(IMPORTING) == []


def test_no_binary_imports_another():
    assert between_binaries(IMPORTING) == []


@pytest.mark.parametrize(
    "back",
    ["import p.a", "from p import a", "from p.a import x", "def f():\n    from p import a"],
)
def test_a_circle_is_caught(back):
    importing = graph({"p": "", "p.a": "from p.b import y", "p.b": back})
    assert sorted(set(circle(importing))) == ["p.a", "p.b"]


def test_an_import_for_types_alone_is_no_circle():
    types = "if TYPE_CHECKING:\n    from p import a"
    assert circle(graph({"p": "", "p.a": "from p.b import y", "p.b": types})) == []


def test_a_binary_that_imports_another_is_caught():
    common = {"experiments.common.cli": "", "experiments.c": "from experiments.common import cli"}
    texts = {"experiments.a": "from experiments.b import main", "experiments.b": "", **common}
    assert between_binaries(graph(texts)) == [("experiments.a", "experiments.b")]
