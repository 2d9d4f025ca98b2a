"""The rooms import only what the table in docs/architecture.md lets them import."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "lensllm_jax"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")
OURS = sorted(p for folder in ("lensllm_jax", "experiments", "tests", "benchmarks", "tools")
              for p in (ROOT / folder).rglob("*.py"))  # fmt: skip


def read_table(text: str) -> dict[str, set[str]]:
    """What each room may import, from the rows ``| rooms | holds | may import |`` of a page.

    The first two rows are the ground: the second may import the first, and every other room may
    import both.  "all above" stands for every room of the rows above it.
    """
    may_import: dict[str, set[str]] = {}
    ground: set[str] = set()
    lines = text.partition("| room |")[2].partition("\n\n")[0].splitlines()[2:]
    for number, line in enumerate(lines):
        rooms, _, last = (_names(cell) for cell in line.strip("|").split("|"))
        above = set(may_import) if "all above" in line.rpartition("| ")[2] else set()
        for room in rooms:
            may_import[room] = ground | last | above
        ground |= rooms if number < 2 else set()
    return may_import


def _names(cell: str) -> set[str]:
    """Rooms in a cell: `linalg.py` and `models/layers.py` as dotted names, `ntk/` as ntk."""
    return {n.removesuffix(".py").strip("/").replace("/", ".") for n in re.findall("`(.+?)`", cell)}


MAY_IMPORT = read_table((ROOT / "docs" / "architecture.md").read_text())


def room_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imports_of(source: str) -> set[str]:
    """Dotted names below ``lensllm_jax`` that ``source`` imports, at any depth of nesting."""
    names = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {n.removeprefix("lensllm_jax.") for n in names if n.startswith("lensllm_jax.")}


def violations(room: str, source: str) -> set[str]:
    allowed = MAY_IMPORT[room] | {room}
    return {
        name
        for name in imports_of(source)
        if not any(name == a or name.startswith(a + ".") for a in allowed)
    }


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_room_imports_only_what_stands_above_it(path):
    assert violations(room_of(path), path.read_text()) == set()


def test_a_sibling_import_is_caught():
    assert violations("ntk", "from lensllm_jax.scaling import laws") == {"scaling.laws"}


def test_the_table_has_a_row_for_every_room_and_no_other():
    assert set(MAY_IMPORT) - {"experiments"} == {room_of(path) for path in FILES} - {"zoo"}


def test_the_table_reads_as_its_sentence_says():
    page = "| room | holds | may import |\n|---|---|---|\n| `a.py` | | nothing |\n"
    page += "| `b.py` | `x` | – |\n| `c/` | | `d/e.py` |\n| `d/` | | all above |\n\n`f`"
    ground = {"a", "b"}
    assert read_table(page) == {"a": set(), "b": {"a"}, "c": ground | {"d.e"},
                                "d": ground | {"c"}}  # fmt: skip


def too_long(path: Path) -> bool:
    return len(path.read_text().splitlines()) > 600


def test_no_file_is_called_utils_or_longer_than_600_lines(tmp_path):
    assert not [path for path in OURS if path.stem == "utils" or too_long(path)]
    long = tmp_path / "long.py"
    long.write_text("\n" * 601)
    assert too_long(long)
