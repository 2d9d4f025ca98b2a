"""How `make docs` builds these pages."""

project = "lensllm_jax"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
myst_heading_anchors = 3
html_theme = "alabaster"
autodoc_typehints = "none"  # shapes and units stand in the text
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 80
