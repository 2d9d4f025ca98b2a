"""The bridge patches JAX for the import of neural-tangents and leaves nothing changed."""

import subprocess
import sys
import textwrap

import pytest

from lensllm_jax.ntk import neural_tangents

FRESH = textwrap.dedent(
    """
    import sys
    import jax, jax.core, jax.interpreters.ad
    from lensllm_jax.ntk import neural_tangents

    def snapshot():
        modules = {name: id(m) for name, m in sys.modules.items() if name.split(".")[0] == "jax"}
        names = {m.__name__: {k: id(v) for k, v in vars(m).items()}
                 for m in (jax, jax.core, jax.interpreters.ad)}
        return modules, names

    assert "neural_tangents" not in sys.modules, "importing the bridge must stay lazy"
    modules, names = snapshot()
    nt = neural_tangents.load()
    after_modules, after_names = snapshot()
    assert {k: after_modules[k] for k in modules} == modules
    assert "jax.util" not in after_modules or "jax.util" in modules
    for module in names:
        # a submodule that JAX itself imports on the way becomes an attribute of its parent
        changed = set(names[module].items()) ^ set(after_names[module].items())
        assert all(f"{module}.{name}" in after_modules for name, _ in changed), changed
    assert "tensorflow" not in sys.modules
    assert "neural_tangents.experimental" not in sys.modules
    assert neural_tangents.load() is nt
    print(nt.__version__)
    """
)


def run(code, *flags):
    return subprocess.run(
        [sys.executable, *flags, "-c", code], capture_output=True, text=True, check=False
    )


def test_jax_is_the_same_after_loading_even_where_warnings_are_errors():
    result = run(FRESH, "-W", "error")
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "0.6.5"


def test_without_the_bridge_neural_tangents_does_not_import():
    # The negative control: were this to pass, the bridge could go.
    result = run("import neural_tangents")
    assert result.returncode != 0
    assert "Error" in result.stderr


def test_its_absence_names_the_command_that_installs_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "neural_tangents", None)
    monkeypatch.delitem(sys.modules, "neural_tangents")
    monkeypatch.setattr(neural_tangents.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install --no-deps neural-tangents"):
        neural_tangents.load()
