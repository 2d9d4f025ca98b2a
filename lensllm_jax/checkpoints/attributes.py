"""Attributes: which entries of a config Hugging Face's model of that kind knows.

An entry is known if the config class declares it or if code of the model reads it; any other
moves no logit of Hugging Face's model and may be ignored.  The code is parsed, not run, so
that PyTorch need not be installed.
"""

import ast
import functools
import importlib.util
from collections.abc import Iterable, Iterator
from pathlib import Path

# read where a checkpoint is loaded, whatever its model
_READ_BY_LOADING = frozenset({"quantization_config", "compression_config", "transformers_weights"})


def unknown_attributes(config_class: type, names: Iterable[str]) -> set[str]:
    """Which names a config class does not declare and its model's code does not read.

    None of them if the class is not one of transformers, whose code can be found.
    """
    module = config_class.__module__.replace(".configuration_", ".modeling_")
    if _parsed(module) is None:
        return set()
    declared = {name for name in dir(config_class) if not name.startswith("__")}
    declared |= set(config_class().to_dict())
    return set(names) - declared - _READ_BY_LOADING - _read_by(module)


@functools.cache
def _read_by(module: str) -> frozenset[str]:
    """Names that a module, and what it reaches of others in transformers, reads of a config."""
    tree = _parsed(module)
    assert tree is not None
    names = set(_config_reads(tree))
    pending, seen = list(_imports(tree, module)), set()
    while pending:
        place = pending.pop()
        if place in seen:
            continue
        seen.add(place)
        definition, siblings = _definition(*place)
        # classes from elsewhere are bases and layers of many models, most of whose reads never run
        if definition is None or isinstance(definition, ast.ClassDef):
            continue
        names |= set(_config_reads(definition))
        pending += [(place[0], name) for name in _names(definition) if name in siblings]
    return frozenset(names)


def _parsed(module: str) -> ast.Module | None:
    spec = importlib.util.find_spec(module) if module.startswith("transformers.") else None
    path = Path(spec.origin) if spec and spec.origin else None
    return None if path is None else _parsed_file(path)


@functools.lru_cache(maxsize=64)
def _parsed_file(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _imports(tree: ast.Module, module: str) -> Iterator[tuple[str, str]]:
    """Module and name of each thing that is imported from a module of transformers."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level and node.module:
            parent = ".".join(module.split(".")[: -node.level])
            yield from ((f"{parent}.{node.module}", alias.name) for alias in node.names)


def _definition(module: str, name: str) -> tuple[ast.stmt | None, set[str]]:
    """Where a module defines a name, and all names that it defines."""
    tree = _parsed(module)
    definitions = {} if tree is None else dict(_definitions(tree))
    return definitions.get(name), set(definitions)


def _definitions(tree: ast.Module) -> Iterator[tuple[str, ast.stmt]]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            yield node.name, node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            yield from ((t.id, node) for t in targets if isinstance(t, ast.Name))


def _names(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _config_reads(tree: ast.AST) -> Iterator[str]:
    """``config.name``, ``self.config.name`` and ``getattr(config, "name")`` in a piece of code."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id=owner) | ast.Attribute(attr=owner), attr=name):
                if owner.endswith("config"):
                    yield name
            case ast.Call(
                func=ast.Name(id="getattr" | "hasattr"), args=[_, ast.Constant(value=str(name)), *_]
            ):
                yield name
