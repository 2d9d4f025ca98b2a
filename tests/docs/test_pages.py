"""The API page names what is public, and every worked example of CONTRIBUTING.md runs."""

import re
from pathlib import Path

import lensllm_jax as lens
from tests.test_docs import failures

ROOT = Path(__file__).parents[2]


def test_api_page_names_every_public_name():
    listed = re.findall(r"^## (\w+)$", (ROOT / "docs" / "api.md").read_text(), re.MULTILINE)
    assert sorted(listed) == sorted(set(lens.__all__) - {"__version__"})


def test_worked_examples_print_what_stands_below_them():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    for kind in ("family", "law", "selector", "read-out"):
        assert f"## Add a {kind}" in text
    said = failures(text, "CONTRIBUTING.md")
    assert not said, said
