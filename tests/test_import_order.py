"""The rooms import only what stands above them (the table in docs/architecture.md)."""

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "lensllm_jax"

LEAVES = {"typing", "checks", "durable", "fingerprint", "_version"}
NUMBERS = LEAVES | {"linalg", "metrics", "paired", "padding", "language_modelling"}
MAY_IMPORT = {
    "_version": set(),
    "typing": set(),
    "checks": set(),
    "durable": set(),
    "fingerprint": set(),
    "linalg": LEAVES,
    "language_modelling": LEAVES,
    "metrics": LEAVES,
    "paired": LEAVES,
    "padding": LEAVES,
    "models": NUMBERS,
    "checkpoints": NUMBERS | {"models"},
    "data": NUMBERS,
    "ntk": NUMBERS | {"models.layers"},
    "scaling": NUMBERS,
    "theory": NUMBERS,
    "finetune": NUMBERS | {"models", "checkpoints", "data"},
    "selection": NUMBERS | {"checkpoints", "data", "finetune", "ntk", "scaling"},
    "measurement": NUMBERS
    | {"models", "checkpoints", "data", "ntk", "scaling", "finetune", "selection"},
    "report": NUMBERS
    | {
        "models",
        "checkpoints",
        "data",
        "ntk",
        "scaling",
        "theory",
        "finetune",
        "selection",
        "measurement",
    },
}


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


FILES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_room_imports_only_what_stands_above_it(path):
    assert violations(room_of(path), path.read_text()) == set()


def test_a_sibling_import_is_caught():
    assert violations("ntk", "from lensllm_jax.scaling import laws") == {"scaling.laws"}


def test_no_file_is_called_utils_or_longer_than_600_lines():
    for path in FILES:
        assert path.stem != "utils"
        assert len(path.read_text().splitlines()) <= 600, path
