"""How `make docs` builds these pages."""

import inspect
import re

project = "lensllm_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
html_theme = "alabaster"
html_theme_options = {"page_width": "1200px"}  # wide tables, lines of 100 characters
autodoc_typehints = "none"  # shapes and units stand in the text
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80

FIELD = re.compile(r"    (\w+): [^#]+?(?:  # (.*))?")
MORE = re.compile(r"    # (.*)")


def fields_of(cls):
    """The Attributes section that the comments beside a class's fields make, as lines.

    Nothing where the docstring has one, or where there are no fields.
    """
    if "Attributes:" in (cls.__doc__ or "") or not hasattr(cls, "__annotations__"):
        return []
    entries = []
    for line in inspect.getsource(cls).splitlines():
        if re.match(r"    (def|@|class) ?", line):
            break
        if field := FIELD.fullmatch(line):
            entries.append(f"    {field[1]}: {field[2] or ''}".rstrip())
        elif entries and (more := MORE.fullmatch(line)):
            entries[-1] += f" {more[1]}"
    # a comment is plain text: what reStructuredText would read is escaped
    escaped = [re.sub(r"([|*`\\])", r"\\\1", entry) for entry in entries]
    return ["", "Attributes:", *escaped] if entries else []


def add_fields(app, what, name, obj, options, lines):
    """Adds the comments next to fields to the docstring that autodoc reads."""
    if what == "class":
        lines.extend(fields_of(obj))


def setup(app):
    """Connected before napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", add_fields, priority=400)
