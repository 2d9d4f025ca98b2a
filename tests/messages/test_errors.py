"""Every public error says what was expected, what came and what to do: a table triggers each.

The modules of ``mistakes`` have a row per message: the argument it names, its key phrases and
what brings it about.  A place in the code that raises an error and is neither triggered by a row
nor listed in ``ELSEWHERE`` fails here; one of a binary may also be matched by a test of a whole
run in ``experiments``.
"""

import ast
import importlib
import re
import sys
from pathlib import Path
from typing import NamedTuple

import jaxtyping
import pytest

from lensllm_jax import checks

ROOT = Path(__file__).parents[2]
CHECKS = ROOT / "lensllm_jax" / "checks.py"
NAMES = "models checkpoints data ntk scaling theory finetune selection measurement runs"
ROOMS = {
    "core": [ROOT / "lensllm_jax"],
    "experiments": [ROOT / "experiments"],
    **{name: [ROOT / "lensllm_jax" / name] for name in NAMES.split()},
}
# errors that need a compiled program or a slow library: (room, phrase of the call) and where each
# is triggered: (file, test, phrase of the message)
HUB, HESSIAN = "data/test_hub.py", "theory/test_hessian.py"
COPY_TEST = "test_a_copy_without_a_split_or_a_field_is_refused"
PRODUCT_TEST = ("ntk/test_operator.py", "test_bad_input_is_refused_with_the_remedy")
FORM_TEST = (HESSIAN, "test_every_other_form_names_curvature_that_is_not_finite")
ELSEWHERE = {
    ("checkpoints", "must hold tensors by their names"): (
        "checkpoints/test_formats.py",
        "test_bin_of_something_else_than_tensors_is_refused_by_name",
        "tensors by their names",
    ),
    ("data", "must be read from {place}"): (HUB, "test_offline_says_what_to_do", "hf download"),
    ("data", "must have train, validation and test"): (HUB, COPY_TEST, "got no test"),
    ("data", "in field {field!r} of every row"): (HUB, COPY_TEST, "of every row, got None"),
    ("ntk", "checks.finite('theta v'"): (*PRODUCT_TEST, "`theta v` must be finite"),
    ("ntk", "in Lanczos' iteration"): (*PRODUCT_TEST, "Lanczos"),
    ("ntk", "the values of the layer"): (
        "ntk/structured/test_sweeps.py",
        "test_a_number_that_is_not_finite_stops_with_the_layer",
        "finite",
    ),
    ("theory", "of {block.name}, by example"): (
        HESSIAN,
        "test_curvature_that_is_not_finite_is_named",
        "of w, by example",
    ),
    ("theory", "by example and block"): (*FORM_TEST, "by example and block"),
    ("theory", "z^T H z"): (*FORM_TEST, "z, by probe"),
    ("theory", "variance of the gradient"): (*FORM_TEST, "variance of the gradient"),
}


class Site(NamedTuple):
    """A place that raises an error."""

    path: Path
    first: int  # line
    last: int
    source: str

    def contains(self, path, line):
        return self.path == path and self.first <= line <= self.last

    def __str__(self):
        return f"{self.path.relative_to(ROOT)}:{self.first}: {self.source}"


def is_error(call):
    """Whether it is a call of UserError or of a check."""
    if isinstance(call.func, ast.Name):
        return call.func.id == "UserError"
    module = call.func.value if isinstance(call.func, ast.Attribute) else None
    return isinstance(module, ast.Name) and module.id == "checks"


def is_ours(path):
    """Whether a file of ours may call a check; the checks themselves may not."""
    rooms = (ROOT / "lensllm_jax", ROOT / "experiments")
    return path != CHECKS and any(path.is_relative_to(room) for room in rooms)


def sites_of(path, text):
    calls = (node for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call))
    return [Site(path, c.lineno, c.end_lineno, ast.unparse(c)) for c in calls if is_error(c)]


def sites(room):
    """Every place of a room, its files' alone where it is the package itself."""
    paths = (p for folder in ROOMS[room] for p in sorted(folder.glob("**/*.py")))
    files = [p for p in paths if room != "core" or p.parent == ROOMS[room][0]]
    return [s for p in files if p != CHECKS for s in sites_of(p, p.read_text())]


@pytest.fixture
def as_users_run_it(monkeypatch):
    """No type checks, which only the tests have and which would raise first."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def raised(monkeypatch):
    """(file, line) of every error made."""
    places = []

    def recorded(error, *arguments):
        frame = sys._getframe(1)
        while not is_ours(Path(frame.f_code.co_filename)):
            frame = frame.f_back
        places.append((Path(frame.f_code.co_filename), frame.f_lineno))
        ValueError.__init__(error, *arguments)

    monkeypatch.setattr(checks.UserError, "__init__", recorded)
    return places


def message_of(mistake, folder):
    with pytest.raises(checks.UserError) as caught:
        mistake(folder)
    return str(caught.value).replace(f"{folder}/", "").replace(str(folder), "DIR")


def is_like(message, argument, phrases):
    """Whether a message names the argument, then says the phrases (between " ... ") in order."""
    subject, _, rest = message.partition(" must ")
    pattern = ".*".join(map(re.escape, phrases.split(" ... ")))
    named = re.search(rf"(?<!\w){re.escape(argument)}(?!\w)", subject)
    return named and re.search(rf"(?<!\w){pattern}(?!\w)", rest, re.DOTALL)


def says_all(message):
    return re.search(r"\bmust .*\bgot\b.+", message, re.DOTALL)


def matched_by_runs():
    """The strings with which tests of whole runs match errors."""
    folders = (ROOT / "tests" / "experiments", ROOT / "tests" / "runs")
    files = (file for folder in folders for file in folder.glob("test_*.py"))
    nodes = (node for file in files for node in ast.walk(ast.parse(file.read_text())))
    texts = (n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str))
    return {text for text in texts if " must " in text}


def literal_parts(source):
    """The literal pieces of a message in the code."""
    nodes = ast.walk(ast.parse(source))
    return [n.value for n in nodes if isinstance(n, ast.Constant) and isinstance(n.value, str)]


def untriggered(room, raised):
    elsewhere = [phrase for (there, phrase) in ELSEWHERE if there == room]
    runs = matched_by_runs() if room in ("experiments", "runs") else ()
    return [
        str(site)
        for site in sites(room)
        if not any(site.contains(*place) for place in raised)
        and not any(phrase in site.source for phrase in elsewhere)
        and not any(text in part for part in literal_parts(site.source) for text in runs)
    ]


@pytest.mark.parametrize("room", ROOMS)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_every_error_of_a_room_is_triggered_and_says_all(room, tmp_path, as_users_run_it, raised):
    table = importlib.import_module(f"tests.messages.mistakes.{room}").MISTAKES
    for number, (argument, phrases, mistake) in enumerate(table):
        folder = tmp_path / str(number)
        folder.mkdir()
        message = message_of(mistake, folder)
        assert is_like(message, argument, phrases), f"{argument} | {phrases} | {message}"
        assert says_all(message), message
    missing = untriggered(room, raised)
    assert not missing, "\n".join(missing)


@pytest.mark.parametrize(("place", "reference"), ELSEWHERE.items())
def test_an_error_triggered_elsewhere_is_matched_there(place, reference):
    room, phrase = place
    assert any(phrase in site.source for site in sites(room)), "no such error"
    file, test, message = reference
    body = (ROOT / "tests" / file).read_text().split(f"def {test}(")
    assert len(body) == 2, test
    assert message in (ROOT / "tests" / file).read_text()


def test_a_place_without_an_entry_is_missed(tmp_path, raised):
    assert len(untriggered("core", raised)) > 5
    text = 'def f(x):\n    checks.positive("x", x)\n    raise UserError(\n        f"{x}"\n    )\n'
    assert [(s.first, s.last) for s in sites_of(tmp_path, text)] == [(2, 2), (3, 5)]


def test_a_message_that_says_less_is_caught():
    assert says_all("`gamma` must be positive, got 0")
    assert not says_all("`gamma` must be positive")
    assert not says_all("bad gamma, got 0")


def test_another_argument_or_value_is_caught():
    message = "`gamma` must be positive, got 0: use `tau`"
    assert is_like(message, "gamma", "positive ... got 0")
    assert not is_like(message, "gamma", "positive ... got 1")
    assert not is_like(message, "gamma", "got 0 ... positive")
    assert not is_like(message, "tau", "positive ... got 0")
    assert not is_like(message, "gam", "positive ... got 0")
