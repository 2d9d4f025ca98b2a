"""Every command that the pages and the binaries show could be pasted; none is run."""

import ast
import re
import shlex
from pathlib import Path

import pytest

from experiments.common import console
from tests.messages import binaries

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TARGETS = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
MODULE = re.compile(r"python -m ((?:experiments|benchmarks)\.\w+)((?:\s+--[^\s`]+)*)")
BY_ABSL = {"help", "helpfull"}
NOT_OURS = {"pip", "git", "hf", "pre-commit"}
OF_THE_SHELL = {"for", "done"}  # the lines between them are checked one by one


def lines_of(text):
    """The commands in the sh blocks of a page, as words; the comments are left out."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    words = (shlex.split(line, comments=True) for line in lines)
    return [line for line in words if line]


def modules_of(text):
    """(module, flags) of every command of ours anywhere in a text."""
    commands = MODULE.findall(text.replace("\\\n", " "))
    return [(name, re.findall(r"--(\w+)", flags)) for name, flags in commands]


def known_flags(name):
    """Of a module: those that absl would know, or that its argument parser names."""
    kind, _, stem = name.partition(".")
    if kind == "experiments":
        defined = binaries.load(stem).flags
        return BY_ABSL | {*defined} | {f"no{f}" for f, of in defined.items() if of.kind == "bool"}
    text = (ROOT / kind / f"{stem}.py").read_text()
    return {*re.findall(r'"(?:--)?(\w+)"', text), *re.findall(r"define_(\w+)\(", text)}


def unknown_module(name, flags):
    """What is wrong with a command of ours, or None."""
    if not (ROOT / name.replace(".", "/")).with_suffix(".py").is_file():
        return f"no module {name}"
    strange = sorted(set(flags) - known_flags(name))
    return f"{name} has no flag {', '.join(strange)}" if strange else None


def wrong(words):
    """What is wrong with a line of a sh block, or None."""
    while re.fullmatch(r"[A-Z_]+=\S*", words[0]):
        words = words[1:]
    program, *rest = words
    if program in NOT_OURS | OF_THE_SHELL:
        return None
    if program == "make":
        strange = [word for word in rest if "=" not in word and word not in TARGETS]
        return f"no target {strange[0]}" if strange else None
    if re.fullmatch(r"(\.venv/bin/)?python", program) and rest[0] == "-c":
        return None if ast.parse(rest[1]) else "no Python"
    if re.fullmatch(r"(\.venv/bin/)?python", program):
        bare = [word for word in rest[2:] if not word.startswith("--")]
        return f"{bare[0]} is no flag" if bare else unknown_module(rest[1], _names(rest[2:]))
    if program in console.NAMES:
        return unknown_module(f"experiments.{console.NAMES[program]}", _names(rest))
    return None if (ROOT / program).is_file() else f"no program {program}"


def _names(flags):
    return [flag.removeprefix("--").split("=")[0] for flag in flags]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_of_a_page_could_run(page):
    text = page.read_text()
    complaint = [wrong(words) for words in lines_of(text)]
    complaint += [unknown_module(*command) for command in modules_of(text)]
    assert not any(complaint), complaint


@pytest.mark.parametrize("binary", binaries.NAMES)
def test_commands_of_a_binary_could_run(binary):
    complaint = ast.get_docstring(ast.parse((ROOT / "experiments" / f"{binary}.py").read_text()))
    commands = modules_of(complaint)
    assert f"experiments.{binary}" in [name for name, _ in commands]
    assert not any(unknown_module(*command) for command in commands)


def test_blocks_exist():
    assert sum(len(lines_of(page.read_text())) for page in PAGES) > 5
    assert sum(len(modules_of(page.read_text())) for page in PAGES) > 10


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("make demos", "no target demos"),
        ("for x in a b; do\n  .ci/ran $x\ndone", "no program .ci/ran"),
        (".ci/ran", "no program .ci/ran"),
        ("python -m experiments.rank_curve --curves=a.csv", "no module experiments.rank_curve"),
        ("X=1 python -m experiments.rank_curves --curve=a.csv", "has no flag curve"),
        ("python -m experiments.rank_curves a.csv", "a.csv is no flag"),
    ],
)
def test_a_command_that_could_not_run_is_caught(line, complaint):
    complaints = map(wrong, lines_of(f"```sh\n{line}  # a comment\n```\n"))
    assert [complaint in complaint for complaint in complaints if complaint] == [True]
