"""A selector's formula is in the file of its name."""

import importlib
import pkgutil

from lensllm_jax.selection import selectors
from lensllm_jax.selection.problem import Evidence


def modules():
    return {m.name for m in pkgutil.iter_modules(selectors.__path__) if not m.name.startswith("_")}


def test_every_selector_has_a_file_of_its_name_and_every_file_is_a_selector():
    assert modules() == set(selectors.SELECTORS)
    for name, score in selectors.SELECTORS.items():
        assert score is importlib.import_module(f"{selectors.__name__}.{name}").score
    assert selectors.SELECTORS["ats"] is not selectors.SELECTORS["lensllm"]  # the control


def test_what_a_selector_needs_is_a_kind_of_evidence():
    assert set(selectors.NEEDS) <= set(selectors.SELECTORS)
    assert set(selectors.NEEDS.values()) <= set(Evidence.__dataclass_fields__)
