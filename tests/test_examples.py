"""Every script in examples/ runs, and every public function is called in one of them."""

import ast
import inspect
import runpy
from pathlib import Path

import pytest

import lensllm_jax as lens

ROOT = Path(__file__).parent.parent
SCRIPTS = sorted((ROOT / "examples").glob("*.py"))
PAGE = (ROOT / "docs" / "examples.md").read_text()
FUNCTIONS = {name for name in lens.__all__ if inspect.isfunction(getattr(lens, name))}
# what a script must print, of its numbers those that no processor changes
SHOWS = {
    "fit_a_law": "[1.1176",
    "kernel_of_a_candidate": "zoo/gpt2-xs",
    "kernel_of_a_function": "MatrixFreeNtkLoss(",
    "rank_a_table": "best with P =",
    "select_a_model": "Kernel of zoo/gpt2-xs: 4 examples",
}


def called(text):
    """Names of ``lens`` that a script uses."""
    nodes = [node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Attribute)]
    return {n.attr for n in nodes if isinstance(n.value, ast.Name) and n.value.id == "lens"}


def test_every_public_function_has_a_script_and_every_script_is_on_the_page():
    texts = [path.read_text() for path in SCRIPTS]
    named = {"read_loss_table"}  # in a comment: it needs a file
    assert named <= FUNCTIONS
    assert FUNCTIONS - named <= set().union(*map(called, texts))
    assert all(f"../examples/{path.name}" in PAGE for path in SCRIPTS)
    assert called("import lensllm_jax as lens\nlens.rank(1)") == {"rank"}


@pytest.mark.slow
@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.stem)
def test_script_runs(path, capsys):
    runpy.run_path(str(path), run_name="__main__")
    assert SHOWS[path.stem] in capsys.readouterr().out
