"""What ``import lensllm_jax`` offers: one list for type checkers, one that is loaded on use."""

import ast
import inspect
import subprocess
import sys

import pytest

import lensllm_jax as lens


def static_imports(source):
    """Module -> the names imported from it under TYPE_CHECKING."""
    body = ast.parse(source).body
    (block,) = (n for n in body if isinstance(n, ast.If) and ast.unparse(n.test) == "TYPE_CHECKING")
    return {statement.module: {a.name for a in statement.names} for statement in block.body}


def test_static_and_lazy_names_agree():
    static = static_imports(inspect.getsource(lens))
    assert static == {module: set(names.split()) for module, names in lens._LAZY.items()}
    assert set(lens.__all__) == set().union(*static.values(), {"__version__"})
    for module, names in static.items():
        for name in names:
            assert getattr(lens, name).__module__ == module


def test_a_name_that_only_one_list_has_is_caught():
    source = inspect.getsource(lens).replace("import fit_law, fit_laws", "import fit_law")
    assert static_imports(source)["lensllm_jax.scaling.fit"] == {"fit_law"}


def test_an_unknown_name_is_no_attribute():
    with pytest.raises(AttributeError, match="no attribute 'fit_lows'"):
        _ = lens.fit_lows


def test_importing_the_package_loads_no_jax():
    code = "import sys, lensllm_jax; print('jax' in sys.modules); lensllm_jax.rank"
    code += "; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True"]
