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
    said = []
    for line in inspect.getsource(cls).splitlines():
        if re.match(r"    (def|@|class) ?", line):
            break
        if field := FIELD.fullmatch(line):
            said.append(f"    {field[1]}: {field[2] or ''}".rstrip())
        elif said and (more := MORE.fullmatch(line)):
            said[-1] += f" {more[1]}"
    # a comment is plain text: what reStructuredText would read is escaped
    return ["", "Attributes:", *(re.sub(r"([|*`\\])", r"\\\1", x) for x in said)] if said else []


def add_fields(app, what, name, obj, options, lines):
    """Tells autodoc's reader of docstrings what stands in comments."""
    if what == "class":
        lines.extend(fields_of(obj))


def setup(app):
    """Before napoleon, which listens at 500."""
    app.connect("autodoc-process-docstring", add_fields, priority=400)
