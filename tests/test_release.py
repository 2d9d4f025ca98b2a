"""The version, the citation, the changelog and the workflow name the same release."""

import re
from pathlib import Path

import lensllm_jax as lens

ROOT = Path(__file__).parent.parent
CHANGELOG = (ROOT / "CHANGELOG.md").read_text()


def overlong(text):
    """Entries of a changelog that state more than one fact can take."""
    entries = re.findall(r"^- (.*(?:\n  .*)*)", text, re.MULTILINE)
    return [entry for entry in entries if len(entry.split()) > 40]


def test_citation_and_changelog_name_this_version():
    assert f"\nversion: {lens.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert re.findall(r"^## (.*)$", CHANGELOG, re.MULTILINE)[0] == lens.__version__


def test_entries_of_the_changelog_are_short():
    assert not overlong(CHANGELOG)
    assert overlong("- a\n- b\n" + "  c\n" * 40) == ["b\n" + "\n".join(["  c"] * 40)]


def test_the_workflow_runs_what_everyone_runs():
    assert "- run: .ci/run\n" in (ROOT / ".github" / "workflows" / "ci.yml").read_text()
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    called = re.findall(r"^ *make (.+)", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    words = {word for line in called for word in line.split() if re.fullmatch(r"[a-z][\w-]*", word)}
    assert words == targets - {"demo", "figures", "fuzz", "lock", "soak"}
