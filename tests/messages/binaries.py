"""The binaries as modules: their flags have the defaults and are not registered with absl.

absl has one table of flags per process, in which two binaries may not define the same name; here
each module gets plain values instead, so that a test can set any flag of any binary.
"""

import functools
import importlib
import sys
import types
from pathlib import Path
from typing import NamedTuple

import pytest
from absl import app, flags  # noqa: F401 - its own flags come first

import experiments

ROOT = Path(__file__).parents[2]
NAMES = sorted(
    path.stem for path in (ROOT / "experiments").glob("*.py") if "cli.run(main)" in path.read_text()
)
KINDS = ("string", "list", "integer", "float", "bool", "enum")


class Binary(NamedTuple):
    """One of ``experiments``."""

    module: types.ModuleType
    flags: dict[str, types.SimpleNamespace]  # name -> its kind and value

    def set(self, **values: object) -> "Binary":
        """The same with other values of some flags."""
        for name, value in values.items():
            self.flags[name].value = value
        return self


def load(name: str, **values: object) -> Binary:
    """The binary ``experiments.<name>``, freshly imported, as it is with flags of these values."""
    defined: dict[str, types.SimpleNamespace] = {}

    def define(kind, flag, default, *_, **__):
        assert flag not in defined, f"--{flag} is defined twice"
        return defined.setdefault(flag, types.SimpleNamespace(kind=kind, value=default))

    def define_alias(flag, of, **_):
        defined[flag] = defined[of]

    before = {m: sys.modules[m] for m in sys.modules if m.startswith("experiments.")}
    attributes = dict(vars(experiments))
    with pytest.MonkeyPatch.context() as patch:
        for kind in KINDS:
            patch.setattr(flags, f"DEFINE_{kind}", functools.partial(define, kind))
        patch.setattr(flags, "DEFINE_alias", define_alias)
        try:
            for module in before:
                del sys.modules[module]
                # else `from experiments import common` would find the module of before
                vars(experiments).pop(module.partition(".")[2], None)
            module = importlib.import_module(f"experiments.{name}")
        finally:
            for fresh in [m for m in sys.modules if m.startswith("experiments.")]:
                del sys.modules[fresh]
            sys.modules.update(before)
            vars(experiments).clear()
            vars(experiments).update(attributes)
    return Binary(module, defined).set(**values)
